//! Sessions kept for later rounds, so that a key rotation or a proxy restart happens between issuing and offering them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::exchange::seconds;
use super::session::{Mechanism, Session};
use super::target::{TargetFarm, TargetProxy};

/// Maximum time that a session is kept. For shorter ticket lifetimes the limit is nine tenths of the lifetime, because
/// a client never offers an expired ticket.
const LONGEST_KEPT: Duration = Duration::from_secs(600);

/// Maximum number of sessions kept per issuer and resumer. One is drawn at random in each round, so that their ages are
/// spread over tens of rounds.
const KEPT_PER_PAIR: usize = 16;

/// Farm, host and mechanism that a session belongs to.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Site {
    pub(super) farm: Option<String>,
    pub(super) server_name: String,
    pub(super) mechanism: Mechanism,
}

/// A session and its issuer.
pub(super) struct Issue {
    /// Name of the proxy.
    pub(super) issuer: String,
    issuer_id: String,
    pub(super) session: Session,
}

/// When a session was issued.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Earlier {
    /// Age when it was offered.
    #[serde(rename = "ageSeconds", serialize_with = "seconds")]
    pub age: Duration,
    /// Round in which it was issued.
    pub round: u64,
    /// Ring generation when it was issued, if the farm's status reported it.
    pub ring_generation: Option<u64>,
}

/// The kept sessions of all farms.
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
    /// Starts round `round`: sessions kept so far count as those of earlier rounds.
    pub(super) fn begin(&mut self, round: u64, now: Instant) {
        self.round = round;
        for kept in self.sessions.values_mut() {
            kept.retain(|kept| now < kept.forget);
        }
        self.sessions.retain(|_, kept| !kept.is_empty());
    }

    /// Removes and returns one session of an earlier round for each issuer.
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

    /// Keeps sessions issued in this round, if there is room. Older sessions take precedence.
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
