//! One round of trials: every proxy as issuer, and every proxy as resumer.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use rustls::pki_types::ServerName;
use serde::{Serialize, Serializer};

use super::exchange::{Exchanger, Failure, HandshakeAnswer};
use super::kept::{Earlier, Issue, KeptSessions, Site};
use super::session::{Mechanism, Session};
use super::target::{self, TargetFarm, TargetProxy, Targets};

/// Delay before a session in the session cache is offered. A proxy stores it without delaying the handshake, so a
/// client that returns immediately could miss it.
const SETTLING: Duration = Duration::from_millis(50);

/// Maximum number of concurrent connections, so that the probe does not become a load test.
const CONCURRENCY: usize = 8;

/// All trials of one host and one mechanism in one round.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Matrix {
    /// Farm as `namespace/name`; None for a list of addresses.
    pub farm: Option<String>,
    /// Server name (SNI).
    pub server_name: String,
    /// Resumption mechanism.
    pub mechanism: Mechanism,
    /// Ring generation at the start of the round, if the farm's status reports it.
    pub ring_generation: Option<u64>,
    /// The proxies, pods or addresses.
    pub proxies: Vec<String>,
    /// Sessions issued in this round, one for each issuer and resumer, row by row.
    pub fresh: Vec<Trial>,
    /// Sessions issued in earlier rounds, including those of proxies that no longer exist; only with `--watch`.
    pub older: Vec<Trial>,
}

/// One session, issued by one proxy and offered to another.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    /// Proxy that issued the session.
    pub issuer: String,
    /// Proxy that it was offered to.
    pub resumer: String,
    /// Proxy that a single-use session was offered to a second time, after it had been resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offered_again_to: Option<String>,
    /// Outcome of the trial.
    #[serde(flatten)]
    pub outcome: TrialOutcome,
    /// When the session was issued; None if in this round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub earlier: Option<Earlier>,
    /// Response of the issuer, if it was contacted in this round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer_answer: Option<HandshakeAnswer>,
    /// Response of the resumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumer_answer: Option<HandshakeAnswer>,
}

/// Outcome of a trial.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "outcome", content = "why")]
pub enum TrialOutcome {
    /// The session was resumed, and a single-use session was not resumed a second time.
    Resumed,
    /// A single-use session was resumed twice.
    ResumedTwice,
    /// The resumer made a full handshake: a miss.
    Missed,
    /// The issuer issued no ticket or session id.
    NoSession,
    /// A connection failed.
    #[serde(serialize_with = "as_text")]
    Failed(FailedAt),
    /// A proxy stopped during the trial; this is not counted as a failure.
    Gone,
}

/// A failed connection.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{proxy}: {failure}")]
pub struct FailedAt {
    /// The proxy.
    pub proxy: String,
    /// The pod's UID, or the address.
    pub id: String,
    /// The error.
    pub failure: Failure,
}

/// Numbers of trials by outcome.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Sessions that should have been resumed: all trials except those whose proxy stopped.
    pub offered: u64,
    /// Sessions that were resumed.
    pub resumed: u64,
    /// Full handshakes where a session was offered.
    pub missed: u64,
    /// Single-use sessions that were resumed twice.
    pub resumed_twice: u64,
    /// Trials whose issuer issued no ticket or session id.
    pub no_session: u64,
    /// Trials with a failed connection.
    pub failed: u64,
    /// Trials whose proxy stopped during the trial.
    pub gone: u64,
    /// Responses with a status of 500 or more.
    pub server_errors: u64,
}

type Job<'a> = Pin<Box<dyn Future<Output = (Trial, Vec<Issue>)> + 'a>>;

impl Counts {
    /// Counts `trials`.
    pub fn of<'a>(trials: impl IntoIterator<Item = &'a Trial>) -> Self {
        let mut counts = Self::default();
        for trial in trials {
            counts.offered += 1;
            match &trial.outcome {
                TrialOutcome::Resumed => counts.resumed += 1,
                TrialOutcome::ResumedTwice => counts.resumed_twice += 1,
                TrialOutcome::Missed => counts.missed += 1,
                TrialOutcome::NoSession => counts.no_session += 1,
                TrialOutcome::Failed(_) => counts.failed += 1,
                TrialOutcome::Gone => {
                    counts.gone += 1;
                    counts.offered -= 1;
                }
            }
            counts.server_errors += trial.answers().filter(|answer| answer.is_server_error()).count() as u64;
        }
        counts
    }

    /// Whether every session was resumed and every request was served.
    pub fn is_clean(&self) -> bool {
        self.resumed == self.offered && self.server_errors == 0
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.offered += more.offered;
        self.resumed += more.resumed;
        self.resumed_twice += more.resumed_twice;
        self.missed += more.missed;
        self.no_session += more.no_session;
        self.failed += more.failed;
        self.gone += more.gone;
        self.server_errors += more.server_errors;
    }
}

