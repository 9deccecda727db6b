//! `--watch`: repeated rounds that also offer sessions of earlier rounds.

use std::io::Write;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::error::ProbeError;
use super::exchange::Exchanger;
use super::kept::KeptSessions;
use super::matrix::{self, Counts};
use super::output::Output;
use super::round::{Round, Tally};
use super::target::{TargetFarm, Targets, unready, why_nothing};
use crate::runtime::signal::Terminated;

/// Schedule of the rounds.
pub(super) struct Plan {
    /// Time from the start of one round to the start of the next.
    pub(super) interval: Duration,
    /// Number of rounds after which to stop.
    pub(super) count: Option<u64>,
    /// Time after which to stop.
    pub(super) duration: Option<Duration>,
}

/// Runs rounds until the plan ends or a signal arrives. Returns whether all were clean.
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
    farms: Vec<TargetFarm>,
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
        matrix::recheck(self.targets, &mut matrices).await;
        let took = begun.elapsed();
        let unready = unready(&self.farms);
        for farm in &unready {
            let message = format!("no proxy of farm {farm} is ready");
            self.output.note(&message, Timestamp::now())?;
        }
        let older = || matrices.iter().flat_map(|matrix| &matrix.older);
        let ring = |farm: &TargetFarm| Some((farm.name.clone()?, farm.ring?));
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
