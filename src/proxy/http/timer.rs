//! Timers whose deadline moves on every read or write, at low cost.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer whose deadline is passed to each poll.
///
/// Moving a deadline into the future is free: the runtime's timer is not changed, and is reset only when it fires too
/// early.
#[derive(Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Completes when `deadline` has passed.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

/// Limits the time without progress.
pub(crate) struct StallTimer {
    timer: Timer,
    limit: Duration,
    since: Option<Instant>,
}

impl StallTimer {
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            timer: Timer::default(),
            limit,
            since: None,
        }
    }

    /// Records progress.
    pub(crate) fn progressed(&mut self) {
        self.since = None;
    }

    /// Completes when there has been no progress for the limit.
    pub(crate) fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.timer.poll_until(cx, since + self.limit)
    }
}
