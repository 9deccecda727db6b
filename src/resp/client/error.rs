//! Errors of cache requests.

/// Error reply of a `tlsfarm cache` that could not store a value because the owner of the key does not reply. The cache
/// that sends it is healthy, so it must not count as a failure. Part of the protocol between releases.
pub(crate) const OWNER_IS_SILENT: &str = "ERR the cache that owns this key does not answer";

/// Errors of cache requests.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CacheError {
    /// There is no connection, the breaker is open, or the queue is full: the request failed immediately.
    #[error("the cache is unavailable")]
    Unavailable,
    /// The request timed out.
    #[error("the request to the cache timed out")]
    Timeout,
    /// The connection was lost. It is unknown whether the request was executed.
    #[error("lost the connection to the cache")]
    Lost,
    /// The reply is malformed or does not match the request.
    #[error("invalid reply from the cache")]
    Garbled,
    /// The server sent an error reply.
    #[error("the cache returned an error: {0}")]
    Refused(String),
}

impl CacheError {
    /// Value of the metric label.
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
