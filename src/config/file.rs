//! What all configuration files have in common.

use aws_lc_rs::digest;
use serde::Deserialize;

/// The format that this release writes and reads.
pub const VERSION: u32 = 1;

/// Why a configuration file is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be parsed.
    #[error("failed to parse the configuration: {0}")]
    Malformed(String),
    /// It is written for another release.
    #[error("configuration version {0} is not supported; this release supports version {VERSION}")]
    Version(u32),
    /// Two hosts share a name or a host name.
    #[error("{0:?} is used by two hosts")]
    Conflict(String),
    /// A value is out of bounds.
    #[error("invalid {field} of {of:?}: {why}")]
    Value {
        /// The field.
        field: &'static str,
        /// The entry that it belongs to.
        of: String,
        /// What would be right.
        why: &'static str,
    },
}

pub(super) fn from_yaml<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, ConfigError> {
    // An excerpt of the file would make several lines of a message that belongs on one.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| ConfigError::Malformed(error.to_string()))
}

/// Short fingerprint of a configuration file, by which operator and proxy tell whether they mean the same one.
pub fn fingerprint(file: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, file);
    digest
        .as_ref()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
