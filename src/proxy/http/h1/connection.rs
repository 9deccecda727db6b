//! Serves one HTTP/1 connection: limits, draining, closing.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::guard::{ClientIo, Guard};
use super::tunnel;
use crate::config::Timeouts;
use crate::proxy::http::forwarder::Forwarder;
use crate::proxy::http::refusal::HttpRefusal;
use crate::proxy::http::service::requests;
use crate::proxy::http::state::{ConnectionState, Drain};
use crate::proxy::http::timer::Timer;
use crate::proxy::listen::linger::Lingering;

/// Maximum size of hyper's read buffer: larger than any head.
const READ_BUFFER: usize = 128 << 10;

pub(crate) async fn serve_http1<IO>(
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
            // The limit counts from now on, not from the last request.
            state.activity.progressed();
        }
        loop {
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(ended);
            }
            if state.activity.in_flight() > 0 || state.activity.write_blocked.get() {
                return Poll::Pending;
            }
            let since = state.activity.last_progress.get();
            let Some(begun) = state.heads.partial_since.get() else {
                std::task::ready!(timer.poll_until(cx, since + idle_limit));
                if closing {
                    // The request was answered early, and the rest of its body, for which hyper waits, has stalled.
                    return Poll::Ready(Ok(()));
                }
                // Idle past the limit, and the poll above has read nothing.
                closing = true;
                Pin::new(&mut connection).graceful_shutdown();
                continue;
            };
            std::task::ready!(timer.poll_until(cx, begun.max(since) + timeouts.request_head.as_std()));
            state.heads.partial_since.set(None);
            state.heads.refuse_partial.set(Some(HttpRefusal {
                status: StatusCode::REQUEST_TIMEOUT,
                reason: "timed out waiting for the request head",
            }));
        }
    })
    .await;

    let parts = connection.into_parts();
    let guard = parts.io.into_inner();
    if let Some(upstream) = state.upgrade.take_upstream() {
        if ended.is_ok() {
            let (io, held) = guard.into_parts();
            let idle = timeouts.response_idle.as_std();
            tunnel::run(io, &[parts.read_buf, held], upstream, idle).await;
        }
        return;
    }
    let (io, _) = guard.into_parts();
    // Errors do not matter: the client may have closed already.
    let _ = Lingering::new(io).shutdown().await;
}
