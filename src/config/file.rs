//! Parsing, versions and errors shared by all configuration files.

use aws_lc_rs::digest;
use serde::Deserialize;

/// Version of the format that this release writes and reads.
pub const VERSION: u32 = 1;

/// Why a configuration file was rejected.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// It failed to parse.
    #[error("failed to parse the configuration: {0}")]
    Malformed(String),
    /// Its version is not supported by this release.
    #[error("configuration version {0} is not supported; this release supports version {VERSION}")]
    Version(u32),
    /// Two hosts have the same name or host name.
    #[error("{0:?} is used by two hosts")]
    Conflict(String),
    /// A value is invalid.
    #[error("invalid {field} of {of:?}: {why}")]
    Value {
        /// The field.
        field: &'static str,
        /// The entry that it belongs to.
        of: String,
        /// The constraint that the value violates.
        why: &'static str,
    },
}

pub(super) fn from_yaml<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, ConfigError> {
    // An excerpt of the file would spread the message over several lines.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| ConfigError::Malformed(error.to_string()))
}

/// Short fingerprint of a configuration file, by which the operator checks which one a proxy has loaded.
pub fn fingerprint(file: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, file);
    digest
        .as_ref()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
