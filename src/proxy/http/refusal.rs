//! Why a request is not forwarded.

use http::StatusCode;

/// Why a request is refused, in words that may be sent to the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HttpRefusal {
    /// What it is answered with.
    pub(crate) status: StatusCode,
    /// What is wrong with it.
    pub(crate) reason: &'static str,
}

impl HttpRefusal {
    pub(crate) const fn bad_request(reason: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            reason,
        }
    }
}
