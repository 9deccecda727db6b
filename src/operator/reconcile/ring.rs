//! The ring step of a reconciliation: decides, writes the ring Secret at most once, and updates the state.

use jiff::Timestamp;
use tracing::info;

use crate::api::{Reason, TLSFarm};
use crate::operator::cluster::events::NewEvent;
use crate::operator::cluster::ring_secret::{self, StoredRing};
use crate::operator::cluster::secret::Written;
use crate::operator::context::Context;
use crate::operator::decide::rotation::{self, Change, Decision, KnownRing};
use crate::operator::error::ReconcileError;
use crate::operator::fleet::memory::FarmMemory;
use crate::operator::fleet::observe::acknowledgements;
use crate::operator::fleet::pods::ProxyPod;
use crate::operator::names::FarmId;
use crate::ring::{Acknowledgement, Plan, Ring, RotationPolicy};

/// Result of the ring step.
#[derive(Default)]
pub(crate) struct RingStep {
    /// Write conflict: nothing was written, and the ring has to be read again.
    pub(crate) overtaken: bool,
    /// Plan of a ring that was kept.
    pub(crate) plan: Option<Plan>,
    /// Version of a format that this release does not know.
    pub(crate) unknown_format: Option<u32>,
    /// Events to publish.
    pub(crate) told: Vec<NewEvent>,
}

/// Inputs of the ring step.
pub(crate) struct RingInputs<'a> {
    pub(crate) farm: &'a TLSFarm,
    pub(crate) id: &'a FarmId,
    pub(crate) proxies: &'a [ProxyPod],
    pub(crate) policy: &'a RotationPolicy,
    /// Whether the first ring may be created.
    pub(crate) may_create: bool,
}

/// Creates, repairs or rotates the ring, or removes expired keys, with at most one write.
pub(crate) async fn reconcile_ring(
    situation: &RingInputs<'_>,
    stored: StoredRing,
    context: &Context,
    memory: &mut FarmMemory,
) -> Result<RingStep, ReconcileError> {
    let &RingInputs {
        farm,
        id,
        proxies,
        policy,
        may_create,
    } = situation;
    let now = Timestamp::now();
    memory.request = rotation::requested(farm, memory.request.as_ref(), now);
    let acknowledgements = acknowledgements(proxies, &memory.proxies);
    let known = KnownRing {
        ring: memory.ring.as_ref(),
        generation: newest_generation(farm, memory, &acknowledgements),
    };
    let request = memory.request.as_ref();
    let decision = rotation::decide(stored, known, may_create, policy, request, &acknowledgements, now)?;
    let (ring, version, change) = match decision {
        Decision::None => {
            context.metrics.ring(&id.key, known.generation);
            return Ok(RingStep::default());
        }
        Decision::UnknownFormat(version) => {
            context.metrics.ring(&id.key, known.generation);
            return Ok(RingStep {
                unknown_format: Some(version),
                ..RingStep::default()
            });
        }
        Decision::Keep(ring, plan) => {
            context.metrics.ring(&id.key, ring.generation);
            return Ok(kept(memory, *ring, plan));
        }
        Decision::Write(ring, version, change) => (*ring, version, change),
    };
    if ring_secret::write(&context.client, id, &ring, version.as_ref()).await? == Written::Overtaken {
        info!(
            namespace = id.namespace(),
            farm = id.name(),
            "write conflict on the ring Secret, reading it again"
        );
        return Ok(RingStep {
            overtaken: true,
            ..RingStep::default()
        });
    }
    let generation = ring.generation;
    info!(namespace = id.namespace(), farm = id.name(), generation, primary = %ring.primary.id, %change, "wrote the ring Secret");
    context.metrics.wrote("Secret");
    context.metrics.ring(&id.key, generation);
    if matches!(change, Change::Rotated { .. }) {
        context.metrics.rotated();
    }
    let told = events_of(&change, generation, &ring.primary.id.to_string());
    wrote(memory, ring, change);
    Ok(RingStep {
        told,
        ..RingStep::default()
    })
}

/// The highest ring generation in memory, the status and the proxies' reports; 0 if unknown.
fn newest_generation(farm: &TLSFarm, memory: &FarmMemory, acknowledgements: &[Acknowledgement]) -> u64 {
    let in_status = memory.status(farm).and_then(|status| status.ring.as_ref());
    let generations = [
        memory.ring.as_ref().map(|ring| ring.generation),
        in_status.map(|ring| ring.generation),
        acknowledgements.iter().filter_map(|one| one.generation).max(),
    ];
    generations.into_iter().flatten().max().unwrap_or_default()
}

/// Remembers a ring that was kept, so that it can be restored if it is lost.
fn kept(memory: &mut FarmMemory, ring: Ring, plan: Plan) -> RingStep {
    memory.ring = Some(ring);
    RingStep {
        plan: Some(plan),
        ..RingStep::default()
    }
}

/// Remembers a ring that was written, and what was repaired.
fn wrote(memory: &mut FarmMemory, ring: Ring, change: Change) {
    memory.awaited = Some(ring.generation);
    memory.repaired = match change {
        Change::Repaired(why) => Some((ring.generation, why)),
        _ => None,
    };
    memory.ring = Some(ring);
}

fn events_of(change: &Change, generation: u64, primary: &str) -> Vec<NewEvent> {
    match change {
        Change::Created | Change::Expired | Change::Renewed => Vec::new(),
        Change::Repaired(why) => vec![NewEvent::warning(Reason::RingRepaired, "RepairRing", why.clone())],
        Change::Rotated { late } => {
            let note = format!("key {primary} now seals tickets (ring generation {generation})");
            let mut told = vec![NewEvent::normal("KeysRotated", "RotateKeys", note)];
            if !late.is_empty() {
                let note = format!(
                    "rotated to ring generation {generation} without acknowledgement from {}",
                    late.join(", ")
                );
                told.push(NewEvent::warning(
                    Reason::AcknowledgementOverdue,
                    "RotateKeys",
                    note,
                ));
            }
            told
        }
    }
}

