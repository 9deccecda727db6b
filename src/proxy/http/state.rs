//! State of one client connection, shared by the guard, the service, and the loop that drives both.
//!
//! Each concern has its own state machine: [`Activity`], and for HTTP/1 [`Heads`] and [`Upgrade`]. Draining starts once
//! and is never cancelled: HTTP/1 closes after the next response, HTTP/2 sends GOAWAY after the first request.

pub(crate) mod activity;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::activity::Activity;
use super::h1::heads::Heads;
use super::h1::upgrade::Upgrade;
use super::{Client, ClientTls};

/// State of one client connection. Everything on it runs on one thread.
pub(crate) struct ConnectionState {
    pub(crate) client: Client,
    /// The client's address as text, for forwarding headers.
    pub(crate) peer_text: HeaderValue,
    /// Whether the connection has to close gracefully, because the proxy drains or the host no longer accepts it.
    pub(crate) draining: Cell<bool>,
    pub(crate) activity: Activity,
    /// HTTP/1 only.
    pub(crate) heads: Heads,
    /// HTTP/1 only.
    pub(crate) upgrade: Upgrade,
}

/// Drain signal and grace time of a connection.
pub(crate) struct Drain {
    /// Cancelled when the proxy starts draining.
    pub(crate) begun: CancellationToken,
    /// How long an idle connection stays open after that.
    pub(crate) grace: Duration,
}

/// Guard of a request in flight: ends it on drop.
pub(crate) struct InFlight(Rc<ConnectionState>);

impl ConnectionState {
    pub(crate) fn new(client: Client) -> Rc<Self> {
        // Listeners on [::] see IPv4 clients as IPv4-mapped addresses; use the IPv4 address everywhere else.
        let peer = SocketAddr::new(client.peer.ip().to_canonical(), client.peer.port());
        let client = Client { peer, ..client };
        let peer_text = HeaderValue::from_str(&peer.ip().to_string())
            .expect("the text of an IP address is a valid header value");
        Rc::new(Self {
            client,
            peer_text,
            draining: Cell::new(false),
            activity: Activity::new(Instant::now()),
            heads: Heads::default(),
            upgrade: Upgrade::default(),
        })
    }

    pub(crate) fn tls(&self) -> Option<&ClientTls> {
        self.client.tls.as_ref()
    }
}

impl InFlight {
    pub(crate) fn new(state: &Rc<ConnectionState>) -> Self {
        state.activity.request_began();
        Self(Rc::clone(state))
    }

    pub(crate) fn activity(&self) -> &Activity {
        &self.0.activity
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.activity.request_ended();
    }
}
