//! One pass over a farm: validate → build → apply → observe → rotate → status.
//!
//! A pass may be cut off anywhere and run again: every write is either idempotent or a compare-and-swap. The ring comes
//! before the objects, so that the first pods find it; proxies are observed before both, since what they acknowledged
//! decides on the ring.

mod backends;
mod invalid;
mod ring;
mod session_cache;
mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::Resource;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use tracing::{debug, warn};

use self::ring::{RingInputs, RingStep, reconcile_ring};
use self::session_cache::CacheStep;
use super::build::{self, Desired};
use super::cluster::apply::{self, ApplyError, Inspection, Live};
use super::cluster::events::NewEvent;
use super::cluster::ring_secret::{self, StoredRing};
use super::context::Context;
use super::decide::rotation;
use super::decide::schedule::{ScheduleInputs, next_pass, retry_after};
use super::decide::status::{StatusInputs, is_ready};
use super::decide::validate::{FarmRefusal, validate};
use super::error::ReconcileError;
use super::fleet::memory::{FarmMemory, Farms, Objects};
use super::fleet::observe::{self, Observed};
use super::fleet::refresh::{self, RefreshTarget};
use super::metrics::OperatorMetrics;
use super::names::{FarmId, FarmKey, Ownership};
use crate::api::{BackendRef, SessionCacheMode, TLSFarm};
use crate::ring::{Plan, RotationPolicy};

/// How long one pass may take: far more than any does unless the API server hangs.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// How often a farm that is being deleted is looked for.
const DELETION_INTERVAL: Duration = Duration::from_secs(5);

/// After how many failures in a row the farm's events tell of it.
const FAILURES_TO_TELL: u32 = 3;

/// What all objects should be, and what they are.
struct Prepared {
    desired: Desired,
    missing_backends: Vec<BackendRef>,
    inspection: Inspection,
}

/// Passes once over the farm.
pub(super) async fn reconcile(
    farm: Arc<DeserializeGuard<TLSFarm>>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let Some(id) = FarmId::of(farm.meta()) else {
        return Ok(Action::await_change());
    };
    if farm.meta().deletion_timestamp.is_some() {
        // The cluster takes the objects away, and creating them again would only delay it. The next look finds that the
        // farm is gone, and forgets it.
        return Ok(Action::requeue(DELETION_INTERVAL));
    }
    let started = Instant::now();
    let pass = async {
        match &farm.0 {
            Ok(farm) => pass(farm, &id, &context).await,
            Err(invalid) => invalid::report(invalid, &id, &context).await,
        }
    };
    let limited = tokio::time::timeout(TIME_LIMIT, pass).await;
    let result = limited.unwrap_or(Err(ReconcileError::Timeout(TIME_LIMIT)));
    context
        .metrics
        .reconciled(started.elapsed(), result.as_ref().err());
    match &result {
        Ok(next) => {
            debug!(namespace = id.namespace(), farm = id.name(), took = ?started.elapsed(), ?next, "passed over a farm");
            context.farms.succeeded(&id.key);
        }
        Err(error) => fail(&farm, &id, &context, error).await,
    }
    result.map(Action::requeue)
}

/// Notes that a pass failed.
async fn fail(farm: &DeserializeGuard<TLSFarm>, id: &FarmId, context: &Context, error: &ReconcileError) {
    // What was noticed may not have been carried out.
    context.farms.touch(&id.key);
    let failures = context.farms.failed(&id.key);
    if let ReconcileError::NamespaceTerminating { .. } = error {
        debug!(namespace = id.namespace(), farm = id.name(), %error, "a farm goes with its namespace");
        return;
    }
    warn!(namespace = id.namespace(), farm = id.name(), %error, "a farm is not reconciled, will try again");
    if failures == FAILURES_TO_TELL {
        let told = NewEvent::warning(
            format!("{}Failed", error.reason()),
            "Reconcile",
            error.to_string(),
        );
        context
            .events
            .publish(&farm.object_ref(&()), [told], &context.metrics)
            .await;
    }
}

/// Decides when a failed pass is repeated.
pub(super) fn after_failure(
    farm: Arc<DeserializeGuard<TLSFarm>>,
    _error: &ReconcileError,
    context: Arc<Context>,
) -> Action {
    let failures = FarmId::of(farm.meta()).map_or(1, |id| context.farms.failures(&id.key));
    Action::requeue(retry_after(failures, rand::random()))
}

