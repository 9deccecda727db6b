//! Clients that take their responses, and clients that do not.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::wire::{Guarded, STALL, Wire};
use crate::proxy::http::h1::guard::Guard;

fn write(guarded: &mut Guarded, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    Pin::new(&mut guarded.guard).poll_write(cx, b"response")
}

/// Polls something until it is ready.
async fn until_ready<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>) -> io::Result<T> {
    std::future::poll_fn(|cx| poll(cx)).await
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), test)
            .await
            .expect("the test hangs");
    });
}

#[test]
fn a_client_that_stops_reading_times_out() {
    run(async {
        type Attempt = fn(Pin<&mut Guard<Wire>>, &mut Context<'_>) -> Poll<io::Result<()>>;
        let attempts: [Attempt; 4] = [
            |guard, cx| guard.poll_write(cx, b"response").map_ok(|_| ()),
            |guard, cx| {
                let parts = [io::IoSlice::new(b"resp"), io::IoSlice::new(b"onse")];
                guard.poll_write_vectored(cx, &parts).map_ok(|_| ())
            },
            |guard, cx| guard.poll_flush(cx),
            |guard, cx| guard.poll_shutdown(cx),
        ];
        for attempt in attempts {
            let mut guarded = Guarded::new();
            let begun = Instant::now();
            let outcome = until_ready(|cx| attempt(Pin::new(&mut guarded.guard), cx)).await;
            assert_eq!(
                outcome.map_err(|error| error.kind()),
                Err(io::ErrorKind::TimedOut)
            );
            assert!(begun.elapsed() >= STALL);
            assert!(guarded.state.activity.write_blocked.get());

            // One byte taken restarts the time limit.
            guarded.wire.0.borrow_mut().room = 1;
            let outcome = until_ready(|cx| attempt(Pin::new(&mut guarded.guard), cx)).await;
            assert!(outcome.is_ok());
            assert!(!guarded.state.activity.write_blocked.get());
            guarded.wire.0.borrow_mut().room = 0;
            let mut cx = Context::from_waker(Waker::noop());
            assert!(attempt(Pin::new(&mut guarded.guard), &mut cx).is_pending());
        }
    });
}

#[test]
fn bytes_taken_are_progress_and_empty_flushes_are_not() {
    run(async {
        let mut guarded = Guarded::new();
        let long_ago = Instant::now() - Duration::from_secs(60);
        let mut cx = Context::from_waker(Waker::noop());
        guarded.wire.0.borrow_mut().room = 10;
        guarded.state.activity.last_progress.set(long_ago);
        assert!(Pin::new(&mut guarded.guard).poll_flush(&mut cx).is_ready());
        assert_eq!(guarded.state.activity.last_progress.get(), long_ago);
        assert!(matches!(write(&mut guarded, &mut cx), Poll::Ready(Ok(8))));
        assert!(guarded.state.activity.last_progress.get() > long_ago);
        assert!(matches!(write(&mut guarded, &mut cx), Poll::Ready(Ok(2))));
        assert!(write(&mut guarded, &mut cx).is_pending());
        assert!(guarded.state.activity.write_blocked.get());

        guarded.state.activity.last_progress.set(long_ago);
        assert!(Pin::new(&mut guarded.guard).poll_flush(&mut cx).is_pending());
        assert_eq!(guarded.state.activity.last_progress.get(), long_ago);
        guarded.wire.0.borrow_mut().room = 1;
        assert!(Pin::new(&mut guarded.guard).poll_flush(&mut cx).is_ready());
        assert!(
            guarded.state.activity.last_progress.get() > long_ago,
            "the blocked write went on"
        );
        assert!(!guarded.state.activity.write_blocked.get());
        assert_eq!(guarded.wire.0.borrow().taken, b"responsere");
    });
}

#[test]
fn vectored_writes_are_passed_on() {
    let mut guarded = Guarded::new();
    assert!(guarded.guard.is_write_vectored());
    guarded.wire.0.borrow_mut().room = 6;
    let parts = [io::IoSlice::new(b"resp"), io::IoSlice::new(b"onse")];
    let mut cx = Context::from_waker(Waker::noop());
    let written = Pin::new(&mut guarded.guard).poll_write_vectored(&mut cx, &parts);
    assert!(matches!(written, Poll::Ready(Ok(6))));
    assert_eq!(guarded.wire.0.borrow().taken, b"respon");
}

#[test]
fn vectored_writes_are_off_where_the_connection_lacks_them() {
    let guarded = Guarded::new();
    guarded.wire.0.borrow_mut().one_by_one = true;
    assert!(!guarded.guard.is_write_vectored());
}
