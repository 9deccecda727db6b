//! Protocol upgrade of an HTTP/1 connection (RFC 9110 section 7.8).
//!
//! ```text
//!            a head passes that asks for one
//!   none ───────────────────────────────────► awaited ──the backend consents──► accepted
//!    ▲                                           │                                 │ the response is sent
//!    └───────────────────────────────────────────┘                                 ▼
//!            declined: the guard is woken                                     bytes are tunnelled
//! ```
//!
//! Whether the bytes after the head are HTTP or the other protocol depends on the response. Until then the guard holds
//! them.

use std::cell::RefCell;
use std::task::Waker;

use bytes::Bytes;
use tokio::net::TcpStream;

/// A backend's connection that has switched to another protocol.
pub(crate) struct Upstream {
    pub(crate) stream: TcpStream,
    /// Bytes of that protocol that the backend has already sent.
    pub(crate) received: Bytes,
}

/// Upgrade state of a connection.
#[derive(Default)]
pub(crate) struct Upgrade {
    state: RefCell<State>,
    /// Waker of the guard while it holds bytes.
    guard: RefCell<Option<Waker>>,
}

#[derive(Default)]
enum State {
    #[default]
    None,
    /// The request with this number requests an upgrade.
    Awaited(u64),
    Accepted(Upstream),
}

impl Upgrade {
    /// Records that the request with this number requests an upgrade.
    pub(crate) fn await_decision(&self, request: u64) {
        *self.state.borrow_mut() = State::Awaited(request);
    }

    /// Whether the upgrade of this request is undecided.
    pub(crate) fn is_awaited_by(&self, request: u64) -> bool {
        matches!(*self.state.borrow(), State::Awaited(awaited) if awaited == request)
    }

    /// Whether the guard has to hold the bytes that follow. If so, `waker` is woken when the upgrade is declined.
    pub(crate) fn poll_holds_back(&self, waker: &Waker) -> bool {
        let holds_back = !matches!(*self.state.borrow(), State::None);
        if holds_back {
            *self.guard.borrow_mut() = Some(waker.clone());
        }
        holds_back
    }

    /// Declines the upgrade: the next request follows.
    pub(crate) fn decline(&self, request: u64) {
        if self.is_awaited_by(request) {
            *self.state.borrow_mut() = State::None;
            if let Some(waker) = self.guard.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Accepts the upgrade: after the response, bytes are tunnelled to and from this connection.
    pub(crate) fn accept(&self, upstream: Upstream) {
        *self.state.borrow_mut() = State::Accepted(upstream);
    }

    /// Returns the connection to tunnel to, if an upgrade was accepted.
    pub(crate) fn take_upstream(&self) -> Option<Upstream> {
        match self.state.take() {
            State::Accepted(upstream) => Some(upstream),
            State::None | State::Awaited(_) => None,
        }
    }
}
