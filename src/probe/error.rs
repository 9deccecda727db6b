//! Why the probe could not run.

use std::io;
use std::path::PathBuf;

use super::target::TargetError;

/// Why the probe could not run.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Reading the targets from the cluster failed, or the farm does not exist.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// There is nothing to probe.
    #[error("nothing to probe: {0}")]
    Nothing(String),
    /// The file with CA certificates is invalid.
    #[error("--ca-file {path}: {why}")]
    CaFile {
        /// Path of the file.
        path: PathBuf,
        /// The error.
        why: String,
    },
    /// Starting the runtime or writing the output failed.
    #[error("failed to run the probe: {0}")]
    Io(#[from] io::Error),
}
