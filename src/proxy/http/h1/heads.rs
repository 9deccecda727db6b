//! State of the request heads of one HTTP/1 connection, shared by the guard and the service.
//!
//! ```text
//!   guard:    nothing ──first byte──► partial ──complete──► passed: number 0, 1, 2, …
//!                                       │ too late, or malformed
//!                                       ▼
//!                                     refused: a head of the guard's own passes in its place, under the same number
//!   service:                                                next_request: number 0, 1, 2, …
//! ```
//!
//! hyper is between the two and cannot carry the guard's information about a request. It delivers requests in the order
//! of their heads, so both sides count them, and the number identifies the refused request.

use std::cell::Cell;

use tokio::time::Instant;

use crate::proxy::http::refusal::HttpRefusal;

/// Head state shared by the guard, the service and the connection's loop.
#[derive(Default)]
pub(crate) struct Heads {
    /// Since when a head has been incomplete.
    pub(crate) partial_since: Cell<Option<Instant>>,
    /// Tells the guard to refuse the incomplete head.
    pub(crate) refuse_partial: Cell<Option<HttpRefusal>>,
    passed: Cell<u64>,
    served: Cell<u64>,
    refused: Cell<Option<(u64, HttpRefusal)>>,
}

impl Heads {
    /// Records that a head passed; returns the request's number.
    pub(crate) fn pass(&self) -> u64 {
        let number = self.passed.get();
        self.passed.set(number + 1);
        self.partial_since.set(None);
        number
    }

    /// Records that the guard passed a placeholder instead of a refused head.
    pub(crate) fn refuse(&self, refusal: HttpRefusal) {
        let number = self.pass();
        self.refused.set(Some((number, refusal)));
    }

    /// Returns the number of the request that arrived at the service, or the refusal if the guard refused it.
    pub(crate) fn next_request(&self) -> Result<u64, HttpRefusal> {
        let number = self.served.get();
        self.served.set(number + 1);
        match self.refused.get() {
            Some((refused, refusal)) if refused == number => Err(refusal),
            _ => Ok(number),
        }
    }
}
