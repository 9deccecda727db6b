//! A circuit breaker: after repeated failures, requests fail immediately for a while instead of waiting for a time
//! limit.
//!
//! While it is open, one trial request per second is allowed; only its outcome closes the breaker. Time is always
//! passed as an argument.

use std::time::{Duration, Instant};

/// Number of consecutive failures that open the breaker.
const FAILURES_IN_A_ROW: u32 = 5;

/// Minimum number of outcomes in a window for the failure rate to count.
const FEWEST_OUTCOMES: u32 = 10;

/// Length of a window in which outcomes are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// Time from opening to the first trial, and between trials.
const TRIAL_INTERVAL: Duration = Duration::from_secs(1);

/// State of a circuit breaker.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum BreakerState {
    /// Requests are allowed.
    Closed,
    /// Requests fail; a trial is in progress.
    HalfOpen,
    /// Requests fail.
    Open,
}

impl BreakerState {
    /// Value of the metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// The breaker of one server. It opens after five consecutive failures, or if at least half of ten or more outcomes
/// within a second are failures.
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
    /// Creates a closed breaker.
    pub fn new(now: Instant) -> Self {
        Self {
            state: BreakerState::Closed,
            in_a_row: 0,
            window: Window::new(now),
            next_trial: now,
        }
    }

    /// State of a circuit breaker.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Records a successful request. Ignored while the breaker is open.
    pub fn succeeded(&mut self, now: Instant) {
        // A late reply to a request from before the breaker opened says nothing about the next request. Only a trial
        // does.
        if self.state == BreakerState::Closed {
            self.in_a_row = 0;
            self.window.count(now, 0);
        }
    }

    /// Records a failed request. Ignored while the breaker is open.
    pub fn failed(&mut self, now: Instant) {
        // Requests that were already waiting fail after the breaker has opened. They must not postpone the trial.
        if self.state != BreakerState::Closed {
            return;
        }
        self.in_a_row += 1;
        self.window.count(now, 1);
        if self.in_a_row >= FAILURES_IN_A_ROW || self.window.is_bad() {
            self.open(now);
        }
    }

    /// Time at which a trial may start; None if no trial is needed.
    pub fn trial_at(&self) -> Option<Instant> {
        (self.state == BreakerState::Open).then_some(self.next_trial)
    }

    /// Starts a trial if one is due; returns whether it did. The caller must then call `end_trial`.
    pub fn begin_trial(&mut self, now: Instant) -> bool {
        let due = self.trial_at().is_some_and(|at| at <= now);
        if due {
            self.state = BreakerState::HalfOpen;
        }
        due
    }

    /// Ends the running trial.
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
    use crate::reached::{Case, check};

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn five_failures_in_a_row_open_the_breaker() {
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
    fn five_failures_of_ten_open_the_breaker_only_within_a_second() {
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
            "earlier outcomes are forgotten"
        );
    }

