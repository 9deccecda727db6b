//! What every long-running role needs: logs, the signal to stop, the admin server and changed files.

pub mod admin;
pub mod files;
pub mod signal;
pub mod telemetry;
