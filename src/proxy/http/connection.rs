//! Serves one client connection: limits, draining, closing.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::Client;
use super::forwarder::{Forwarder, SWEEP_INTERVAL};
use super::h1::connection::serve_http1;
use super::h1::guard::ClientIo;
use super::h2::serve_http2;
use super::state::{ConnectionState, Drain};

/// How long an idle connection stays open while the proxy drains. HTTP/1 has no message to stop a client from sending:
/// a request in flight when the connection closes is lost. A request that arrives in this time is answered with
/// `Connection: close`. On HTTP/2 this is the time to wait for the first request, because not every client retries a
/// request after a GOAWAY.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// Serves the requests of one connection until it closes.
///
/// Must run in a `LocalSet` of the forwarder's thread. Once `draining` is cancelled, clients are told to send no more
/// requests on this connection: by GOAWAY on HTTP/2 after the first request, by `Connection: close` on HTTP/1. Requests
/// that are running or in flight are still answered.
pub async fn serve<IO>(io: IO, client: Client, forwarder: Rc<Forwarder>, draining: CancellationToken)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let drain = Drain {
        begun: draining,
        grace: DRAIN_GRACE,
    };
    serve_until(io, client, forwarder, drain).await;
}

/// [`serve`] with a configurable grace time.
pub(super) async fn serve_until<IO>(io: IO, client: Client, forwarder: Rc<Forwarder>, drain: Drain)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    forwarder.start_sweeping(SWEEP_INTERVAL);
    let timeouts = forwarder.snapshot().config.timeouts.clone();
    let http2 = client.tls.as_ref().is_some_and(|tls| tls.http2);
    let state = ConnectionState::new(client);
    let io = ClientIo::new(io, Rc::clone(&state), timeouts.write_stall.as_std());
    if http2 {
        serve_http2(io, state, forwarder, drain, &timeouts).await;
    } else {
        serve_http1(io, state, forwarder, drain, &timeouts).await;
    }
}