    /// What may happen to a breaker.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Succeeded,
        Failed,
        BeginTrial,
        EndTrial(bool),
        Wait(u64),
        /// Until a trial is due, or a millisecond less.
        WaitForTrial(u64),
    }

    /// So many failures among ten outcomes, and trials whether it is time for one or not.
    fn events() -> impl Strategy<Value = Vec<Event>> {
        (3u32..10).prop_flat_map(|failures| {
            let wait = prop_oneof![6 => 0u64..40, 1 => 0u64..400, 1 => 990u64..1010];
            let event = prop_oneof![
                8 * failures => Just(Event::Failed),
                8 * (10 - failures) => Just(Event::Succeeded),
                12 => Just(Event::BeginTrial),
                8 => any::<bool>().prop_map(Event::EndTrial),
                16 => wait.prop_map(Event::Wait),
                8 => (0u64..2).prop_map(Event::WaitForTrial),
            ];
            vec(event, 100..400)
        })
    }

    /// The rules once more, told by what has happened since it was closed last.
    struct Model {
        state: BreakerState,
        since_closed: Vec<(Instant, bool)>,
        trial_at: Instant,
    }

    impl Model {
        fn new(now: Instant) -> Self {
            Self {
                state: BreakerState::Closed,
                since_closed: Vec::new(),
                trial_at: now,
            }
        }

        fn outcome(&mut self, began: Instant, now: Instant, good: bool, case: &mut Case) {
            if self.state != BreakerState::Closed {
                case.reaches(match self.state {
                    BreakerState::Open => "an outcome that an open one ignores",
                    _ => "an outcome that a trial ignores",
                });
                return;
            }
            self.since_closed.push((now, good));
            let in_a_row = self.since_closed.iter().rev().take_while(|(_, good)| !good);
            let in_a_row = in_a_row.count() >= 5;
            let window = self.window(began);
            let bad = window.iter().filter(|(_, good)| !good).count();
            let by_share = !good && window.len() >= 10 && bad * 2 >= window.len();
            case.reaches_if(in_a_row && !by_share, "open by five in a row");
            case.reaches_if(by_share && !in_a_row, "open by half of ten");
            case.reaches_if(
                !good && !in_a_row && window.len() >= 10 && !by_share,
                "closed with ten outcomes of which fewer than half failed",
            );
            if in_a_row || by_share {
                self.open(now);
            }
        }

        /// The outcomes of the window that the last one falls into. A window begins with the first outcome after the
        /// second of the one before.
        fn window(&self, mut began: Instant) -> &[(Instant, bool)] {
            let mut first = 0;
            for (place, (at, _)) in self.since_closed.iter().enumerate() {
                if at.duration_since(began) >= Duration::from_secs(1) {
                    (began, first) = (*at, place);
                }
            }
            &self.since_closed[first..]
        }

        fn open(&mut self, now: Instant) {
            self.state = BreakerState::Open;
            self.trial_at = after(now, 1000);
        }
    }

    /// Measured: 60 % of the cases open it by five in a row, 70 % by half of ten, and 42 to 52 % keep it closed with ten
    /// outcomes. 54 % begin a trial at the very moment, 83 % close it by one and 72 % leave it open by one. Trials are refused for
    /// each reason in 84 % or more, and outcomes ignored in 90 %; all cases end a trial that nobody began.
    #[test]
    fn the_breaker_opens_and_closes_only_by_its_rules() {
        let floors = [
            ("open by five in a row", 30),
            ("open by half of ten", 34),
            ("closed with ten outcomes of which fewer than half failed", 21),
            ("an outcome that an open one ignores", 45),
            ("an outcome that a trial ignores", 45),
            ("no trial of a closed one", 46),
            ("no trial before its time", 43),
            ("no trial beside another", 42),
            ("a trial at the very moment", 26),
            ("a trial that closes it", 40),
            ("a trial that leaves it open", 35),
            ("the end of a trial that nobody began", 50),
        ];
        check(128, events(), &floors, |events, case| {
            let start = Instant::now();
            let (mut now, mut closed_at) = (start, start);
            let (mut breaker, mut model) = (Breaker::new(start), Model::new(start));
            for event in events {
                match event {
                    Event::Succeeded => {
                        breaker.succeeded(now);
                        model.outcome(closed_at, now, true, case);
                    }
                    Event::Failed => {
                        breaker.failed(now);
                        model.outcome(closed_at, now, false, case);
                    }
                    Event::BeginTrial => {
                        let due = model.state == BreakerState::Open && model.trial_at <= now;
                        case.reaches_if(due && model.trial_at == now, "a trial at the very moment");
                        if !due {
                            case.reaches(match model.state {
                                BreakerState::Closed => "no trial of a closed one",
                                BreakerState::Open => "no trial before its time",
                                BreakerState::HalfOpen => "no trial beside another",
                            });
                        }
                        prop_assert_eq!(breaker.begin_trial(now), due);
                        if due {
                            model.state = BreakerState::HalfOpen;
                        }
                    }
                    Event::EndTrial(good) => {
                        breaker.end_trial(good, now);
                        match (model.state, good) {
                            (BreakerState::HalfOpen, true) => {
                                case.reaches("a trial that closes it");
                                (model, closed_at) = (Model::new(now), now);
                            }
                            (BreakerState::HalfOpen, false) => {
                                case.reaches("a trial that leaves it open");
                                model.open(now);
                            }
                            _ => case.reaches("the end of a trial that nobody began"),
                        }
                    }
                    Event::Wait(millis) => now = after(now, millis),
                    Event::WaitForTrial(less) => now = now.max(model.trial_at - Duration::from_millis(less)),
                }
                prop_assert_eq!(breaker.state(), model.state);
                let trial_at = (model.state == BreakerState::Open).then_some(model.trial_at);
                prop_assert_eq!(breaker.trial_at(), trial_at);
            }
            Ok(())
        });
    }

    #[test]
    fn nine_outcomes_are_too_few_and_a_window_lasts_less_than_a_second() {
        // State after this many outcomes and then a failure that comes `last` milliseconds after them.
        let state_after = |outcomes: u64, last: u64| {
            let start = Instant::now();
            let mut breaker = Breaker::new(start);
            for number in 1..outcomes {
                match number % 2 {
                    0 => breaker.succeeded(start),
                    _ => breaker.failed(start),
                }
            }
            breaker.succeeded(start);
            breaker.failed(after(start, last));
            breaker.state()
        };
        assert_eq!(
            state_after(9, 0),
            BreakerState::Open,
            "ten, five of them failures"
        );
        assert_eq!(state_after(8, 0), BreakerState::Closed);
        assert_eq!(state_after(9, 999), BreakerState::Open);
        assert_eq!(state_after(9, 1000), BreakerState::Closed);
    }

    #[test]
    fn states_have_words_for_metrics() {
        let words =
            [BreakerState::Closed, BreakerState::HalfOpen, BreakerState::Open].map(BreakerState::as_str);
        assert_eq!(words, ["closed", "half_open", "open"]);
    }
}
