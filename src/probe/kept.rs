//! Sessions that are kept for later rounds, so that a rotation of keys, or the end of a proxy, comes between taking and
//! offering them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::exchange::seconds;
use super::session::{Mechanism, Session};
use super::target::{TargetFarm, TargetProxy};

/// Longest that a session is kept. A farm whose tickets live shorter gets nine tenths of their lifetime, because a
/// client does not offer an expired ticket at all.
const LONGEST_KEPT: Duration = Duration::from_secs(600);

/// Sessions kept for each issuer and resumer. One of them is drawn at random in each round, so their ages spread over
/// some tens of rounds.
const KEPT_PER_PAIR: usize = 16;

/// Where a session may be resumed.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Site {
    pub(super) farm: Option<String>,
    pub(super) server_name: String,
    pub(super) mechanism: Mechanism,
}

/// A session and who issued it.
pub(super) struct Issue {
    /// Name of the proxy.
    pub(super) issuer: String,
    issuer_id: String,
    pub(super) session: Session,
}

/// When a session was taken.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Earlier {
    /// How long before it was offered.
    #[serde(rename = "ageSeconds", serialize_with = "seconds")]
    pub age: Duration,
    /// In which round.
    pub round: u64,
    /// Under which generation of the ring, where the farm's status said it.
    pub ring_generation: Option<u64>,
}

/// The sessions of all farms.
#[derive(Default)]
pub(super) struct KeptSessions {
    round: u64,
    sessions: BTreeMap<(Site, String), Vec<Kept>>,
}

struct Kept {
    issue: Issue,
    taken: Instant,
    forget: Instant,
    round: u64,
    ring: Option<u64>,
}

impl Issue {
    pub(super) fn new(issuer: &TargetProxy, session: Session) -> Self {
        Self {
            issuer: issuer.name.clone(),
            issuer_id: issuer.id.clone(),
            session,
        }
    }
}

impl KeptSessions {
    /// Begins round number `round`: from now on, the sessions that are kept already are those of earlier rounds.
    pub(super) fn begin(&mut self, round: u64, now: Instant) {
        self.round = round;
        for kept in self.sessions.values_mut() {
            kept.retain(|kept| now < kept.forget);
        }
        self.sessions.retain(|_, kept| !kept.is_empty());
    }

    /// Takes one session of an earlier round from each issuer that sessions are kept of.
    pub(super) fn draw(&mut self, site: &Site, now: Instant) -> Vec<(Issue, Earlier)> {
        let mut drawn = Vec::new();
        for ((of, _), kept) in &mut self.sessions {
            let earlier = kept.partition_point(|kept| kept.round < self.round);
            if of != site || earlier == 0 {
                continue;
            }
            let kept = kept.remove(rand::random_range(..earlier));
            let earlier = Earlier {
                age: now.saturating_duration_since(kept.taken),
                round: kept.round,
                ring_generation: kept.ring,
            };
            drawn.push((kept.issue, earlier));
        }
        drawn
    }

    /// Keeps sessions that were issued in this round, as far as there is room: the old ones are worth more.
    pub(super) fn keep(&mut self, site: &Site, farm: &TargetFarm, issues: Vec<Issue>, now: Instant) {
        let keep_for = farm
            .ticket_lifetime
            .map_or(LONGEST_KEPT, |lifetime| (lifetime * 9 / 10).min(LONGEST_KEPT));
        let most = KEPT_PER_PAIR * farm.proxies.len();
        for issue in issues {
            let key = (site.clone(), issue.issuer_id.clone());
            let kept = self.sessions.entry(key).or_default();
            if kept.len() < most {
                kept.push(Kept {
                    issue,
                    taken: now,
                    forget: now + keep_for,
                    round: self.round,
                    ring: farm.ring,
                });
            }
        }
    }
}
