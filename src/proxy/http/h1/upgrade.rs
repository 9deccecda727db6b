//! A change of protocol on an HTTP/1 connection (RFC 9110 section 7.8).
//!
//! ```text
//!            a head passes that asks for one
//!   none ───────────────────────────────────► awaited ──the backend consents──► accepted
//!    ▲                                           │                                 │ the response is sent
//!    └───────────────────────────────────────────┘                                 ▼
//!            declined: the guard is woken                                     bytes are tunnelled
//! ```
//!
//! What follows the head is HTTP or the other protocol, which only the response tells. Until then the guard holds it back.

use std::cell::RefCell;
use std::task::Waker;

use bytes::Bytes;
use tokio::net::TcpStream;

/// A backend's connection that has switched to another protocol.
pub(crate) struct Upstream {
    pub(crate) stream: TcpStream,
    /// What the backend has sent of that protocol already.
    pub(crate) received: Bytes,
}

/// Where a connection stands.
#[derive(Default)]
pub(crate) struct Upgrade {
    state: RefCell<State>,
    /// The guard, once it holds something back.
    guard: RefCell<Option<Waker>>,
}

#[derive(Default)]
enum State {
    #[default]
    None,
    /// By the request of this number.
    Awaited(u64),
    Accepted(Upstream),
}

impl Upgrade {
    /// The head of the request with this number asks for another protocol.
    pub(crate) fn await_decision(&self, request: u64) {
        *self.state.borrow_mut() = State::Awaited(request);
    }

    /// Whether the guard holds back what follows this request.
    pub(crate) fn is_awaited_by(&self, request: u64) -> bool {
        matches!(*self.state.borrow(), State::Awaited(awaited) if awaited == request)
    }

    /// Whether the guard has to hold back what follows. While it does, `waker` is woken once the change is declined.
    pub(crate) fn poll_holds_back(&self, waker: &Waker) -> bool {
        let holds_back = !matches!(*self.state.borrow(), State::None);
        if holds_back {
            *self.guard.borrow_mut() = Some(waker.clone());
        }
        holds_back
    }

    /// The request does not change protocols, so what follows is the next request.
    pub(crate) fn decline(&self, request: u64) {
        if self.is_awaited_by(request) {
            *self.state.borrow_mut() = State::None;
            if let Some(waker) = self.guard.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// The request changes protocols: once the response is sent, bytes go to and from this connection.
    pub(crate) fn accept(&self, upstream: Upstream) {
        *self.state.borrow_mut() = State::Accepted(upstream);
    }

    /// The connection to tunnel to, if a request changed protocols.
    pub(crate) fn take_upstream(&self) -> Option<Upstream> {
        match self.state.take() {
            State::Accepted(upstream) => Some(upstream),
            State::None | State::Awaited(_) => None,
        }
    }
}