impl Matrix {
    /// Fresh and older trials.
    pub fn trials(&self) -> impl Iterator<Item = &Trial> {
        self.fresh.iter().chain(&self.older)
    }
}

impl Trial {
    /// The responses of issuer and resumer in this round.
    pub fn answers(&self) -> impl Iterator<Item = &HandshakeAnswer> {
        self.issuer_answer.iter().chain(&self.resumer_answer)
    }

    /// Whether the trial succeeded or was not counted.
    pub fn is_clean(&self) -> bool {
        matches!(self.outcome, TrialOutcome::Resumed | TrialOutcome::Gone)
            && !self.answers().any(HandshakeAnswer::is_server_error)
    }
}

/// Runs one round over `farms`. With `kept`, sessions of earlier rounds are offered too, and spare sessions are kept.
pub(super) async fn round(
    exchanger: &Exchanger,
    farms: &[TargetFarm],
    mut kept: Option<&mut KeptSessions>,
) -> Vec<Matrix> {
    let mut matrices = Vec::new();
    for farm in farms {
        for host in &farm.hosts {
            for &mechanism in &host.mechanisms {
                let site = Site {
                    farm: farm.name.clone(),
                    server_name: host.server_name.to_str().into(),
                    mechanism,
                };
                let probe = SiteProbe {
                    exchanger,
                    server_name: &host.server_name,
                    mechanism,
                    proxies: &farm.proxies,
                };
                matrices.push(probe.run(farm, site, kept.as_deref_mut()).await);
            }
        }
    }
    matrices
}

/// Whether a failure may be caused by the proxy shutting down.
pub(super) fn may_be_gone(trial: &Trial) -> bool {
    matches!(&trial.outcome, TrialOutcome::Failed(at) if at.failure.is_before_request())
}

/// Changes failures at proxies that are no longer ready to [`TrialOutcome::Gone`].
pub(super) fn excuse_gone(matrices: &mut [Matrix], still_serving: &BTreeSet<String>) {
    for matrix in matrices {
        for trial in matrix.fresh.iter_mut().chain(&mut matrix.older) {
            let gone = match &trial.outcome {
                TrialOutcome::Failed(at) => may_be_gone(trial) && !still_serving.contains(&at.id),
                _ => false,
            };
            if gone {
                trial.outcome = TrialOutcome::Gone;
            }
        }
    }
}

/// One host and one mechanism.
struct SiteProbe<'a> {
    exchanger: &'a Exchanger,
    server_name: &'a ServerName<'static>,
    mechanism: Mechanism,
    proxies: &'a [TargetProxy],
}

