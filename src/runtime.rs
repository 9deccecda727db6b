//! Shared by all roles: logging, metrics, signals, admin server, file watching and Kubernetes client configuration.

pub mod admin;
pub mod error_chain;
pub(crate) mod exposition;
pub mod files;
pub mod kubernetes;
pub(crate) mod limits;
pub(crate) mod log_throttle;
pub(crate) mod metrics;
pub mod signal;
pub mod telemetry;
#[cfg(test)]
pub(crate) mod test_dir;
