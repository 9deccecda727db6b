//! Why a request has no answer.

/// What a `tlsfarm cache` answers when it cannot store, because the cache that owns the key does not answer. The cache that
/// sends this is healthy; it must not count as a failure.
pub(crate) const OWNER_IS_SILENT: &str = "ERR the cache that owns this key does not answer";

/// Why a request has no answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CacheError {
    /// There is no connection, the breaker is open, or too many requests wait already: known at once.
    #[error("the cache is unavailable")]
    Unavailable,
    /// The answer did not come in time.
    #[error("the request to the cache timed out")]
    Timeout,
    /// The connection ended. Whether the request was carried out is not known.
    #[error("lost the connection to the cache")]
    Lost,
    /// What came back is no answer to what was asked.
    #[error("invalid reply from the cache")]
    Garbled,
    /// The server answered with an error.
    #[error("the cache returned an error: {0}")]
    Refused(String),
}

impl CacheError {
    /// Word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
            Self::Garbled => "garbled",
            Self::Refused(_) => "refused",
        }
    }
}
