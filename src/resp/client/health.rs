//! Health of a client's connection: breaker state and last error.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::metrics::ClientMetrics;
use crate::resp::breaker::{Breaker, BreakerState};

/// Health state that clients read.
#[derive(Default)]
pub(super) struct Health {
    link: AtomicU8,
    breaker: AtomicU8,
    problem: Mutex<Option<String>>,
}

/// The first connection attempt has not finished, so requests wait.
const STARTING: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

const CLOSED: u8 = 0;
const HALF_OPEN: u8 = 1;
const OPEN: u8 = 2;

impl Health {
    /// Whether the first connection attempt has not finished.
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

/// The task's side of the health state: only it writes.
pub(super) struct HealthRecorder {
    health: Arc<Health>,
    breaker: Breaker,
    was_reachable: bool,
    metrics: ClientMetrics,
}

impl HealthRecorder {
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

    /// Records that the connection is established and the server has replied.
    pub(super) fn link_up(&mut self) {
        self.metrics.connected();
        self.health.link.store(UP, Ordering::Relaxed);
        if self.breaker.state() == BreakerState::Closed {
            self.health.set_problem(None);
        }
        self.count_reachable(self.health.reachable());
    }

    /// Records that connecting failed or that the connection was lost.
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
        // A success never changes the state, so there is nothing to publish.
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

impl Drop for HealthRecorder {
    fn drop(&mut self) {
        self.count_reachable(false);
        self.metrics.breaker_was(Some(self.breaker.state()), None);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    struct Scene {
        health: Arc<Health>,
        keeper: Option<HealthRecorder>,
        registry: Registry,
        start: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let (health, start) = (Arc::<Health>::default(), Instant::now());
            let mut registry = Registry::default();
            let metrics = ClientMetrics::register(&mut registry);
            let keeper = Some(HealthRecorder::new(Arc::clone(&health), metrics, start));
            Self {
                health,
                keeper,
                registry,
                start,
            }
        }

        fn keeper(&mut self) -> &mut HealthRecorder {
            self.keeper.as_mut().expect("not dropped yet")
        }

        fn after(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        fn fail(&mut self, times: u32) {
            for _ in 0..times {
                let start = self.start;
                self.keeper().failed(start, || "it failed".into());
            }
        }

        /// Whether requests are made, whether they would be now, and how many clients' would be as metrics tell it.
        fn seen(&self) -> (bool, bool, u8) {
            let reachable = self.series("reachable ").expect("always there");
            (self.health.admits(), self.health.reachable(), reachable)
        }

        fn series(&self, name: &str) -> Option<u8> {
            let mut text = String::new();
            encode(&mut text, &self.registry).expect("text");
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            value.map(|value| value.trim().parse().expect("a small number"))
        }

        /// Clients by the state of their breaker: closed, half open, open.
        fn breakers(&self) -> [u8; 3] {
            ["closed", "half_open", "open"].map(|state| {
                let series = self.series(&format!("breakers{{state=\"{state}\"}}"));
                series.unwrap_or_default()
            })
        }
    }

    #[test]
    fn requests_wait_only_for_the_first_connection() {
        let mut scene = Scene::new();
        assert!(scene.health.is_starting() && scene.keeper().is_starting());
        assert_eq!(scene.seen(), (true, false, 0));
        scene.keeper().link_up();
        assert!(!scene.health.is_starting() && !scene.keeper().is_starting() && !scene.keeper().is_down());
        assert_eq!(scene.seen(), (true, true, 1));
        let now = scene.start;
        scene.keeper().link_down("it went away".into(), now);
        assert!(!scene.health.is_starting() && scene.keeper().is_down());
        assert_eq!(scene.seen(), (false, false, 0));
        assert_eq!(scene.health.problem().as_deref(), Some("it went away"));
        scene.keeper().link_up();
        assert_eq!(scene.seen(), (true, true, 1));
        assert_eq!(scene.health.problem(), None);
        assert_eq!(
            (
                scene.series("connects_total "),
                scene.series("disconnects_total ")
            ),
            (Some(2), Some(1))
        );
    }

    #[test]
    fn failures_stop_requests_until_a_trial_succeeds() {
        let mut scene = Scene::new();
        scene.keeper().link_up();
        scene.fail(4);
        assert_eq!((scene.seen(), scene.health.problem()), ((true, true, 1), None));
        scene.fail(1);
        assert_eq!((scene.seen(), scene.breakers()), ((false, false, 0), [0, 0, 1]));
        assert_eq!(scene.health.breaker(), BreakerState::Open);
        assert_eq!(scene.health.problem().as_deref(), Some("it failed"));
        // A new connection neither closes the breaker nor clears the problem.
        scene.keeper().link_up();
        assert_eq!(scene.seen(), (false, false, 0));
        assert!(scene.health.problem().is_some());

        let (early, first, second) = (scene.after(999), scene.after(1000), scene.after(2000));
        assert!(!scene.keeper().begin_trial(early));
        assert!(scene.keeper().begin_trial(first));
        assert_eq!(
            (scene.health.breaker(), scene.breakers()),
            (BreakerState::HalfOpen, [0, 1, 0])
        );
        scene.keeper().end_trial(false, first);
        assert_eq!((scene.seen(), scene.breakers()), ((false, false, 0), [0, 0, 1]));
        assert!(scene.health.problem().is_some());
        assert!(scene.keeper().begin_trial(second));
        scene.keeper().end_trial(true, second);
        assert_eq!((scene.seen(), scene.breakers()), ((true, true, 1), [1, 0, 0]));
        assert_eq!(
            (scene.health.breaker(), scene.health.problem()),
            (BreakerState::Closed, None)
        );
    }

    #[test]
    fn successes_keep_the_breaker_closed() {
        let mut scene = Scene::new();
        scene.keeper().link_up();
        let start = scene.start;
        scene.fail(4);
        scene.keeper().succeeded(start);
        scene.fail(4);
        assert_eq!(scene.seen(), (true, true, 1));
    }

    #[test]
    fn a_lost_connection_is_a_failure_and_fails_a_trial() {
        let mut scene = Scene::new();
        let start = scene.start;
        for attempt in 1..=5 {
            assert_eq!(
                scene.health.breaker(),
                BreakerState::Closed,
                "before attempt {attempt}"
            );
            scene.keeper().link_down("nobody listens".into(), start);
        }
        assert_eq!(scene.health.breaker(), BreakerState::Open);
        let (trial, end) = (scene.after(1000), scene.after(1500));
        assert!(scene.keeper().begin_trial(trial));
        scene.keeper().link_down("still nobody".into(), end);
        assert_eq!(scene.keeper().breaker().trial_at(), Some(scene.after(2500)));
        assert_eq!(scene.health.problem().as_deref(), Some("still nobody"));
    }

    #[test]
    fn a_dropped_client_is_no_longer_counted() {
        let mut scene = Scene::new();
        scene.keeper().link_up();
        assert_eq!((scene.seen().2, scene.breakers()), (1, [1, 0, 0]));
        scene.keeper = None;
        assert_eq!((scene.seen().2, scene.breakers()), (0, [0, 0, 0]));
    }
}