async fn pass(farm: &TLSFarm, id: &FarmId, context: &Context) -> Result<Duration, ReconcileError> {
    let Context {
        client,
        farms,
        metrics,
        ..
    } = context;
    let mut memory = farms.memory(id).await;
    let memory = &mut *memory;
    let services = backends::backends(farm)
        .into_iter()
        .map(|backend| backend.service.clone());
    farms.set_backends(&id.key, services.collect());
    let touched = farms.take_touched(&id.key);

    let stored = ring_secret::read(client, id).await?;
    let has_sidecars = farm.spec.resumption.session_cache.mode == SessionCacheMode::Sidecar;
    let cache_secrets = if has_sidecars {
        Some(session_cache::read(client, id).await?)
    } else {
        None
    };
    let verdict = {
        let known = context.store.state();
        let known = known.iter().filter_map(|other| other.0.as_ref().ok());
        let foreign_cache = cache_secrets.as_ref().and_then(|secrets| secrets.foreign(id));
        judge(farm, id, known, &stored, foreign_cache)
    };
    let prepared = if memory.must_look(touched, farm.metadata.generation, &verdict) {
        Some(prepare(farm, id, context).await?)
    } else {
        None
    };
    let inspection = prepared.as_ref().map(|prepared| &prepared.inspection);
    let accepted = memory.is_accepted(&verdict, inspection);
    let proxies = observe::observe(client, id, farm, &mut memory.proxies).await?;

    let policy = rotation::policy(&farm.spec.resumption.tickets);
    let situation = RingInputs {
        farm,
        id,
        proxies: &proxies,
        policy: &policy,
        may_create: accepted,
    };
    let ring_step = reconcile_ring(&situation, stored, context, memory).await;
    let mut failure = None;
    let ring_step = ring_step.unwrap_or_else(|error| {
        failure = Some(error);
        RingStep::default()
    });
    let mut cache_step = CacheStep::default();
    if let Some(secrets) = cache_secrets {
        memory.cache_secrets_gone = false;
        let now = Timestamp::now();
        match session_cache::reconcile_certificates(id, secrets, accepted, context, now).await {
            Ok(step) => cache_step = step,
            Err(error) => _ = failure.get_or_insert(error),
        }
    }
    if let Some(prepared) = prepared {
        let objects = carry_out(farm, id, context, memory, prepared, verdict, &mut failure).await;
        memory.objects = Some(objects);
    }
    let objects = memory
        .objects
        .clone()
        .expect("the objects are looked at whenever none are remembered");

    if memory.must_remove_certificates(has_sidecars, failure.is_some()) {
        match session_cache::remove(context, id).await {
            Ok(gone) => memory.cache_secrets_gone = gone,
            Err(error) => _ = failure.get_or_insert(error),
        }
    }

    let now = Timestamp::now();
    let generation = memory.ring.as_ref().map(|ring| ring.generation);
    let seen = memory
        .ring
        .as_ref()
        .map(|ring| (ring.generation, ring.changed_at));
    let observed = observe::follow(proxies, &mut memory.proxies, seen);
    let target = RefreshTarget {
        ring: generation,
        config: objects.live.config.as_deref(),
    };
    refresh::refresh(client, id, target, &observed, &mut memory.proxies, metrics, now).await;
    context
        .events
        .publish(&farm.object_ref(&()), ring_step.told, metrics)
        .await;

    let problem = failure.as_ref().map(ToString::to_string);
    let facts = StatusInputs {
        farm,
        id,
        refusal: objects.refusal.as_ref(),
        missing_backends: &objects.missing_backends,
        live: &objects.live,
        problem: problem.as_deref(),
        proxies: &observed,
        ring: memory.ring.as_ref(),
        plan: ring_step.plan.as_ref(),
        policy: &policy,
        repaired: generation.and_then(|generation| memory.repair(generation)),
        certificate_renewal: cache_step.renewal,
        now,
    };
    let status = crate::operator::decide::status::status(&facts, memory.status(farm));
    let ready = is_ready(&status);
    status::publish(farm, id, context, memory, status).await?;
    if let Some(error) = failure {
        return Err(error);
    }

    let is_loading = count_acknowledgements(&observed, target, memory, metrics, now);
    let outlook = ScheduleInputs {
        loading_for: memory.loading(is_loading, target.ring, target.config, now),
        refused: objects.refusal.is_some(),
        ready,
        overtaken: ring_step.overtaken || cache_step.overtaken,
        due: due(ring_step.plan.as_ref(), cache_step.due, &observed, &policy, now),
    };
    Ok(next_pass(&outlook, now))
}

