//! Why nothing was probed.

use std::io;
use std::path::PathBuf;

use super::target::TargetError;

/// Why nothing was probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The cluster cannot be asked, or there is no such farm.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// There are no proxies.
    #[error("nothing to probe: {0}")]
    Nothing(String),
    /// The file with trusted certificates is unusable.
    #[error("--ca-file {path}: {why}")]
    CaFile {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The process cannot work, or its output cannot be written.
    #[error("failed to run the probe: {0}")]
    Io(#[from] io::Error),
}