/// Time at which to plan again.
pub(crate) fn due(plan: &Plan) -> Timestamp {
    match plan {
        Plan::Keep { until } | Plan::Wait { until, .. } | Plan::Full { until } => *until,
        // These are carried out immediately.
        Plan::Expire | Plan::Renew | Plan::Clamp | Plan::Rotate { .. } => Timestamp::UNIX_EPOCH,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::ring::fixtures::{POLICY, at, ring, secret};

    fn farm(status: Value) -> TLSFarm {
        serde_json::from_value(json!({
            "apiVersion": "tlsfarm.dev/v1alpha1",
            "kind": "TLSFarm",
            "metadata": {"name": "shop", "resourceVersion": "1"},
            "spec": {"hosts": []},
            "status": status,
        }))
        .expect("a farm")
    }

    fn in_status(generation: u64) -> Value {
        json!({"ring": {
            "generation": generation, "primary": "", "keys": [], "acknowledged": 0, "acked": "",
            "lastRotation": "2026-01-01T00:00:00Z", "nextRotation": "2026-01-01T01:00:00Z",
        }})
    }

    fn acknowledged(generations: &[Option<u64>]) -> Vec<Acknowledgement> {
        let generations = generations.iter();
        let acknowledgements = generations.map(|&generation| Acknowledgement {
            proxy: "a".into(),
            generation,
            opens: None,
        });
        acknowledgements.collect()
    }

    #[test]
    fn the_newest_generation_is_the_highest_reported_anywhere() {
        let mut remembering = FarmMemory::default();
        remembering.ring = Some(ring().reissued(6, at(0)));
        let nothing = FarmMemory::default();
        let (new, old) = (farm(Value::Null), farm(in_status(5)));
        assert_eq!(newest_generation(&new, &nothing, &acknowledged(&[None])), 0);
        assert_eq!(newest_generation(&new, &remembering, &[]), 6);
        assert_eq!(newest_generation(&old, &nothing, &[]), 5);
        assert_eq!(
            newest_generation(&old, &remembering, &acknowledged(&[Some(4)])),
            6
        );
        let mut wrote = FarmMemory::default();
        let mut newer = farm(in_status(9));
        newer.metadata.resource_version = Some("2".into());
        wrote.wrote_status(&newer);
        let behind = newest_generation(&old, &wrote, &[]);
        assert_eq!(behind, 9, "the watch is behind what was written");
        let heard = acknowledged(&[None, Some(7), Some(3)]);
        assert_eq!(newest_generation(&old, &remembering, &heard), 7);
    }

    #[test]
    fn a_kept_ring_is_remembered_for_repairs() {
        let mut memory = FarmMemory::default();
        let waiting = Plan::Keep { until: at(3600) };
        let step = kept(&mut memory, ring(), waiting.clone());
        assert_eq!(
            (step.plan, step.overtaken, step.told.len()),
            (Some(waiting), false, 0)
        );
        assert!(memory.ring.is_some());
        assert_eq!(memory.awaited, None, "it was not written now");
    }

    #[test]
    fn a_written_ring_is_awaited_and_a_repair_is_shown_until_the_next_ring() {
        let mut memory = FarmMemory::default();
        let first = ring();
        wrote(
            &mut memory,
            first.clone(),
            Change::Repaired("it was missing".into()),
        );
        assert_eq!((memory.awaited, memory.ring.as_ref()), (Some(1), Some(&first)));
        assert_eq!(memory.repair(1), Some("it was missing"));
        assert_eq!(memory.repair(2), None, "another operator wrote the next ring");
        let second = first.rotated(secret(), None, &POLICY, at(5));
        wrote(&mut memory, second.clone(), Change::Rotated { late: Vec::new() });
        assert_eq!((memory.awaited, memory.ring.as_ref()), (Some(2), Some(&second)));
        assert_eq!((memory.repair(1), memory.repair(2)), (None, None));
    }

    #[test]
    fn events_report_rotations_overdue_proxies_and_repairs() {
        let told = |change| events_of(&change, 7, "0a1b");
        assert_eq!(told(Change::Created), []);
        assert_eq!(told(Change::Expired), []);
        assert_eq!(
            told(Change::Repaired("it was missing".into())),
            [NewEvent::warning("RingRepaired", "RepairRing", "it was missing")]
        );
        let rotated = NewEvent::normal(
            "KeysRotated",
            "RotateKeys",
            "key 0a1b now seals tickets (ring generation 7)",
        );
        assert_eq!(
            told(Change::Rotated { late: Vec::new() }),
            std::slice::from_ref(&rotated)
        );
        let overdue = NewEvent::warning(
            "AcknowledgementOverdue",
            "RotateKeys",
            "rotated to ring generation 7 without acknowledgement from a, b",
        );
        let late = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(told(Change::Rotated { late }), [rotated, overdue]);
    }

    #[test]
    fn waiting_plans_are_made_again_when_the_wait_is_over() {
        let until = at(90);
        let missing = vec!["a".to_owned()];
        for waits in [
            Plan::Keep { until },
            Plan::Wait { missing, until },
            Plan::Full { until },
        ] {
            assert_eq!(due(&waits), until);
        }
        let rotate = Plan::Rotate {
            request: None,
            late: Vec::new(),
        };
        for at_once in [Plan::Expire, rotate] {
            assert!(due(&at_once) < at(0));
        }
    }
}
