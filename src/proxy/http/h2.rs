//! Serves one HTTP/2 connection: limits, draining, closing.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::forwarder::Forwarder;
use super::h1::guard::ClientIo;
use super::service::requests;
use super::state::{ConnectionState, Drain};
use super::timer::Timer;
use crate::config::Timeouts;
use crate::proxy::listen::linger::Lingering;

const HTTP2_STREAMS: u32 = 128;
const HTTP2_HEADER_LIST: u32 = 64 << 10;
/// Maximum number of pending streams that a client may reset (CVE-2023-44487).
const HTTP2_PENDING_RESETS: usize = 20;
/// Maximum number of streams reset because of a client's errors (CVE-2025-8671).
const HTTP2_LOCAL_RESETS: usize = 256;
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum number of response bytes buffered per stream.
const HTTP2_SEND_BUFFER: usize = 64 << 10;

pub(super) async fn serve_http2<IO>(
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
            // Errors of a client connection are not reported: they concern only the client, which sees the connection
            // end.
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let waits_for_first = state.draining.get() && !state.activity.used.get();
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
            let since = state.activity.last_progress.get();
            let deadline = if state.activity.in_flight() == 0 {
                since + idle
            } else if state.activity.all_wait_for_client() {
                since + stall
            } else {
                // Other tasks change the state without waking this one: check again later.
                Instant::now() + idle.min(stall)
            };
            std::task::ready!(timer.poll_until(cx, deadline));
            if state.activity.all_wait_for_client() && since.elapsed() >= stall {
                return Poll::Ready(());
            }
            if state.activity.in_flight() == 0 && since.elapsed() >= idle {
                if closing {
                    return Poll::Ready(());
                }
                closing = true;
                // Sending GOAWAY counts as progress, so requests that cross it get the full time limit.
                connection.as_mut().graceful_shutdown();
            }
        }
    })
    .await;
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
