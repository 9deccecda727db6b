//! Computes the status of a farm from the observed state. Pure.
//!
//! The same inputs always give the same status, so that nothing is written in a steady state.

mod conditions;
mod facts;

pub(crate) use self::facts::StatusInputs;
use self::facts::{count, whole_second};
use crate::api::{
    ConditionStatus, ConditionType, KeyRole, KeyStatus, RingStatus, SessionCacheMode, SessionCacheStatus,
    TLSFarmStatus, merge_conditions,
};
use crate::operator::cluster::apply::Live;
use crate::ring::{Ring, TicketKey};

/// Computes the status from `facts`; `before` is the current status.
pub(crate) fn status(facts: &StatusInputs<'_>, before: Option<&TLSFarmStatus>) -> TLSFarmStatus {
    let ready = facts.ready_count();
    let old_conditions = before
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let ring = match facts.ring {
        Some(ring) => Some(ring_status(facts, ring)),
        // If this pass did not read the ring, keep the one in the status.
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

/// Whether the condition Ready is True.
pub(crate) fn is_ready(status: &TLSFarmStatus) -> bool {
    let mut conditions = status.conditions.iter();
    conditions
        .any(|condition| condition.type_ == ConditionType::Ready && condition.status == ConditionStatus::True)
}

fn ring_status(facts: &StatusInputs<'_>, ring: &Ring) -> RingStatus {
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

fn session_cache(facts: &StatusInputs<'_>, before: Option<&TLSFarmStatus>) -> Option<SessionCacheStatus> {
    let mode = facts.farm.spec.resumption.session_cache.mode;
    if mode == SessionCacheMode::Disabled {
        return None;
    }
    let reachable = facts.ready().filter(|one| {
        let cache = one.cache();
        cache.is_some_and(|cache| cache.reachable)
    });
    // If this pass did not read the certificates, keep the time in the status.
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

/// Addresses and host names of the load balancer, or else the cluster IPs.
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

#[cfg(test)]
mod tests;
