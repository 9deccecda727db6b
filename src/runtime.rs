//! What every role needs: logs, the signal to stop, the admin server, changed files and the way to the API server.

pub mod admin;
pub mod error_chain;
pub mod files;
pub mod kubernetes;
pub(crate) mod limits;
pub mod signal;
pub mod telemetry;
#[cfg(test)]
pub(crate) mod test_dir;
