//! One reconciliation of a farm: read, validate, inspect, observe, then write the ring, the cache certificates, the
//! objects and the status, in this order.
//!
//! It can be interrupted at any point and repeated: every write is either idempotent or a compare-and-swap. The ring is
//! written before the objects, so that the first pods find it; proxies are observed before both, because the ring
//! depends on their acknowledgements. A failed step does not stop the others, so that a rotation never waits for a
//! Service that fails to apply: the first error is reported in the status, and the reconciliation fails at the end.

use std::time::Duration;

use jiff::Timestamp;
use kube::Resource;

use super::ring::{self, RingInputs, RingStep, reconcile_ring};
use super::session_cache::{self, CacheSecrets, CacheStep};
use super::{backends, status};
use crate::api::{SessionCacheMode, TLSFarm, TLSFarmStatus};
use crate::operator::build::{self, Desired};
use crate::operator::cluster::apply::{self, ApplyError, Inspection, Live};
use crate::operator::cluster::ring_secret::{self, StoredRing};
use crate::operator::context::Context;
use crate::operator::decide;
use crate::operator::decide::backend::BackendFault;
use crate::operator::decide::rotation;
use crate::operator::decide::schedule::{ScheduleInputs, next_pass};
use crate::operator::decide::status::{StatusInputs, is_ready};
use crate::operator::decide::validate::{FarmRefusal, validate};
use crate::operator::error::ReconcileError;
use crate::operator::fleet::memory::{FarmMemory, Objects};
use crate::operator::fleet::observe::{self, Observed};
use crate::operator::fleet::pods::ProxyPod;
use crate::operator::fleet::refresh::{self, RefreshTarget};
use crate::operator::metrics::OperatorMetrics;
use crate::operator::names::{FarmId, Ownership};
use crate::ring::{Plan, RotationPolicy};

/// Reconciles a farm once; returns the time until the next reconciliation.
///
/// # Errors
///
/// Returns the error of the first step that failed. The other steps run, and the status is written.
pub(super) async fn pass(farm: &TLSFarm, id: &FarmId, context: &Context) -> Result<Duration, ReconcileError> {
    let mut memory = context.farms.memory(id).await;
    let mut pass = Pass {
        farm,
        id,
        context,
        memory: &mut memory,
        policy: rotation::policy(&farm.spec.resumption.tickets),
        failure: None,
    };
    let touched = pass.watch_backends();
    let ring = ring_secret::read(&context.client, id).await?;
    let cache_secrets = pass.read_cache_secrets().await?;
    let verdict = pass.judge(&ring, cache_secrets.as_ref());
    let prepared = pass.prepare(touched, &verdict).await?;
    let inspection = prepared.as_ref().map(|prepared| &prepared.inspection);
    let accepted = pass.memory.is_accepted(&verdict, inspection);
    let proxies = observe::observe(&context.client, id, farm, &mut pass.memory.proxies).await?;

    let ring_step = pass.reconcile_ring(&proxies, ring, accepted).await;
    let cache_step = pass.reconcile_certificates(cache_secrets, accepted).await;
    let objects = pass.apply_objects(prepared, verdict).await;
    pass.remove_certificates().await;
    pass.finish(proxies, ring_step, cache_step, objects).await
}

/// State shared by the steps of one reconciliation.
struct Pass<'a> {
    farm: &'a TLSFarm,
    id: &'a FarmId,
    context: &'a Context,
    memory: &'a mut FarmMemory,
    policy: RotationPolicy,
    /// The first error of a step.
    failure: Option<ReconcileError>,
}

/// The desired and the existing objects.
struct Prepared {
    desired: Desired,
    backend_faults: Vec<BackendFault>,
    inspection: Inspection,
}

