//! One client connection from its first byte to its end: limits, draining, closing.

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

/// How long an unused connection lives on while the proxy drains. HTTP/1 has no way to say "send no more": a request that
/// is on its way when the connection closes is lost. One that arrives in this time is answered, and the answer closes the
/// connection. On HTTP/2 this is how long the first request may take to come: nobody connects without a request in mind,
/// and not every client repeats one that a GOAWAY has overtaken.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// Serves the requests of one connection until it ends.
///
/// It must run in a `LocalSet` of the forwarder's thread. Once `draining` is cancelled, clients are told to send no more
/// requests on this connection: by GOAWAY on HTTP/2 once there was a request, by `Connection: close` on HTTP/1. Requests that are being served,
/// or that were on their way, are still answered.
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

/// [`serve`], but for the time of grace.
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
