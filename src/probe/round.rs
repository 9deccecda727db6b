//! Statistics of `--watch`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::exchange::seconds;
use super::matrix::{Counts, Matrix, Trial, TrialOutcome};

/// Statistics of one round.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Round {
    /// Number of the round, from 1.
    #[serde(rename = "round")]
    pub(super) number: u64,
    /// Number of proxies.
    pub(super) proxies: usize,
    /// Ring generation of each farm at the start of the round.
    pub(super) ring_generations: BTreeMap<String, u64>,
    /// Counts of sessions issued in this round.
    pub(super) fresh: Counts,
    /// Counts of sessions issued in earlier rounds.
    pub(super) older: Counts,
    /// Age of the oldest session that was offered.
    #[serde(rename = "oldestSeconds", serialize_with = "seconds")]
    pub(super) oldest: Duration,
    /// Duration of the round.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub(super) took: Duration,
}

/// Statistics of all rounds.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Number of rounds.
    pub rounds: u64,
    /// Duration from the start of the first round to the end of the last.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub took: Duration,
    /// Counts of sessions offered in the round in which they were issued.
    pub fresh: Counts,
    /// Counts of sessions offered in later rounds.
    pub older: Counts,
    /// Those of `older` that were issued under a different ring generation than they were offered under.
    pub crossed_rotation: Counts,
    /// Rounds in which a farm with replicas had no ready proxy.
    pub unready_rounds: u64,
    /// Mean duration of full handshakes.
    #[serde(rename = "fullHandshakeSeconds", serialize_with = "mean_seconds")]
    pub full_handshakes: Mean,
    /// Mean duration of resumed handshakes.
    #[serde(rename = "resumedHandshakeSeconds", serialize_with = "mean_seconds")]
    pub resumed_handshakes: Mean,
}

/// A mean of durations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    sum: Duration,
    count: u32,
}

impl Tally {
    /// Whether every session was resumed, every request was served, and every farm had a ready proxy.
    pub fn is_clean(&self) -> bool {
        self.fresh.is_clean() && self.older.is_clean() && self.unready_rounds == 0
    }

    /// Adds a round. `unready`: a farm with replicas had no ready proxy.
    pub(super) fn add(&mut self, round: &Round, matrices: &[Matrix], unready: bool) {
        self.rounds = round.number;
        self.fresh += round.fresh;
        self.older += round.older;
        self.unready_rounds += u64::from(unready);
        for matrix in matrices {
            let crossed = |trial: &&Trial| {
                let taken_under = trial.earlier.as_ref().map(|earlier| earlier.ring_generation);
                taken_under.is_some_and(|ring| ring.is_some() && ring != matrix.ring_generation)
            };
            self.crossed_rotation += Counts::of(matrix.older.iter().filter(crossed));
            for trial in matrix.trials() {
                if let Some(answer) = &trial.issuer_answer {
                    self.full_handshakes.add(answer.handshake);
                }
                if let Some(answer) = &trial.resumer_answer {
                    match trial.outcome {
                        TrialOutcome::Resumed => self.resumed_handshakes.add(answer.handshake),
                        _ => self.full_handshakes.add(answer.handshake),
                    }
                }
            }
        }
    }
}

impl Mean {
    /// The mean; None without values.
    pub fn value(&self) -> Option<Duration> {
        self.sum.checked_div(self.count)
    }

    fn add(&mut self, duration: Duration) {
        self.sum += duration;
        self.count = self.count.saturating_add(1);
    }
}

fn mean_seconds<S: serde::Serializer>(mean: &Mean, serializer: S) -> Result<S::Ok, S::Error> {
    match mean.value() {
        Some(value) => serializer.serialize_some(&value.as_secs_f64()),
        None => serializer.serialize_none(),
    }
}
