//! One client connection from its first byte to its end: limits, draining, closing.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Client;
use super::body::ResponseBody;
use super::forwarder::{Forwarder, SWEEP_INTERVAL};
use super::framing::Refusal;
use super::guard::{ClientIo, Guard};
use super::state::ConnectionState;
use super::timer::Timer;
use super::tunnel;
use crate::config::Timeouts;
use crate::proxy::linger::Lingering;

/// How long an unused connection lives on while the proxy drains. HTTP/1 has no way to say "send no more": a request that
/// is on its way when the connection closes is lost. One that arrives in this time is answered, and the answer closes the
/// connection. On HTTP/2 this is how long the first request may take to come: nobody connects without a request in mind,
/// and not every client repeats one that a GOAWAY has overtaken.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// Bound of hyper's read buffer: a whole head and then some.
const READ_BUFFER: usize = 128 << 10;

const HTTP2_STREAMS: u32 = 128;
const HTTP2_HEADER_LIST: u32 = 64 << 10;
/// Streams that a client may reset before they are looked at (CVE-2023-44487).
const HTTP2_PENDING_RESETS: usize = 20;
/// Streams that we may have to reset because of a client's errors (CVE-2025-8671).
const HTTP2_LOCAL_RESETS: usize = 256;
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Most bytes of a response that are buffered for one stream.
const HTTP2_SEND_BUFFER: usize = 64 << 10;

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

/// When a connection has to end, and how.
pub(super) struct Drain {
    /// Cancelled once the proxy drains.
    pub(super) begun: CancellationToken,
    /// How long an unused connection lives on from then on.
    pub(super) grace: Duration,
}

/// [`serve`], but for the time of grace.
pub(super) async fn serve_until<IO>(io: IO, client: Client, forwarder: Rc<Forwarder>, drain: Drain)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    forwarder.start_sweeping(SWEEP_INTERVAL);
    let timeouts = forwarder.routing().timeouts.clone();
    let http2 = client.tls.as_ref().is_some_and(|tls| tls.http2);
    let state = ConnectionState::new(client);
    let io = ClientIo::new(io, Rc::clone(&state), timeouts.write_stall.as_std());
    if http2 {
        serve_http2(io, state, forwarder, drain, &timeouts).await;
    } else {
        serve_http1(io, state, forwarder, drain, &timeouts).await;
    }
}

async fn serve_http1<IO>(
    io: ClientIo<IO>,
    state: Rc<ConnectionState>,
    forwarder: Rc<Forwarder>,
    drain: Drain,
    timeouts: &Timeouts,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let guard = Guard::new(io, Rc::clone(&state));
    let mut connection = http1::Builder::new()
        .max_buf_size(READ_BUFFER)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(guard), requests(&state, forwarder));

    let mut cancelled = pin!(drain.begun.cancelled());
    let mut timer = Timer::default();
    let mut idle_limit = timeouts.keep_alive.as_std();
    let mut closing = false;
    let ended = poll_fn(|cx| {
        if !state.draining.get() && cancelled.as_mut().poll(cx).is_ready() {
            state.draining.set(true);
            idle_limit = idle_limit.min(drain.grace);
            // Counted from now on, not from the last request.
            state.progressed();
        }
        loop {
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(ended);
            }
            if state.in_flight() > 0 || state.write_blocked.get() {
                return Poll::Pending;
            }
            let since = state.last_progress.get();
            let Some(begun) = state.head_since.get() else {
                std::task::ready!(timer.poll_until(cx, since + idle_limit));
                if closing {
                    // hyper waits for the rest of a body whose request was answered early; it came to a halt.
                    return Poll::Ready(Ok(()));
                }
                // Unused for long, and nothing has arrived: hyper has just looked.
                closing = true;
                Pin::new(&mut connection).graceful_shutdown();
                continue;
            };
            std::task::ready!(timer.poll_until(cx, begun.max(since) + timeouts.request_head.as_std()));
            state.head_since.set(None);
            state.refuse_head.set(Some(Refusal {
                status: StatusCode::REQUEST_TIMEOUT,
                reason: "the request's head did not come in time",
            }));
        }
    })
    .await;

    let parts = connection.into_parts();
    let guard = parts.io.into_inner();
    if let Some(upstream) = state.take_tunnel() {
        if ended.is_ok() {
            let (io, held) = guard.into_parts();
            let idle = timeouts.response_idle.as_std();
            tunnel::run(io, &[parts.read_buf, held], upstream, idle).await;
        }
        return;
    }
    let (io, _) = guard.into_parts();
    // A client that is gone needs no goodbye.
    let _ = Lingering::new(io).shutdown().await;
}

