//! What clients know about their connection: whether it is worth asking, and what is wrong.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::metrics::ClientMetrics;
use crate::cache::breaker::{Breaker, BreakerState};

/// What clients see.
#[derive(Default)]
pub(super) struct Health {
    link: AtomicU8,
    breaker: AtomicU8,
    problem: Mutex<Option<String>>,
}

/// No connection was tried for yet, so requests wait for the first one.
const STARTING: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

const CLOSED: u8 = 0;
const HALF_OPEN: u8 = 1;
const OPEN: u8 = 2;

impl Health {
    /// Whether nothing is known about the server yet.
    pub(super) fn is_starting(&self) -> bool {
        self.link.load(Ordering::Relaxed) == STARTING
    }

    pub(super) fn admits(&self) -> bool {
        self.breaker.load(Ordering::Relaxed) == CLOSED && self.link.load(Ordering::Relaxed) != DOWN
    }

    pub(super) fn reachable(&self) -> bool {
        self.breaker.load(Ordering::Relaxed) == CLOSED && self.link.load(Ordering::Relaxed) == UP
    }

    pub(super) fn breaker(&self) -> BreakerState {
        match self.breaker.load(Ordering::Relaxed) {
            CLOSED => BreakerState::Closed,
            HALF_OPEN => BreakerState::HalfOpen,
            _ => BreakerState::Open,
        }
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// The task's side: it alone changes what clients see.
pub(super) struct Keeper {
    health: Arc<Health>,
    breaker: Breaker,
    was_reachable: bool,
    metrics: ClientMetrics,
}

impl Keeper {
    pub(super) fn new(health: Arc<Health>, metrics: ClientMetrics, now: Instant) -> Self {
        let breaker = Breaker::new(now);
        metrics.breaker_was(None, Some(breaker.state()));
        Self {
            health,
            breaker,
            was_reachable: false,
            metrics,
        }
    }

    pub(super) fn metrics(&self) -> &ClientMetrics {
        &self.metrics
    }

    pub(super) fn is_starting(&self) -> bool {
        self.health.is_starting()
    }

    pub(super) fn is_down(&self) -> bool {
        self.health.link.load(Ordering::Relaxed) == DOWN
    }

    /// There is a connection, and the server has answered on it.
    pub(super) fn link_up(&mut self) {
        self.metrics.connected();
        self.health.link.store(UP, Ordering::Relaxed);
        if self.breaker.state() == BreakerState::Closed {
            self.health.set_problem(None);
        }
        self.count_reachable(self.health.reachable());
    }

    /// There is none, or there is none any more.
    pub(super) fn link_down(&mut self, problem: String, now: Instant) {
        self.metrics.disconnected();
        self.health.link.store(DOWN, Ordering::Relaxed);
        self.health.set_problem(Some(problem));
        self.change(|breaker| match breaker.state() {
            BreakerState::HalfOpen => breaker.end_trial(false, now),
            _ => breaker.failed(now),
        });
        self.count_reachable(false);
    }

    pub(super) fn succeeded(&mut self, now: Instant) {
        // It cannot change the state, so there is nothing to publish.
        self.breaker.succeeded(now);
    }

    pub(super) fn failed(&mut self, now: Instant, problem: impl FnOnce() -> String) {
        if self.change(|breaker| breaker.failed(now)) {
            self.health.set_problem(Some(problem()));
        }
    }

    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    pub(super) fn begin_trial(&mut self, now: Instant) -> bool {
        self.change(|breaker| {
            breaker.begin_trial(now);
        })
    }

    pub(super) fn end_trial(&mut self, succeeded: bool, now: Instant) {
        if self.change(|breaker| breaker.end_trial(succeeded, now)) && succeeded {
            self.health.set_problem(None);
        }
    }

    /// Whether the state changed.
    fn change(&mut self, change: impl FnOnce(&mut Breaker)) -> bool {
        let before = self.breaker.state();
        change(&mut self.breaker);
        let after = self.breaker.state();
        if before == after {
            return false;
        }
        let published = match after {
            BreakerState::Closed => CLOSED,
            BreakerState::HalfOpen => HALF_OPEN,
            BreakerState::Open => OPEN,
        };
        self.health.breaker.store(published, Ordering::Relaxed);
        self.metrics.breaker_was(Some(before), Some(after));
        self.count_reachable(self.health.reachable());
        true
    }

    fn count_reachable(&mut self, reachable: bool) {
        if self.was_reachable != reachable {
            self.metrics.reachable(reachable);
            self.was_reachable = reachable;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.count_reachable(false);
        self.metrics.breaker_was(Some(self.breaker.state()), None);
    }
}
