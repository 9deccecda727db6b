//! Decides whether to write the ring Secret. Pure except for the random bytes of new keys.

use std::fmt;

use jiff::Timestamp;

use crate::api::{TLSFarm, TicketsSpec};
use crate::operator::cluster::ring_secret::StoredRing;
use crate::operator::cluster::secret::Version;
use crate::ring::{
    Acknowledgement, KeySecret, Plan, RandomnessError, Ring, RotationPolicy, RotationRequest, plan,
};

/// Maximum length of a request's value in the ring document; a longer one is replaced by its fingerprint.
const LONGEST_REQUEST: usize = 128;

/// What the operator knows about a farm's ring apart from the Secret.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KnownRing<'a> {
    /// The ring that it last read or wrote.
    pub(crate) ring: Option<&'a Ring>,
    /// The highest generation in memory, the status and the proxies' reports; 0 if unknown.
    pub(crate) generation: u64,
}

/// What to do with the ring Secret.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    /// Keep the stored ring; the plan says when to decide again.
    Keep(Box<Ring>, Plan),
    /// There is no ring, and none may be created, because the farm has never been accepted.
    None,
    /// Leave the Secret alone: its format, of this version, is that of a later release.
    UnknownFormat(u32),
    /// Write this ring.
    Write(Box<Ring>, Option<Version>, Change),
}

/// Why a ring is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    /// The farm had no ring.
    Created,
    /// The Secret was missing, damaged or rolled back; the text is the reason.
    Repaired(String),
    /// A rotation; `late` are the proxies that it did not wait for.
    Rotated { late: Vec<String> },
    /// Expired keys were removed.
    Expired,
    /// The next key was replaced, because it was about to expire unused.
    Renewed,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created => f.write_str("created"),
            Self::Repaired(_) => f.write_str("repaired"),
            Self::Rotated { late } if late.is_empty() => f.write_str("rotated"),
            Self::Rotated { late } => write!(f, "rotated without waiting for {}", late.join(", ")),
            Self::Expired => f.write_str("expired keys removed"),
            Self::Renewed => f.write_str("next key replaced before it expired"),
        }
    }
}

/// Converts the spec to a rotation policy.
pub(crate) fn policy(tickets: &TicketsSpec) -> RotationPolicy {
    RotationPolicy {
        rotation_interval: tickets.rotation_interval.as_signed(),
        lifetime: tickets.lifetime.as_signed(),
        max_unacked_wait: tickets.max_unacked_wait.as_signed(),
    }
}

/// The rotation that the farm's annotation requests. `before` is the request seen by the last reconciliation.
pub(crate) fn requested(
    farm: &TLSFarm,
    before: Option<&RotationRequest>,
    now: Timestamp,
) -> Option<RotationRequest> {
    let annotation = farm
        .metadata
        .annotations
        .as_ref()?
        .get(crate::api::ROTATE_ANNOTATION)?;
    let value = if annotation.len() <= LONGEST_REQUEST {
        annotation.clone()
    } else {
        format!(
            "fingerprint {}",
            crate::config::fingerprint(annotation.as_bytes())
        )
    };
    match before {
        Some(before) if before.value == value => Some(before.clone()),
        _ => Some(RotationRequest { value, seen_at: now }),
    }
}

