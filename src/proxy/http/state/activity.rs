//! Activity of a connection, which idle and stall limits are measured by.
//!
//! ```text
//!          a request arrives               every response waits for its client
//!  idle ───────────────────────► serving ──────────────────────────────────────► stalled by the client
//!   ▲                              │  ▲                                             │
//!   └──────────────────────────────┘  └─────────────────────────────────────────────┘
//!      the last response is complete      the client takes a part
//! ```
//!
//! Each transition, each part of a body and each byte written to the client is progress. The time limits of the states
//! run from the last progress; while serving, the backend's time limits apply.

use std::cell::Cell;

use tokio::time::Instant;

/// The activity of one connection.
pub(crate) struct Activity {
    /// Whether a request has ever arrived.
    pub(crate) used: Cell<bool>,
    /// Whether a write to the client is blocked.
    pub(crate) write_blocked: Cell<bool>,
    /// Time of the last progress.
    pub(crate) last_progress: Cell<Instant>,
    in_flight: Cell<usize>,
    waiting_for_client: Cell<usize>,
}

impl Activity {
    /// Creates the activity of a new connection.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            used: Cell::new(false),
            write_blocked: Cell::new(false),
            last_progress: Cell::new(now),
            in_flight: Cell::new(0),
            waiting_for_client: Cell::new(0),
        }
    }

    /// Records progress.
    pub(crate) fn progressed(&self) {
        self.last_progress.set(Instant::now());
    }

    /// Number of requests without a complete response.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Whether all responses wait for the client to read.
    pub(crate) fn all_wait_for_client(&self) -> bool {
        self.in_flight.get() > 0 && self.waiting_for_client.get() == self.in_flight.get()
    }

    /// Records the arrival of a request.
    pub(crate) fn request_began(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
        self.progressed();
    }

    /// Records the end of a response.
    pub(crate) fn request_ended(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.progressed();
    }

    /// Records that a part of a response waits to be sent, or (`false`) that the next part was requested.
    pub(crate) fn handed_over(&self, handed: bool) {
        let count = self.waiting_for_client.get();
        self.waiting_for_client.set(if handed {
            count + 1
        } else {
            count.saturating_sub(1)
        });
        self.progressed();
    }
}