impl Pass<'_> {
    /// Returns the result of a step; on failure records the error and returns the default.
    fn attempt<T: Default>(&mut self, outcome: Result<T, ReconcileError>) -> T {
        outcome.unwrap_or_else(|error| {
            self.failure.get_or_insert(error);
            T::default()
        })
    }

    fn has_sidecars(&self) -> bool {
        self.farm.spec.resumption.session_cache.mode == SessionCacheMode::Sidecar
    }

    /// Records the Services that the farm routes to; returns whether any object of the farm has changed since the last
    /// reconciliation.
    fn watch_backends(&self) -> bool {
        let services = backends::backends(self.farm).into_iter();
        let services = services.map(|backend| backend.service.clone());
        let farms = &self.context.farms;
        farms.set_backends(&self.id.key, services.collect());
        farms.take_touched(&self.id.key)
    }

    async fn read_cache_secrets(&self) -> Result<Option<CacheSecrets>, ReconcileError> {
        match self.has_sidecars() {
            true => Ok(Some(session_cache::read(&self.context.client, self.id).await?)),
            false => Ok(None),
        }
    }

    fn judge(&self, ring: &StoredRing, cache_secrets: Option<&CacheSecrets>) -> Result<(), FarmRefusal> {
        let known = self.context.store.state();
        let known = known.iter().filter_map(|other| other.0.as_ref().ok());
        let foreign_cache = cache_secrets.and_then(|secrets| secrets.foreign(self.id));
        judge(self.farm, self.id, known, ring, foreign_cache)
    }

    /// Builds the desired objects and inspects the existing ones. None if nothing can have changed.
    async fn prepare(
        &self,
        touched: bool,
        verdict: &Result<(), FarmRefusal>,
    ) -> Result<Option<Prepared>, ReconcileError> {
        let generation = self.farm.metadata.generation;
        if !self.memory.must_look(touched, generation, verdict) {
            return Ok(None);
        }
        let client = &self.context.client;
        let backends = backends::resolve(client, self.id, self.farm).await?;
        let desired = build::build(self.farm, self.id, &backends.ports, &self.context.pod_defaults);
        Ok(Some(Prepared {
            backend_faults: backends.faults,
            inspection: apply::inspect(client, self.id, &desired).await?,
            desired,
        }))
    }

    async fn reconcile_ring(&mut self, proxies: &[ProxyPod], ring: StoredRing, accepted: bool) -> RingStep {
        let inputs = RingInputs {
            farm: self.farm,
            id: self.id,
            proxies,
            policy: &self.policy,
            may_create: accepted,
        };
        let step = reconcile_ring(&inputs, ring, self.context, self.memory).await;
        self.attempt(step)
    }

    async fn reconcile_certificates(&mut self, secrets: Option<CacheSecrets>, accepted: bool) -> CacheStep {
        let Some(secrets) = secrets else {
            return CacheStep::default();
        };
        self.memory.cache_secrets_gone = false;
        let now = Timestamp::now();
        let step = session_cache::reconcile_certificates(self.id, secrets, accepted, self.context, now).await;
        self.attempt(step)
    }

    /// Applies the prepared objects, unless the farm was rejected. Returns the state of the objects.
    async fn apply_objects(
        &mut self,
        prepared: Option<Prepared>,
        verdict: Result<(), FarmRefusal>,
    ) -> Objects {
        if let Some(prepared) = prepared {
            let objects = self.apply_prepared(prepared, verdict).await;
            self.memory.objects = Some(objects);
        }
        let objects = self.memory.objects.clone();
        objects.expect("the objects are looked at whenever none are remembered")
    }

    async fn apply_prepared(&mut self, prepared: Prepared, verdict: Result<(), FarmRefusal>) -> Objects {
        let Prepared {
            desired,
            backend_faults,
            inspection,
        } = prepared;
        let conflict = inspection.conflict.clone();
        let refusal = verdict.clone().err().or(conflict);
        let mut objects = Objects {
            generation: self.farm.metadata.generation,
            verdict,
            refusal,
            backend_faults,
            live: inspection.live(self.id),
            failed: self.failure.is_some(),
        };
        if objects.refusal.is_some() {
            return objects;
        }
        let Context { client, metrics, .. } = self.context;
        let applied = &mut self.memory.applied;
        match apply::apply(client, self.id, &desired, inspection, applied, metrics).await {
            Ok(live) => {
                objects.live = Live {
                    config: Some(desired.config_fingerprint),
                    ..live
                }
            }
            Err(ApplyError::Refused(refusal)) => objects.refusal = Some(refusal),
            Err(ApplyError::Failed(error)) => {
                objects.failed = true;
                self.failure.get_or_insert(error);
            }
        }
        objects
    }

    /// Deletes the certificate Secrets of a farm without sidecars.
    async fn remove_certificates(&mut self) {
        let has_failed = self.failure.is_some();
        if self
            .memory
            .must_remove_certificates(self.has_sidecars(), has_failed)
        {
            let gone = session_cache::remove(self.context, self.id).await;
            self.memory.cache_secrets_gone = self.attempt(gone);
        }
    }

    /// Refreshes proxies that are behind, publishes Events and status, and returns the time until the next
    /// reconciliation.
    async fn finish(
        self,
        proxies: Vec<ProxyPod>,
        ring_step: RingStep,
        cache_step: CacheStep,
        objects: Objects,
    ) -> Result<Duration, ReconcileError> {
        let Self {
            farm,
            id,
            context,
            memory,
            policy,
            failure,
        } = self;
        let Context { client, metrics, .. } = context;
        let now = Timestamp::now();
        let generation = memory.ring.as_ref().map(|ring| ring.generation);
        let seen = memory.ring.as_ref().map(|ring| (ring.version(), ring.changed_at));
        let observed = observe::follow(proxies, &mut memory.proxies, seen);
        let target = RefreshTarget {
            ring: seen.map(|(version, _)| version),
            config: objects.live.config.as_deref(),
        };
        refresh::refresh(client, id, target, &observed, &mut memory.proxies, metrics, now).await;
        let events = &context.events;
        events
            .publish(&farm.object_ref(&()), ring_step.told, metrics)
            .await;

        let problem = failure.as_ref().map(ToString::to_string);
        let inputs = StatusInputs {
            farm,
            id,
            refusal: objects.refusal.as_ref(),
            backend_faults: &objects.backend_faults,
            live: &objects.live,
            problem: problem.as_deref(),
            proxies: &observed,
            ring: memory.ring.as_ref(),
            plan: ring_step.plan.as_ref(),
            unknown_format: ring_step.unknown_format,
            policy: &policy,
            repaired: generation.and_then(|generation| memory.repair(generation)),
            certificate_renewal: cache_step.renewal,
            now,
        };
        let status: TLSFarmStatus = decide::status::status(&inputs, memory.status(farm));
        let ready = is_ready(&status);
        status::publish(farm, id, context, memory, status).await?;
        if let Some(error) = failure {
            return Err(error);
        }

        let is_loading = count_acknowledgements(&observed, target, memory, metrics, now);
        let schedule = ScheduleInputs {
            loading_for: memory.loading(is_loading, generation, target.config, now),
            refused: objects.refusal.is_some(),
            ready,
            overtaken: ring_step.overtaken || cache_step.overtaken,
            due: due(ring_step.plan.as_ref(), cache_step.due, &observed, &policy, now),
        };
        Ok(next_pass(&schedule, now))
    }
}

/// Validates the farm before its objects are inspected. `known` are the farms of all namespaces.
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

/// Returns how long ready proxies have been loading a change; measures the time until a ring was acknowledged.
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
        acknowledged &= target.ring.is_none_or(|ring| one.memory.has_acknowledged(ring));
        configured &= target.config.is_none_or(|config| one.memory.runs(config)) && !one.memory.is_shaky();
    }
    if acknowledged && let Some(took) = memory.acknowledged(now) {
        metrics.acknowledged(took);
    }
    !acknowledged || !configured
}

/// The next scheduled time: of the ring, of the cache certificates, or when an acknowledgement becomes overdue.
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

#[cfg(test)]
mod tests;