impl SiteProbe<'_> {
    async fn run(&self, farm: &TargetFarm, site: Site, mut kept: Option<&mut KeptSessions>) -> Matrix {
        let mut jobs: Vec<Job<'_>> = Vec::new();
        for issuer in &farm.proxies {
            for resumer in &farm.proxies {
                jobs.push(Box::pin(self.fresh(issuer, resumer)));
            }
        }
        let fresh = jobs.len();
        if let Some(kept) = &mut kept {
            for resumer in &farm.proxies {
                for (issue, earlier) in kept.draw(&site, Instant::now()) {
                    jobs.push(Box::pin(self.older(issue, earlier, resumer)));
                }
            }
        }
        let done: Vec<(Trial, Vec<Issue>)> = stream::iter(jobs).buffered(CONCURRENCY).collect().await;

        let mut trials = Vec::with_capacity(done.len());
        for (trial, issues) in done {
            if let Some(kept) = &mut kept {
                kept.keep(&site, farm, issues, Instant::now());
            }
            trials.push(trial);
        }
        let older = trials.split_off(fresh);
        Matrix {
            farm: site.farm,
            server_name: site.server_name,
            mechanism: self.mechanism,
            ring_generation: farm.ring,
            proxies: farm.proxies.iter().map(|proxy| proxy.name.clone()).collect(),
            fresh: trials,
            older,
        }
    }

    /// Gets a session from `issuer` and offers it to `resumer`.
    async fn fresh(&self, issuer: &TargetProxy, resumer: &TargetProxy) -> (Trial, Vec<Issue>) {
        let mut trial = Trial {
            issuer: issuer.name.clone(),
            resumer: resumer.name.clone(),
            offered_again_to: None,
            outcome: TrialOutcome::NoSession,
            earlier: None,
            issuer_answer: None,
            resumer_answer: None,
        };
        let exchanged = self
            .exchanger
            .exchange(issuer.address, self.server_name, self.mechanism, None)
            .await;
        let taken = match exchanged {
            Ok(taken) => taken,
            Err(failure) => {
                trial.outcome = failed_at(issuer, failure);
                return (trial, Vec::new());
            }
        };
        trial.issuer_answer = Some(taken.answer);
        let mut sessions = taken.sessions.into_iter();
        let Some(session) = sessions.next() else {
            return (trial, Vec::new());
        };
        if self.mechanism.is_stateful() {
            tokio::time::sleep(SETTLING).await;
        }
        let spare = session.again().into_iter().chain(sessions);
        let mut issues: Vec<Issue> = spare.map(|session| Issue::new(issuer, session)).collect();
        issues.extend(self.offer(&mut trial, session, resumer).await);
        (trial, issues)
    }

    /// Offers a session of an earlier round to `resumer`.
    async fn older(&self, issue: Issue, earlier: Earlier, resumer: &TargetProxy) -> (Trial, Vec<Issue>) {
        let mut trial = Trial {
            issuer: issue.issuer.clone(),
            resumer: resumer.name.clone(),
            offered_again_to: None,
            outcome: TrialOutcome::Missed,
            earlier: Some(earlier),
            issuer_answer: None,
            resumer_answer: None,
        };
        // New sessions are not kept: over a chain of resumptions they would exceed the farm's maxAge.
        self.offer(&mut trial, issue.session, resumer).await;
        (trial, Vec::new())
    }

    /// Offers `session` to `resumer` and records the outcome; returns the sessions that it issues.
    async fn offer(&self, trial: &mut Trial, session: Session, resumer: &TargetProxy) -> Vec<Issue> {
        let exchanged = self
            .exchanger
            .exchange(resumer.address, self.server_name, self.mechanism, Some(session))
            .await;
        match exchanged {
            Ok(offered) => {
                trial.outcome = match (offered.resumed, self.mechanism) {
                    (false, _) => TrialOutcome::Missed,
                    (true, Mechanism::Tls13SingleUse) => self.again(trial, &offered.hello, resumer).await,
                    (true, _) => TrialOutcome::Resumed,
                };
                trial.resumer_answer = Some(offered.answer);
                let issue = |session| Issue::new(resumer, session);
                offered.sessions.into_iter().map(issue).collect()
            }
            Err(failure) => {
                trial.outcome = failed_at(resumer, failure);
                Vec::new()
            }
        }
    }

    /// Replays the ClientHello of a resumed single-use session to the next proxy.
    async fn again(&self, trial: &mut Trial, hello: &[u8], resumer: &TargetProxy) -> TrialOutcome {
        let position = self.proxies.iter().position(|proxy| proxy == resumer);
        let next = position.and_then(|position| self.proxies.iter().cycle().nth(position + 1));
        let next = next.unwrap_or(resumer);
        trial.offered_again_to = Some(next.name.clone());
        match self.exchanger.replay(next.address, hello).await {
            Ok(true) => TrialOutcome::ResumedTwice,
            Ok(false) => TrialOutcome::Resumed,
            Err(failure) => failed_at(next, failure),
        }
    }
}

fn failed_at(proxy: &TargetProxy, failure: Failure) -> TrialOutcome {
    TrialOutcome::Failed(FailedAt {
        proxy: proxy.name.clone(),
        id: proxy.id.clone(),
        failure,
    })
}

fn as_text<S: Serializer>(at: &FailedAt, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}
/// Lists the proxies again before failed connections are counted as failures.
pub(super) async fn recheck(targets: &Targets, matrices: &mut [Matrix]) {
    let doubtful = matrices.iter().flat_map(Matrix::trials).any(may_be_gone);
    // If the cluster cannot be asked, the failure counts.
    if doubtful && let Ok(farms) = targets.look().await {
        excuse_gone(matrices, &target::ids(&farms));
    }
}
