//! Limits how often an event is logged that others can cause any number of times.

use std::time::{Duration, Instant};

/// Minimum time between two lines.
const INTERVAL: Duration = Duration::from_secs(60);

/// Decides when to log events that are counted: the first at once, then at most one line a minute with the number of
/// events since the last line.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle {
    logged: u64,
    last: Option<Instant>,
}

impl LogThrottle {
    /// Returns the number of events to log now; None if there are none, or the last line is less than a minute old.
    /// `total` is the number of events since the start.
    pub(crate) fn due(&mut self, total: u64, now: Instant) -> Option<u64> {
        let too_soon = self.last.is_some_and(|last| now < last + INTERVAL);
        let events = total.saturating_sub(self.logged);
        if events == 0 || too_soon {
            return None;
        }
        self.logged = total;
        self.last = Some(now);
        Some(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_is_logged_at_once_and_the_next_ones_together_a_minute_later() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut throttle = LogThrottle::default();
        assert_eq!(throttle.due(0, at(0)), None);
        assert_eq!(throttle.due(1, at(1)), Some(1));
        assert_eq!(throttle.due(500, at(2)), None);
        assert_eq!(throttle.due(900, at(60)), None);
        assert_eq!(throttle.due(901, at(61)), Some(900));
        assert_eq!(throttle.due(901, at(3600)), None, "nothing happened since");
        assert_eq!(throttle.due(902, at(3601)), Some(1));
    }
}