async fn serve_http2<IO>(
    io: ClientIo<IO>,
    state: Rc<ConnectionState>,
    forwarder: Rc<Forwarder>,
    drain: Drain,
    timeouts: &Timeouts,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut connection = pin!(
        http2::Builder::new(ThreadExecutor)
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS)
            .max_header_list_size(HTTP2_HEADER_LIST)
            .max_pending_accept_reset_streams(HTTP2_PENDING_RESETS)
            .max_local_error_reset_streams(HTTP2_LOCAL_RESETS)
            .keep_alive_interval(HTTP2_PING_INTERVAL)
            .keep_alive_timeout(HTTP2_PING_TIMEOUT)
            .max_send_buf_size(HTTP2_SEND_BUFFER)
            .serve_connection(TokioIo::new(Lingering::new(io)), requests(&state, forwarder))
    );

    let mut cancelled = pin!(drain.begun.cancelled());
    let mut timer = Timer::default();
    let mut closing = false;
    poll_fn(|cx| {
        if !state.draining.get() && cancelled.as_mut().poll(cx).is_ready() {
            state.draining.set(true);
        }
        loop {
            // What went wrong on a client's connection concerns only the client, who sees it end.
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let waits_for_first = state.draining.get() && !state.used.get();
            if state.draining.get() && !closing && !waits_for_first {
                closing = true;
                connection.as_mut().graceful_shutdown();
                continue;
            }
            let stall = timeouts.write_stall.as_std();
            let idle = if waits_for_first && !closing {
                timeouts.http2_idle.as_std().min(drain.grace)
            } else {
                timeouts.http2_idle.as_std()
            };
            let since = state.last_progress.get();
            let deadline = if state.in_flight() == 0 {
                since + idle
            } else if state.all_wait_for_client() {
                since + stall
            } else {
                // Other tasks change the state: look again after a while.
                Instant::now() + idle.min(stall)
            };
            std::task::ready!(timer.poll_until(cx, deadline));
            if state.all_wait_for_client() && since.elapsed() >= stall {
                return Poll::Ready(());
            }
            if state.in_flight() == 0 && since.elapsed() >= idle {
                if closing {
                    return Poll::Ready(());
                }
                closing = true;
                // To write GOAWAY is progress: what crosses it has as long as any other request.
                connection.as_mut().graceful_shutdown();
            }
        }
    })
    .await;
}

/// Answers the requests that arrive on a connection.
fn requests(
    state: &Rc<ConnectionState>,
    forwarder: Rc<Forwarder>,
) -> impl Service<
    Request<Incoming>,
    Response = Response<ResponseBody>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<ResponseBody>, Infallible>> + 'static,
> {
    let state = Rc::clone(state);
    service_fn(move |request| {
        state.used.set(true);
        let (state, forwarder) = (Rc::clone(&state), Rc::clone(&forwarder));
        async move { Ok(forwarder.answer(&state, request).await) }
    })
}

/// Runs HTTP/2 streams on the thread of their connection.
#[derive(Clone, Copy)]
struct ThreadExecutor;

impl<F> hyper::rt::Executor<F> for ThreadExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
