//! `--watch`: round after round, with sessions of earlier rounds offered too.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use super::exchange::{Exchanger, seconds};
use super::kept::KeptSessions;
use super::matrix::{self, Counts, Matrix, Outcome, Trial};
use super::output::Output;
use super::target::{Farm, Targets};
use super::{ProbeError, recheck, unready, why_nothing};
use crate::runtime::signal::Terminated;

/// When rounds begin and end.
pub(super) struct Plan {
    /// From the beginning of one round to the beginning of the next.
    pub(super) interval: Duration,
    /// Rounds after which to end.
    pub(super) count: Option<u64>,
    /// Time after which to end.
    pub(super) duration: Option<Duration>,
}

/// One round in numbers.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Round {
    /// Counted from 1.
    #[serde(rename = "round")]
    pub(super) number: u64,
    /// Number of proxies.
    pub(super) proxies: usize,
    /// Generation of each farm's ring when the round began.
    pub(super) ring_generations: BTreeMap<String, u64>,
    /// Sessions taken in this round.
    pub(super) fresh: Counts,
    /// Sessions taken in earlier rounds.
    pub(super) older: Counts,
    /// Age of the oldest session that was offered.
    #[serde(rename = "oldestSeconds", serialize_with = "seconds")]
    pub(super) oldest: Duration,
    /// How long the round took.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub(super) took: Duration,
}

/// All rounds in numbers.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Number of rounds.
    pub rounds: u64,
    /// From the beginning of the first round to the end of the last.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub took: Duration,
    /// Sessions offered in the round in which they were taken.
    pub fresh: Counts,
    /// Sessions offered in later rounds.
    pub older: Counts,
    /// Those of `older` that were taken under another ring than the one they were resumed under.
    pub crossed_rotation: Counts,
    /// Rounds in which a farm that should have proxies had none that served.
    pub unready_rounds: u64,
    /// Mean time of full handshakes.
    #[serde(rename = "fullHandshakeSeconds", serialize_with = "mean_seconds")]
    pub full_handshakes: Mean,
    /// Mean time of resumed handshakes.
    #[serde(rename = "resumedHandshakeSeconds", serialize_with = "mean_seconds")]
    pub resumed_handshakes: Mean,
}

/// A mean of durations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    sum: Duration,
    count: u32,
}

/// Probes again and again until the plan, or a signal, says to end.
pub(super) async fn watch<W: Write>(
    exchanger: &Exchanger,
    targets: &Targets,
    plan: &Plan,
    allow_empty: bool,
    output: &mut Output<W>,
) -> Result<bool, ProbeError> {
    let mut terminated = Terminated::new()?;
    let farms = targets.look().await?;
    if farms.iter().all(|farm| !farm.wants_proxies) {
        let why = why_nothing(targets, &farms);
        if !allow_empty {
            return Err(ProbeError::Nothing(why));
        }
        output.note(&why, Timestamp::now())?;
        return Ok(true);
    }
    let mut watch = Watch {
        exchanger,
        targets,
        output,
        farms,
        kept: KeptSessions::default(),
        tally: Tally::default(),
        begun: Instant::now(),
    };
    tokio::select! {
        ended = watch.rounds(plan) => ended?,
        () = terminated.recv() => {}
    }
    if watch.tally.fresh == Counts::default() {
        return Err(ProbeError::Nothing(why_nothing(targets, &watch.farms)));
    }
    watch.output.summary(&watch.tally)?;
    Ok(watch.tally.is_clean())
}

struct Watch<'a, W> {
    exchanger: &'a Exchanger,
    targets: &'a Targets,
    output: &'a mut Output<W>,
    farms: Vec<Farm>,
    kept: KeptSessions,
    tally: Tally,
    begun: Instant,
}

impl<W: Write> Watch<'_, W> {
    async fn rounds(&mut self, plan: &Plan) -> Result<(), ProbeError> {
        let end = plan.duration.map(|duration| self.begun + duration);
        loop {
            let round_begun = Instant::now();
            self.round(round_begun).await?;
            let next = round_begun + plan.interval;
            let enough = plan.count.is_some_and(|count| self.tally.rounds >= count);
            if enough || end.is_some_and(|end| next.max(Instant::now()) >= end) {
                return Ok(());
            }
            tokio::time::sleep_until(next.into()).await;
            match self.targets.look().await {
                Ok(farms) => self.farms = farms,
                // Rounds go on with what is known: proxies need no API server to resume sessions.
                Err(error) => self.output.note(&error.to_string(), Timestamp::now())?,
            }
        }
    }

    async fn round(&mut self, begun: Instant) -> Result<(), ProbeError> {
        let number = self.tally.rounds + 1;
        self.kept.begin(number, begun);
        let mut matrices = matrix::round(self.exchanger, &self.farms, Some(&mut self.kept)).await;
        recheck(self.targets, &mut matrices).await;
        let took = begun.elapsed();
        let unready = unready(&self.farms);
        for farm in &unready {
            let message = format!("no proxy of farm {farm} is ready");
            self.output.note(&message, Timestamp::now())?;
        }
        let older = || matrices.iter().flat_map(|matrix| &matrix.older);
        let ring = |farm: &Farm| Some((farm.name.clone()?, farm.ring?));
        let round = Round {
            number,
            proxies: self.farms.iter().map(|farm| farm.proxies.len()).sum(),
            ring_generations: self.farms.iter().filter_map(ring).collect(),
            fresh: Counts::of(matrices.iter().flat_map(|matrix| &matrix.fresh)),
            older: Counts::of(older()),
            oldest: older()
                .filter_map(|trial| Some(trial.earlier.as_ref()?.age))
                .max()
                .unwrap_or_default(),
            took,
        };
        self.output.round(&round, &matrices, Timestamp::now())?;
        self.tally.add(&round, &matrices, !unready.is_empty());
        self.tally.took = self.begun.elapsed();
        Ok(())
    }
}

impl Tally {
    /// Whether every session was resumed, every request served, and no farm without proxies.
    pub fn is_clean(&self) -> bool {
        self.fresh.is_clean() && self.older.is_clean() && self.unready_rounds == 0
    }

    fn add(&mut self, round: &Round, matrices: &[Matrix], unready: bool) {
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
                        Outcome::Resumed => self.resumed_handshakes.add(answer.handshake),
                        _ => self.full_handshakes.add(answer.handshake),
                    }
                }
            }
        }
    }
}

impl Mean {
    /// The mean; none of nothing.
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