/// What can be said against the farm before its objects are looked at. `known` are the farms of all namespaces.
fn judge<'a>(
    farm: &TLSFarm,
    id: &FarmId,
    known: impl Iterator<Item = &'a TLSFarm>,
    ring: &StoredRing,
    foreign_cache: Option<(String, Ownership)>,
) -> Result<(), FarmRefusal> {
    let neighbours = known.filter(|other| other.metadata.namespace.as_deref() == Some(id.namespace()));
    validate(farm, neighbours)?;
    let foreign = match ring {
        StoredRing::Foreign(ownership) => Some((id.ring_name(), *ownership)),
        _ => foreign_cache,
    };
    let conflict =
        foreign.and_then(|(name, ownership)| apply::conflict(&format!("Secret {name}"), ownership));
    conflict.map_or(Ok(()), Err)
}

async fn prepare(farm: &TLSFarm, id: &FarmId, context: &Context) -> Result<Prepared, ReconcileError> {
    let ports = backends::resolve(&context.client, id, farm).await?;
    let missing = ports.iter().filter(|(_, name)| name.is_none());
    let desired = build::build(farm, id, &ports, &context.image);
    Ok(Prepared {
        missing_backends: missing.map(|(backend, _)| backend.clone()).collect(),
        inspection: apply::inspect(&context.client, id, &desired).await?,
        desired,
    })
}

/// Applies what was prepared, unless the farm is not accepted.
async fn carry_out(
    farm: &TLSFarm,
    id: &FarmId,
    context: &Context,
    memory: &mut FarmMemory,
    prepared: Prepared,
    verdict: Result<(), FarmRefusal>,
    failure: &mut Option<ReconcileError>,
) -> Objects {
    let Prepared {
        desired,
        missing_backends,
        inspection,
    } = prepared;
    let as_found = inspection.live(id);
    let conflict = inspection.conflict.clone();
    let refusal = verdict.clone().err().or(conflict);
    let mut objects = Objects {
        generation: farm.metadata.generation,
        verdict,
        refusal,
        missing_backends,
        live: as_found,
        failed: failure.is_some(),
    };
    if objects.refusal.is_some() {
        return objects;
    }
    let Context { client, metrics, .. } = context;
    match apply::apply(client, id, &desired, inspection, &mut memory.applied, metrics).await {
        Ok(live) => {
            objects.live = Live {
                config: Some(desired.config_fingerprint),
                ..live
            }
        }
        Err(ApplyError::Refused(refusal)) => objects.refusal = Some(refusal),
        Err(ApplyError::Failed(error)) => {
            objects.failed = true;
            failure.get_or_insert(error);
        }
    }
    objects
}

/// Whether ready proxies are still loading what they should; measures how long a ring that we wrote took.
fn count_acknowledgements(
    observed: &[Observed],
    target: RefreshTarget<'_>,
    memory: &mut FarmMemory,
    metrics: &OperatorMetrics,
    now: Timestamp,
) -> bool {
    let mut ready = observed.iter().filter(|one| one.proxy.is_ready()).peekable();
    if ready.peek().is_none() {
        return false;
    }
    let (mut acknowledged, mut configured) = (true, true);
    for one in ready {
        acknowledged &= target
            .ring
            .is_none_or(|generation| one.memory.has_acknowledged(generation));
        configured &= target.config.is_none_or(|config| one.memory.runs(config)) && !one.memory.is_shaky();
    }
    if acknowledged && let Some(took) = memory.acknowledged(now) {
        metrics.acknowledged(took);
    }
    !acknowledged || !configured
}

/// The first moment from now on at which there is something to do by the clock: for the ring, for the certificates of
/// the caches, or because a proxy's acknowledgement is overdue then.
fn due(
    plan: Option<&Plan>,
    certificates: Option<Timestamp>,
    observed: &[Observed],
    policy: &RotationPolicy,
    now: Timestamp,
) -> Option<Timestamp> {
    let behind_since = observed.iter().filter_map(|one| one.memory.behind_since).min();
    let overdue = behind_since.map(|since| since + policy.max_unacked_wait);
    let moments = [plan.map(ring::due), certificates, overdue];
    moments.into_iter().flatten().filter(|due| *due > now).min()
}

/// Drops what is remembered of a farm that is gone.
pub(super) fn forget(farm: &FarmKey, farms: &Farms, metrics: &OperatorMetrics) {
    farms.forget(farm);
    metrics.forget(farm);
}

#[cfg(test)]
mod tests;
