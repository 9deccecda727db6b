//! The request heads of one HTTP/1 connection, between the guard that lets them pass and the service that they arrive at.
//!
//! ```text
//!   guard:    nothing ──first byte──► partial ──complete──► passed: number 0, 1, 2, …
//!                                       │ too late, or malformed
//!                                       ▼
//!                                     refused: a head of the guard's own passes in its place, under the same number
//!   service:                                                next_request: number 0, 1, 2, …
//! ```
//!
//! hyper lies between both and tells nothing of what the guard knows about a request. It hands on requests in the order
//! in which their heads passed, so both sides count, and the number says which request is the refused one.

use std::cell::Cell;

use tokio::time::Instant;

use crate::proxy::http::refusal::HttpRefusal;

/// What guard, service and the connection's loop know of its heads.
#[derive(Default)]
pub(crate) struct Heads {
    /// Since when a head is partial.
    pub(crate) partial_since: Cell<Option<Instant>>,
    /// Asks the guard to refuse the partial head.
    pub(crate) refuse_partial: Cell<Option<HttpRefusal>>,
    passed: Cell<u64>,
    served: Cell<u64>,
    refused: Cell<Option<(u64, HttpRefusal)>>,
}

impl Heads {
    /// The guard lets a head pass; returns the request's number.
    pub(crate) fn pass(&self) -> u64 {
        let number = self.passed.get();
        self.passed.set(number + 1);
        self.partial_since.set(None);
        number
    }

    /// The guard passes a head of its own in place of one that it refuses.
    pub(crate) fn refuse(&self, refusal: HttpRefusal) {
        let number = self.pass();
        self.refused.set(Some((number, refusal)));
    }

    /// Numbers a request that arrives at the service. An error when the guard has refused it.
    pub(crate) fn next_request(&self) -> Result<u64, HttpRefusal> {
        let number = self.served.get();
        self.served.set(number + 1);
        match self.refused.get() {
            Some((refused, refusal)) if refused == number => Err(refusal),
            _ => Ok(number),
        }
    }
}
