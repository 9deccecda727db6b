//! Durations as the Gateway API writes them: `1h`, `90s`, `1h30m` (GEP-2257).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time in the Gateway API's notation: up to four numbers of at most five digits, each with a unit
/// out of `h`, `m`, `s`, `ms`.
///
/// ```
/// let interval: tlsfarm::api::Duration = "1h30m".parse()?;
/// assert_eq!(interval.as_secs(), 5400);
/// assert_eq!(interval.to_string(), "1h30m");
/// # Ok::<(), tlsfarm::api::DurationError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Duration(std::time::Duration);

/// The text is not a duration in the Gateway API's notation.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a valid duration: use numbers with units h, m, s or ms, such as 1h30m")]
pub struct DurationError(String);

/// Pattern of a duration, used in the CRD's schema.
const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// A CEL rule on an object with these durations. It holds if one of them is no duration: its own rule says so, and an
/// error in this rule would be a second message about the same mistake.
pub(super) fn rule(fields: &[&str], condition: &str) -> String {
    let malformed = |field: &&str| format!("!self.{field}.matches('{PATTERN}') || ");
    fields
        .iter()
        .map(malformed)
        .chain([condition.to_owned()])
        .collect()
}

/// A [`rule`] that the duration `field` is between `least` and `most`.
pub(super) fn between(field: &str, least: &str, most: &str) -> String {
    let condition = format!(
        "duration(self.{field}) >= duration('{least}') && duration(self.{field}) <= duration('{most}')"
    );
    rule(&[field], &condition)
}

impl Duration {
    /// A duration of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }

    /// A duration of whole milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(std::time::Duration::from_millis(milliseconds))
    }

    /// The duration in whole seconds, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0.as_secs()
    }

    /// Converts to `std::time::Duration`, for timers.
    pub const fn as_std(self) -> std::time::Duration {
        self.0
    }

    /// Converts to `jiff::SignedDuration`, for arithmetic on timestamps.
    pub fn as_signed(self) -> jiff::SignedDuration {
        jiff::SignedDuration::try_from(self.0).unwrap_or(jiff::SignedDuration::MAX)
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || DurationError(text.chars().take(32).collect());
        let mut rest = text;
        let mut total = std::time::Duration::ZERO;
        for _ in 0..4 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if !(1..=5).contains(&digits) {
                return Err(refuse());
            }
            let (number, tail) = rest.split_at(digits);
            let number: u64 = number.parse().map_err(|_| refuse())?;
            let (part, tail) = if let Some(tail) = tail.strip_prefix("ms") {
                (std::time::Duration::from_millis(number), tail)
            } else if let Some(tail) = tail.strip_prefix('s') {
                (std::time::Duration::from_secs(number), tail)
            } else if let Some(tail) = tail.strip_prefix('m') {
                (std::time::Duration::from_secs(number * 60), tail)
            } else if let Some(tail) = tail.strip_prefix('h') {
                (std::time::Duration::from_secs(number * 3600), tail)
            } else {
                return Err(refuse());
            };
            total += part;
            rest = tail;
            if rest.is_empty() {
                return Ok(Self(total));
            }
        }
        Err(refuse())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0.as_secs(), self.0.subsec_millis());
        let parts = [
            (seconds / 3600, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
            (u64::from(millis), "ms"),
        ];
        if parts.iter().all(|(number, _)| *number == 0) {
            return f.write_str("0s");
        }
        parts
            .iter()
            .filter(|(number, _)| *number > 0)
            .try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // A rule instead of `pattern`, whose message would be the pattern.
        json_schema!({
            "type": "string",
            "maxLength": 28,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{PATTERN}')"),
                "message": "must be a duration such as 90s, 30m, 4h or 1h30m: numbers of at most five digits with the units h, m, s or ms",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_what_the_schema_refuses() {
        for text in [
            "",
            "5",
            "h",
            "-1h",
            "1.5h",
            "1d",
            "123456s",
            "1h1m1s1ms1ms",
            "1h ",
            "1 h",
        ] {
            assert!(text.parse::<Duration>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn milliseconds_are_not_minutes() {
        assert_eq!(
            "1500ms".parse::<Duration>().expect("valid").as_std().as_millis(),
            1500
        );
    }

    proptest! {
        #[test]
        fn text_round_trips(millis in 0u64..99_999 * 3_600_000) {
            let duration = Duration(std::time::Duration::from_millis(millis));
            prop_assert_eq!(duration.to_string().parse::<Duration>(), Ok(duration));
        }
    }
}
