//! Refusals of requests.

use http::StatusCode;

/// A refused request: status and reason of the response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HttpRefusal {
    /// Status of the response.
    pub(crate) status: StatusCode,
    /// Reason, sent as the body of the response.
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
