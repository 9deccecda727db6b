//! The part of a pass that tends the ring: it decides, writes at most once, and remembers.

use jiff::Timestamp;
use tracing::info;

use super::error::ReconcileError;
use super::events::Happening;
use super::memory::FarmMemory;
use super::names::FarmId;
use super::observe::acknowledgements;
use super::pods::Proxy;
use super::reconcile::Context;
use super::ring_secret::{self, Stored};
use super::rotate::{self, Change, Decision, Known};
use super::secret::Written;
use crate::api::{Reason, TLSFarm};
use crate::ring::{Plan, RotationPolicy};

/// What a pass did to the ring.
#[derive(Default)]
pub(super) struct RingStep {
    /// Another writer was faster: nothing was written, and the ring has to be read again.
    pub(super) overtaken: bool,
    /// What the ring that stays waits for.
    pub(super) plan: Option<Plan>,
    /// What there is to tell.
    pub(super) told: Vec<Happening>,
}

/// What the step goes by.
pub(super) struct Situation<'a> {
    pub(super) farm: &'a TLSFarm,
    pub(super) id: &'a FarmId,
    pub(super) proxies: &'a [Proxy],
    pub(super) policy: &'a RotationPolicy,
    /// Whether the farm may get its first ring.
    pub(super) may_create: bool,
}

/// Creates, repairs, rotates or thins out the ring, with at most one write.
pub(super) async fn tend_ring(
    situation: &Situation<'_>,
    stored: Stored,
    context: &Context,
    memory: &mut FarmMemory,
) -> Result<RingStep, ReconcileError> {
    let &Situation {
        farm,
        id,
        proxies,
        policy,
        may_create,
    } = situation;
    let now = Timestamp::now();
    memory.request = rotate::requested(farm, memory.request.as_ref(), now);
    let acknowledgements = acknowledgements(proxies, &memory.proxies);
    let generations = [
        memory.ring.as_ref().map(|ring| ring.generation),
        memory
            .status(farm)
            .and_then(|status| status.ring.as_ref())
            .map(|ring| ring.generation),
        acknowledgements.iter().filter_map(|one| one.generation).max(),
    ];
    let known = Known {
        ring: memory.ring.as_ref(),
        generation: generations.into_iter().flatten().max().unwrap_or_default(),
    };
    let request = memory.request.as_ref();
    let decision = rotate::decide(stored, known, may_create, policy, request, &acknowledgements, now)?;
    let (ring, version, change) = match decision {
        Decision::None => return Ok(RingStep::default()),
        Decision::Keep(ring, plan) => {
            context.metrics.ring(&id.key, ring.generation);
            memory.ring = Some(*ring);
            return Ok(RingStep {
                plan: Some(plan),
                ..RingStep::default()
            });
        }
        Decision::Write(ring, version, change) => (*ring, version, change),
    };
    if ring_secret::write(&context.client, id, &ring, version.as_ref()).await? == Written::Overtaken {
        info!(
            namespace = id.namespace(),
            farm = id.name(),
            "another writer was faster at the ring, reading it again"
        );
        return Ok(RingStep {
            overtaken: true,
            ..RingStep::default()
        });
    }
    let generation = ring.generation;
    info!(namespace = id.namespace(), farm = id.name(), generation, primary = %ring.primary.id, ?change, "wrote the ring");
    context.metrics.wrote("Secret");
    context.metrics.ring(&id.key, generation);
    if matches!(change, Change::Rotated { .. }) {
        context.metrics.rotated();
    }
    let told = happenings(&change, generation, &ring.primary.id.to_string());
    memory.awaited = Some(generation);
    memory.ring = Some(ring);
    memory.repaired = match change {
        Change::Repaired(why) => Some((generation, why)),
        _ => None,
    };
    Ok(RingStep {
        told,
        ..RingStep::default()
    })
}

fn happenings(change: &Change, generation: u64, primary: &str) -> Vec<Happening> {
    match change {
        Change::Created | Change::Expired => Vec::new(),
        Change::Repaired(why) => vec![Happening::warning(
            Reason::RingRepaired,
            "RepairRing",
            why.clone(),
        )],
        Change::Rotated { late } => {
            let note = format!("key {primary} seals tickets now, generation {generation}");
            let mut told = vec![Happening::normal("KeysRotated", "RotateKeys", note)];
            if !late.is_empty() {
                let note = format!(
                    "rotated to generation {generation} without waiting for {}",
                    late.join(", ")
                );
                told.push(Happening::warning(
                    Reason::AcknowledgementOverdue,
                    "RotateKeys",
                    note,
                ));
            }
            told
        }
    }
}

/// When the ring's plan has to be made again.
pub(super) fn due(plan: &Plan) -> Timestamp {
    match plan {
        Plan::Keep { until } | Plan::Wait { until, .. } | Plan::Full { until } => *until,
        // They are carried out at once.
        Plan::Expire | Plan::Rotate { .. } => Timestamp::UNIX_EPOCH,
    }
}
