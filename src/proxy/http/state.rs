//! What the parts of one client connection share: the byte guard, the service and the loop that drives both.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::refusal::Refusal;
use super::{Client, ClientTls};

/// State of one client connection. Everything on it runs on one thread.
pub(crate) struct ConnectionState {
    pub(crate) client: Client,
    /// The client's address as text, for forwarding headers.
    pub(crate) peer_text: HeaderValue,
    /// Whether the proxy has been told to stop.
    pub(crate) draining: Cell<bool>,
    /// Whether a request has arrived.
    pub(crate) used: Cell<bool>,
    /// Whether the client does not take the bytes that are ready for it.
    pub(crate) write_blocked: Cell<bool>,
    /// When something last moved: a request, a part of a body, bytes taken by the client.
    pub(crate) last_progress: Cell<Instant>,
    /// Since when a request's head is incomplete (HTTP/1).
    pub(crate) head_since: Cell<Option<Instant>>,
    /// Asks the guard to refuse the incomplete head (HTTP/1).
    pub(crate) refuse_head: Cell<Option<Refusal>>,
    in_flight: Cell<usize>,
    waiting_for_client: Cell<usize>,
    heads_passed: Cell<u64>,
    requests_served: Cell<u64>,
    refusal: Cell<Option<(u64, Refusal)>>,
    awaiting_upgrade: Cell<Option<u64>>,
    guard: RefCell<Option<Waker>>,
    tunnel: RefCell<Option<Upstream>>,
}

/// When a connection has to end, and how.
pub(crate) struct Drain {
    /// Cancelled once the proxy drains.
    pub(crate) begun: CancellationToken,
    /// How long an unused connection lives on from then on.
    pub(crate) grace: Duration,
}

/// A backend's connection that has switched to another protocol.
pub(crate) struct Upstream {
    pub(crate) stream: TcpStream,
    /// What the backend has sent of that protocol already.
    pub(crate) received: Bytes,
}

/// Counts a request as being served while it lives.
pub(crate) struct InFlight(Rc<ConnectionState>);

impl ConnectionState {
    pub(crate) fn new(client: Client) -> Rc<Self> {
        // Listeners on [::] see IPv4 clients as mapped addresses; nobody else wants to.
        let peer = SocketAddr::new(client.peer.ip().to_canonical(), client.peer.port());
        let client = Client { peer, ..client };
        let peer_text = HeaderValue::from_str(&peer.ip().to_string())
            .expect("the text of an IP address is a valid header value");
        Rc::new(Self {
            client,
            peer_text,
            draining: Cell::new(false),
            used: Cell::new(false),
            write_blocked: Cell::new(false),
            last_progress: Cell::new(Instant::now()),
            head_since: Cell::new(None),
            refuse_head: Cell::new(None),
            in_flight: Cell::new(0),
            waiting_for_client: Cell::new(0),
            heads_passed: Cell::new(0),
            requests_served: Cell::new(0),
            refusal: Cell::new(None),
            awaiting_upgrade: Cell::new(None),
            guard: RefCell::new(None),
            tunnel: RefCell::new(None),
        })
    }

    pub(crate) fn tls(&self) -> Option<&ClientTls> {
        self.client.tls.as_ref()
    }

    /// Notes that something moved.
    pub(crate) fn progressed(&self) {
        self.last_progress.set(Instant::now());
    }

    /// Number of requests whose responses are not complete.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Whether all that is left to do is the client's: it must take parts of responses.
    pub(crate) fn all_wait_for_client(&self) -> bool {
        self.in_flight.get() > 0 && self.waiting_for_client.get() == self.in_flight.get()
    }

    /// A part of a response was handed over to be sent, or (`false`) the next one is asked for.
    pub(crate) fn handed_over(&self, handed: bool) {
        let count = self.waiting_for_client.get();
        self.waiting_for_client.set(if handed {
            count + 1
        } else {
            count.saturating_sub(1)
        });
        self.progressed();
    }

    /// The guard let a head pass; `upgrade` when it waits for what [`ConnectionState::decline_upgrade`] decides.
    pub(crate) fn head_passed(&self, upgrade: bool) {
        let number = self.heads_passed.get();
        self.heads_passed.set(number + 1);
        self.head_since.set(None);
        if upgrade {
            self.awaiting_upgrade.set(Some(number));
        }
    }

    /// The guard passes a head of its own in place of one that it refuses. [`ConnectionState::next_request`] tells which.
    pub(crate) fn head_refused(&self, refusal: Refusal) {
        self.refusal.set(Some((self.heads_passed.get(), refusal)));
        self.head_passed(false);
    }

    /// Numbers a request that arrives at the service. An error when the guard has refused it.
    pub(crate) fn next_request(&self) -> Result<u64, Refusal> {
        let number = self.requests_served.get();
        self.requests_served.set(number + 1);
        match self.refusal.get() {
            Some((refused, refusal)) if refused == number => Err(refusal),
            _ => Ok(number),
        }
    }

    /// Whether the guard holds back what follows this request because it asks for another protocol.
    pub(crate) fn awaits_upgrade(&self, request: u64) -> bool {
        self.awaiting_upgrade.get() == Some(request)
    }

    /// Whether the guard still holds back what follows a request that asks for another protocol. While it does, `waker`
    /// is woken once that is decided.
    pub(crate) fn poll_undecided(&self, waker: &Waker) -> bool {
        let undecided = self.awaiting_upgrade.get().is_some();
        if undecided {
            *self.guard.borrow_mut() = Some(waker.clone());
        }
        undecided
    }

    /// The request does not switch protocols, so what follows is the next request.
    pub(crate) fn decline_upgrade(&self, request: u64) {
        if self.awaits_upgrade(request) {
            self.awaiting_upgrade.set(None);
            if let Some(waker) = self.guard.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// The request switches protocols: once the response is sent, bytes go to and from this connection.
    pub(crate) fn accept_upgrade(&self, upstream: Upstream) {
        *self.tunnel.borrow_mut() = Some(upstream);
    }

    /// The connection to tunnel to, if a request switched protocols.
    pub(crate) fn take_tunnel(&self) -> Option<Upstream> {
        self.tunnel.borrow_mut().take()
    }
}

impl InFlight {
    pub(crate) fn new(state: &Rc<ConnectionState>) -> Self {
        state.in_flight.set(state.in_flight.get() + 1);
        state.progressed();
        Self(Rc::clone(state))
    }

    pub(crate) fn connection(&self) -> &ConnectionState {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.0.progressed();
    }
}
