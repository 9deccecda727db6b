//! A circuit breaker: after enough failures nothing is asked for a while, so that nobody waits for what does not work.
//!
//! Open, it lets one trial through each second; the trial alone decides whether requests pass again. Time is an
//! argument everywhere.

use std::time::{Duration, Instant};

/// Failures in a row that open it.
const FAILURES_IN_A_ROW: u32 = 5;

/// Outcomes within one window from which on their share of failures counts.
const FEWEST_OUTCOMES: u32 = 10;

/// Length of a window in which outcomes are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// From opening to the first trial, and from one trial to the next.
const TRIAL_INTERVAL: Duration = Duration::from_secs(1);

/// Whether requests pass.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum BreakerState {
    /// They do.
    Closed,
    /// They do not, but a trial is under way.
    HalfOpen,
    /// They do not.
    Open,
}

impl BreakerState {
    /// Word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// The breaker of one server. It opens after five failures in a row, or when half of ten or more outcomes within a
/// second are failures.
#[derive(Debug)]
pub struct Breaker {
    state: BreakerState,
    in_a_row: u32,
    window: Window,
    next_trial: Instant,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    outcomes: u32,
    failures: u32,
}

impl Breaker {
    /// A closed one.
    pub fn new(now: Instant) -> Self {
        Self {
            state: BreakerState::Closed,
            in_a_row: 0,
            window: Window::new(now),
            next_trial: now,
        }
    }

    /// Whether requests pass.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// A request succeeded. Once open, what was asked before decides nothing.
    pub fn succeeded(&mut self, now: Instant) {
        if self.state == BreakerState::Closed {
            self.in_a_row = 0;
            self.window.count(now, 0);
        }
    }

    /// A request failed.
    pub fn failed(&mut self, now: Instant) {
        if self.state != BreakerState::Closed {
            return;
        }
        self.in_a_row += 1;
        self.window.count(now, 1);
        if self.in_a_row >= FAILURES_IN_A_ROW || self.window.is_bad() {
            self.open(now);
        }
    }

    /// When a trial may begin; None when none is called for.
    pub fn trial_at(&self) -> Option<Instant> {
        (self.state == BreakerState::Open).then_some(self.next_trial)
    }

    /// Begins a trial if it is time for one. Its outcome must then be told.
    pub fn begin_trial(&mut self, now: Instant) -> bool {
        let due = self.trial_at().is_some_and(|at| at <= now);
        if due {
            self.state = BreakerState::HalfOpen;
        }
        due
    }

    /// Ends the trial that is under way.
    pub fn end_trial(&mut self, succeeded: bool, now: Instant) {
        if self.state != BreakerState::HalfOpen {
            return;
        }
        match succeeded {
            true => *self = Self::new(now),
            false => self.open(now),
        }
    }

    fn open(&mut self, now: Instant) {
        self.state = BreakerState::Open;
        self.next_trial = now + TRIAL_INTERVAL;
    }
}

impl Window {
    fn new(now: Instant) -> Self {
        Self {
            began: now,
            outcomes: 0,
            failures: 0,
        }
    }

    fn count(&mut self, now: Instant, failures: u32) {
        if now.saturating_duration_since(self.began) >= WINDOW {
            *self = Self::new(now);
        }
        self.outcomes += 1;
        self.failures += failures;
    }

    fn is_bad(&self) -> bool {
        self.outcomes >= FEWEST_OUTCOMES && self.failures * 2 >= self.outcomes
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn five_failures_in_a_row_open_it() {
        let start = Instant::now();
        let mut breaker = Breaker::new(start);
        for second in 0..4 {
            breaker.failed(after(start, second * 2000));
        }
        breaker.succeeded(after(start, 8000));
        for second in 5..9 {
            breaker.failed(after(start, second * 2000));
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        breaker.failed(after(start, 18_000));
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[test]
    fn half_of_ten_within_a_second_open_it_and_half_of_ten_over_longer_do_not() {
        let alternate = |step: u64| {
            let start = Instant::now();
            let mut breaker = Breaker::new(start);
            for number in 0..10 {
                let now = after(start, number * step);
                match number % 2 {
                    0 => breaker.succeeded(now),
                    _ => breaker.failed(now),
                }
            }
            breaker.state()
        };
        assert_eq!(alternate(10), BreakerState::Open);
        assert_eq!(alternate(200), BreakerState::Closed);
    }

    #[test]
    fn a_trial_each_second_decides_alone() {
        let start = Instant::now();
        let mut breaker = Breaker::new(start);
        (0..5).for_each(|_| breaker.failed(start));
        breaker.succeeded(after(start, 10));
        assert!(!breaker.begin_trial(after(start, 999)));
        assert!(breaker.begin_trial(after(start, 1000)));
        assert!(!breaker.begin_trial(after(start, 1000)), "one at a time");
        breaker.succeeded(after(start, 1001));
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        breaker.end_trial(false, after(start, 1100));
        assert_eq!(breaker.trial_at(), Some(after(start, 2100)));
        assert!(breaker.begin_trial(after(start, 2100)));
        breaker.end_trial(true, after(start, 2101));
        breaker.failed(after(start, 2102));
        assert_eq!(
            breaker.state(),
            BreakerState::Closed,
            "what was before is forgotten"
        );
    }

    proptest! {
        #[test]
        fn it_never_opens_below_half_and_never_passes_again_without_a_trial(
            outcomes in vec((any::<bool>(), 0u64..300), 0..200),
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(now);
            let (mut in_a_row, mut was_open) = (0, false);
            let mut seen: Vec<(Instant, bool)> = Vec::new();
            for (good, gap) in outcomes {
                now = after(now, gap);
                in_a_row = if good { 0 } else { in_a_row + 1 };
                seen.push((now, good));
                if good { breaker.succeeded(now) } else { breaker.failed(now) }
                let open = breaker.state() == BreakerState::Open;
                prop_assert!(open || !was_open);
                if open && !was_open {
                    let recent = seen.iter().filter(|(at, _)| now.duration_since(*at) < WINDOW);
                    let failures = recent.filter(|(_, good)| !good).count();
                    prop_assert!(in_a_row >= 5 || failures >= 5);
                }
                if in_a_row >= 5 {
                    prop_assert!(open);
                }
                was_open = open;
            }
        }
    }
}
