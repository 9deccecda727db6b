//! The control thread: reloads the proxy's files, reports the status, and drains.

pub(crate) mod certificate_files;
pub(crate) mod check;
pub(crate) mod drain;
pub(crate) mod failure_log;
pub(crate) mod host_names;
pub(crate) mod reload;
pub(crate) mod ring_file;
// Public for the fuzz targets.
pub mod snapshot;
pub(crate) mod status;