/// Decides what to do with the ring Secret. Fails if new keys cannot be generated.
pub(crate) fn decide(
    stored: StoredRing,
    known: KnownRing<'_>,
    may_create: bool,
    policy: &RotationPolicy,
    request: Option<&RotationRequest>,
    proxies: &[Acknowledgement],
    now: Timestamp,
) -> Result<Decision, RandomnessError> {
    let (why, version, restored) = match stored {
        StoredRing::Good(ring, version) => match fault(&ring, known) {
            None => return carry_out(*ring, version, policy, request, proxies, now),
            Some(why) => (why, Some(version), Some(*ring)),
        },
        StoredRing::Damaged(why, version) => {
            (format!("the ring Secret was damaged: {why}"), Some(version), None)
        }
        StoredRing::Missing if known.generation == 0 => {
            if !may_create {
                return Ok(Decision::None);
            }
            let ring = fresh(1, policy, request, proxies, now)?;
            return Ok(Decision::Write(Box::new(ring), None, Change::Created));
        }
        StoredRing::Missing => ("the ring Secret was missing".to_owned(), None, None),
        StoredRing::UnknownFormat(version) => return Ok(Decision::UnknownFormat(version)),
        // A foreign Secret is reported as NameConflict; never overwrite it.
        StoredRing::Foreign(_) => return Ok(Decision::None),
    };
    let generation = known.generation + 1;
    let (ring, keys) = match (known.ring, restored) {
        (Some(ring), _) => (
            reissued(ring.clone(), generation, proxies, now),
            "the same keys were restored",
        ),
        (None, Some(ring)) => (
            reissued(ring, generation, proxies, now),
            "its keys were kept, and newer ones are lost, because the operator did not have them",
        ),
        (None, None) => (
            fresh(generation, policy, request, proxies, now)?,
            "new keys were generated, because the operator did not have the old ones",
        ),
    };
    let change = Change::Repaired(format!("{why}; {keys}"));
    Ok(Decision::Write(Box::new(ring), version, change))
}

/// The keys of `ring` under a new generation. The primary may encrypt only if every proxy is known to have it.
fn reissued(ring: Ring, generation: u64, proxies: &[Acknowledgement], now: Timestamp) -> Ring {
    let confirmed = proxies.iter().all(|proxy| proxy.opens(ring.primary.id, &ring));
    let ring = ring.reissued(generation, now);
    match confirmed {
        true => ring,
        false => ring.without_sealing(now),
    }
}

/// Why a valid ring must be replaced.
fn fault(ring: &Ring, known: KnownRing<'_>) -> Option<String> {
    if ring.generation < known.generation {
        return Some(format!(
            "the ring was rolled back to generation {}; the newest known generation is {}",
            ring.generation, known.generation
        ));
    }
    let same = known.ring.filter(|last| last.generation == ring.generation);
    same.is_some_and(|last| last != ring)
        .then(|| format!("ring generation {} was modified", ring.generation))
}

fn carry_out(
    ring: Ring,
    version: Version,
    policy: &RotationPolicy,
    request: Option<&RotationRequest>,
    proxies: &[Acknowledgement],
    now: Timestamp,
) -> Result<Decision, RandomnessError> {
    let (ring, change) = match plan(&ring, policy, request, proxies, now) {
        Plan::Expire => (ring.without_expired(now), Change::Expired),
        Plan::Renew => (
            ring.with_next(KeySecret::generate()?, policy, now),
            Change::Renewed,
        ),
        Plan::Clamp => {
            let why = format!(
                "the ring was dated {}, in the future; check the clocks",
                ring.rotated_at.max(ring.changed_at)
            );
            (ring.clamped(policy, now), Change::Repaired(why))
        }
        Plan::Rotate { request, late } => {
            let ring = ring.rotated(KeySecret::generate()?, request.as_ref(), policy, now);
            (ring, Change::Rotated { late })
        }
        waiting => return Ok(Decision::Keep(Box::new(ring), waiting)),
    };
    Ok(Decision::Write(Box::new(ring), Some(version), change))
}

/// Creates a ring with new keys, which also satisfies a pending rotation request. Where there are proxies, which cannot
/// have its keys yet, its primary may not encrypt; the first rotation follows when they have confirmed the next key.
fn fresh(
    generation: u64,
    policy: &RotationPolicy,
    request: Option<&RotationRequest>,
    proxies: &[Acknowledgement],
    now: Timestamp,
) -> Result<Ring, RandomnessError> {
    let mut ring = Ring::new(
        generation,
        KeySecret::generate()?,
        KeySecret::generate()?,
        policy,
        now,
    );
    ring.handled_request = request.map(|request| request.value.clone());
    match proxies.is_empty() {
        true => Ok(ring),
        false => Ok(ring.without_sealing(now)),
    }
}

#[cfg(test)]
mod tests;
