//! The status of a farm, from what was seen of it. Pure.
//!
//! The same facts always give the same status, so that at rest there is nothing to write.

mod conditions;

use jiff::{Timestamp, Unit};

use super::apply::Live;
use super::names::FarmId;
use super::observe::Observed;
use super::validate::Refusal;
use crate::api::{
    Backend, ConditionStatus, ConditionType, KeyRole, KeyStatus, RingStatus, SessionCacheMode,
    SessionCacheStatus, TLSFarm, TLSFarmStatus, merge_conditions,
};
use crate::ring::{Plan, Ring, RotationPolicy, TicketKey};

/// What one pass saw.
pub(super) struct Facts<'a> {
    pub(super) farm: &'a TLSFarm,
    pub(super) id: &'a FarmId,
    /// Why the farm is not accepted.
    pub(super) refusal: Option<&'a Refusal>,
    /// Backends whose Service or port does not exist.
    pub(super) missing_backends: &'a [Backend],
    pub(super) live: &'a Live,
    /// What failed in this pass, though the spec is not to blame.
    pub(super) problem: Option<&'a str>,
    pub(super) proxies: &'a [Observed],
    pub(super) ring: Option<&'a Ring>,
    /// What the ring waits for.
    pub(super) plan: Option<&'a Plan>,
    pub(super) policy: &'a RotationPolicy,
    /// What was wrong with the ring that the current one replaces.
    pub(super) repaired: Option<&'a str>,
    /// When the certificates of the caches are next renewed.
    pub(super) certificate_renewal: Option<Timestamp>,
    pub(super) now: Timestamp,
}

impl Facts<'_> {
    fn ready(&self) -> impl Iterator<Item = &Observed> {
        self.proxies.iter().filter(|one| one.proxy.is_ready())
    }

    fn ready_count(&self) -> i32 {
        count(self.ready())
    }

    fn acknowledged_count(&self, ring: &Ring) -> i32 {
        count(
            self.ready()
                .filter(|one| one.memory.has_acknowledged(ring.generation)),
        )
    }
}

/// The status that `facts` make, given the one that the farm has.
pub(super) fn status(facts: &Facts<'_>, before: Option<&TLSFarmStatus>) -> TLSFarmStatus {
    let ready = facts.ready_count();
    let old_conditions = before
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let ring = match facts.ring {
        Some(ring) => Some(ring_status(facts, ring)),
        // A ring that cannot be seen in this pass is still there.
        None => before.and_then(|status| status.ring.clone()),
    };
    TLSFarmStatus {
        observed_generation: facts.farm.metadata.generation,
        replicas: count(facts.proxies.iter()),
        ready_replicas: ready,
        proxies: format!("{ready}/{}", facts.farm.spec.replicas),
        selector: facts.id.pod_selector(),
        addresses: addresses(facts.live),
        ring,
        session_cache: session_cache(facts, before),
        conditions: merge_conditions(old_conditions, conditions::conditions(facts)),
    }
}

/// Whether the farm is as its spec says.
pub(super) fn is_ready(status: &TLSFarmStatus) -> bool {
    let mut conditions = status.conditions.iter();
    conditions
        .any(|condition| condition.type_ == ConditionType::Ready && condition.status == ConditionStatus::True)
}

fn ring_status(facts: &Facts<'_>, ring: &Ring) -> RingStatus {
    let acknowledged = facts.acknowledged_count(ring);
    let key = |key: &TicketKey, role| KeyStatus {
        id: key.id.to_string(),
        role,
        created_at: whole_second(key.created_at),
        open_until: whole_second(key.open_until),
    };
    let previous = ring
        .previous
        .iter()
        .map(|previous| key(previous, KeyRole::Previous));
    RingStatus {
        generation: ring.generation,
        primary: ring.primary.id.to_string(),
        keys: [
            key(&ring.next, KeyRole::Next),
            key(&ring.primary, KeyRole::Primary),
        ]
        .into_iter()
        .chain(previous)
        .collect(),
        acknowledged,
        acked: format!("{acknowledged}/{}", facts.ready_count()),
        last_rotation: whole_second(ring.rotated_at),
        next_rotation: whole_second(ring.rotated_at + facts.policy.rotation_interval),
    }
}

fn session_cache(facts: &Facts<'_>, before: Option<&TLSFarmStatus>) -> Option<SessionCacheStatus> {
    let mode = facts.farm.spec.resumption.session_cache.mode;
    if mode == SessionCacheMode::Disabled {
        return None;
    }
    let reachable = facts.ready().filter(|one| {
        let cache = one.cache();
        cache.is_some_and(|cache| cache.reachable)
    });
    // Certificates that cannot be seen in this pass are still there.
    let last = before.and_then(|status| status.session_cache.as_ref()?.certificate_renewal);
    Some(SessionCacheStatus {
        mode,
        reachable: format!("{}/{}", count(reachable), facts.ready_count()),
        certificate_renewal: match mode {
            SessionCacheMode::Sidecar => facts.certificate_renewal.map(whole_second).or(last),
            _ => None,
        },
    })
}

/// The load balancer's addresses and names, else the cluster's.
fn addresses(live: &Live) -> Vec<String> {
    let Some(service) = &live.service else {
        return Vec::new();
    };
    let ingress = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let outside: Vec<String> = ingress
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ip.clone().or_else(|| entry.hostname.clone()))
        .collect();
    if !outside.is_empty() {
        return outside;
    }
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let inside = spec
        .cluster_ips
        .clone()
        .unwrap_or_else(|| spec.cluster_ip.iter().cloned().collect());
    inside
        .into_iter()
        .filter(|address| !address.is_empty() && address != "None")
        .collect()
}

/// The API writes times in whole seconds.
fn whole_second(time: Timestamp) -> Timestamp {
    time.round(
        jiff::TimestampRound::new()
            .smallest(Unit::Second)
            .mode(jiff::RoundMode::Trunc),
    )
    .unwrap_or(time)
}

fn count<'a>(proxies: impl Iterator<Item = &'a Observed>) -> i32 {
    i32::try_from(proxies.count()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
