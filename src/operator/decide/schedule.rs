//! Decides when to reconcile a farm again. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Interval for a ready farm. The operator has no permission to watch Secrets, so this is also how soon it detects a
/// deleted ring.
const AT_REST: Duration = Duration::from_secs(30);

/// Interval for a farm that is not ready, for example because of an expired certificate.
const UNWELL: Duration = Duration::from_secs(5);

/// Interval for a farm that conflicts with another farm or object.
const CONFLICT: Duration = Duration::from_secs(10);

/// Interval while proxies load a change.
const FAST: Duration = Duration::from_millis(250);

/// How long the fast interval is used; a kubelet needs about a second after a refresh.
const FAST_FOR: SignedDuration = SignedDuration::from_secs(10);

/// Interval after a write conflict.
const OVERTAKEN: Duration = Duration::from_millis(200);

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Result of a reconciliation that determines the next one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ScheduleInputs {
    /// How long ready proxies have been loading the last change.
    pub(crate) loading_for: Option<SignedDuration>,
    /// Whether the farm was rejected.
    pub(crate) refused: bool,
    /// Whether the farm is ready.
    pub(crate) ready: bool,
    /// Whether writing the ring hit a conflict.
    pub(crate) overtaken: bool,
    /// Next scheduled action, such as a rotation.
    pub(crate) due: Option<Timestamp>,
}

/// Time until the next reconciliation. A watch event triggers it earlier.
pub(crate) fn next_pass(outlook: &ScheduleInputs, now: Timestamp) -> Duration {
    let pace = if outlook.overtaken {
        OVERTAKEN
    } else if let Some(age) = outlook.loading_for {
        if age < FAST_FOR {
            FAST
        } else {
            (age.unsigned_abs() / 10).clamp(FAST, AT_REST)
        }
    } else if outlook.refused {
        CONFLICT
    } else if outlook.ready {
        AT_REST
    } else {
        UNWELL
    };
    match outlook.due {
        // A few milliseconds late: a pass that comes early would find nothing to do.
        Some(due) if due > now => pace.min(due.duration_since(now).unsigned_abs() + Duration::from_millis(5)),
        _ => pace,
    }
}

/// Back-off after `failures` consecutive failures. `jitter` is a random number from 0 to 1.
pub(crate) fn retry_after(failures: u32, jitter: f64) -> Duration {
    let longest = FIRST_RETRY * 2u32.saturating_pow(failures.saturating_sub(1).min(16));
    longest
        .min(LAST_RETRY)
        .mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn loading_proxies_are_polled_at_increasing_intervals() {
        let loading = |seconds| {
            let loading_for = Some(SignedDuration::from_secs(seconds));
            next_pass(
                &ScheduleInputs {
                    loading_for,
                    ..ScheduleInputs::default()
                },
                at(0),
            )
        };
        assert_eq!(loading(0), FAST);
        assert_eq!(loading(9), FAST);
        assert_eq!(loading(10), Duration::from_secs(1));
        assert_eq!(loading(20), Duration::from_secs(2));
        assert_eq!(loading(100_000), AT_REST);
    }

    #[test]
    fn the_next_pass_is_sooner_while_a_farm_waits_for_something() {
        let now = at(0);
        let rest = ScheduleInputs {
            ready: true,
            ..ScheduleInputs::default()
        };
        assert_eq!(next_pass(&rest, now), AT_REST);
        assert_eq!(next_pass(&ScheduleInputs::default(), now), UNWELL);
        let refused = ScheduleInputs {
            refused: true,
            ..ScheduleInputs::default()
        };
        assert_eq!(next_pass(&refused, now), CONFLICT);
        let loading = ScheduleInputs {
            loading_for: Some(SignedDuration::ZERO),
            ..refused
        };
        assert_eq!(next_pass(&loading, now), FAST);
        let overtaken = ScheduleInputs {
            overtaken: true,
            ..loading
        };
        assert_eq!(next_pass(&overtaken, now), OVERTAKEN);
    }

    #[test]
    fn due_work_is_not_missed_and_overdue_work_does_not_busy_loop() {
        let rest = |due| {
            next_pass(
                &ScheduleInputs {
                    ready: true,
                    due: Some(at(due)),
                    ..ScheduleInputs::default()
                },
                at(100),
            )
        };
        assert_eq!(rest(1000), AT_REST);
        assert_eq!(rest(102), Duration::from_millis(2005));
        assert_eq!(rest(99), AT_REST);
        assert_eq!(rest(100), AT_REST);
    }

    #[test]
    fn failures_are_retried_with_growing_and_jittered_delays() {
        assert_eq!(retry_after(1, 1.0), Duration::from_secs(1));
        assert_eq!(retry_after(1, 0.0), Duration::from_millis(500));
        assert_eq!(retry_after(0, 1.0), Duration::from_secs(1));
        assert_eq!(retry_after(2, 1.0), Duration::from_secs(2));
        assert_eq!(retry_after(4, 1.0), Duration::from_secs(8));
        assert_eq!(retry_after(4, 0.5), Duration::from_secs(6));
        assert_eq!(retry_after(4, 7.0), Duration::from_secs(8));
        assert_eq!(retry_after(u32::MAX, 1.0), LAST_RETRY);
    }
}
