//! State that the operator keeps in memory between reconciliations. It is not persisted: after a restart it is rebuilt
//! or does not matter.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::observe::ProxyMemory;
use crate::api::{TLSFarm, TLSFarmStatus};
use crate::operator::cluster::apply::{Applied, Inspection, Live};
use crate::operator::decide::backend::BackendFault;
use crate::operator::decide::validate::FarmRefusal;
use crate::operator::names::{FarmId, FarmKey};
use crate::ring::{Ring, RotationRequest};

/// State of one farm.
#[derive(Default)]
pub(crate) struct FarmMemory {
    uid: String,
    /// Result of the last inspection of all objects.
    pub(crate) objects: Option<Objects>,
    pub(crate) applied: Applied,
    pub(crate) proxies: BTreeMap<String, ProxyMemory>,
    /// The last valid ring.
    pub(crate) ring: Option<Ring>,
    /// Generation of the ring that replaced a damaged one, and what was wrong with that.
    pub(crate) repaired: Option<(u64, String)>,
    pub(crate) request: Option<RotationRequest>,
    /// Whether the cache certificate Secrets are known to be deleted. Only the operator creates them.
    pub(crate) cache_secrets_gone: bool,
    /// Generation written by this process that not all proxies have acknowledged yet.
    pub(crate) awaited: Option<u64>,
    loading: Option<Loading>,
    written_status: Option<(u64, TLSFarmStatus)>,
}

/// Result of an inspection of a farm's objects.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    /// Generation of the spec that the objects were compared with.
    pub(crate) generation: Option<i64>,
    /// Result of the validation at that time.
    pub(crate) verdict: Result<(), FarmRefusal>,
    /// Why the farm was rejected, if it was.
    pub(crate) refusal: Option<FarmRefusal>,
    pub(crate) backend_faults: Vec<BackendFault>,
    pub(crate) live: Live,
    /// Whether a failure requires another inspection.
    pub(crate) failed: bool,
}

/// A change that ready proxies are loading.
struct Loading {
    ring: Option<u64>,
    config: Option<String>,
    since: Timestamp,
}

impl FarmMemory {
    /// Whether all objects of the farm must be inspected again. `touched`: one of them has changed.
    pub(crate) fn must_look(
        &self,
        touched: bool,
        generation: Option<i64>,
        verdict: &Result<(), FarmRefusal>,
    ) -> bool {
        self.objects.as_ref().is_none_or(|objects| {
            touched
                || objects.generation != generation
                || objects.verdict != *verdict
                || objects.failed
                || (verdict.is_ok() && objects.refusal.is_some())
        })
    }

    /// Whether the farm is accepted, by the validation of spec, neighbours and ring, and by the current or else the
    /// last inspection of its objects. A rejected farm gets no ring and no certificates.
    pub(crate) fn is_accepted(
        &self,
        verdict: &Result<(), FarmRefusal>,
        inspected: Option<&Inspection>,
    ) -> bool {
        verdict.is_ok()
            && match (inspected, &self.objects) {
                (Some(inspection), _) => inspection.conflict.is_none(),
                (None, Some(objects)) => objects.refusal.is_none(),
                (None, None) => false,
            }
    }

    /// Whether the Secrets of the caches may exist and must be deleted: for a farm without sidecars, at the end of a
    /// reconciliation.
    pub(crate) fn must_remove_certificates(&self, has_sidecars: bool, has_failed: bool) -> bool {
        let accepted = self
            .objects
            .as_ref()
            .is_some_and(|objects| objects.refusal.is_none());
        accepted && !has_sidecars && !has_failed && !self.cache_secrets_gone
    }

    /// What was wrong with the ring that the one of this generation replaced.
    pub(crate) fn repair(&self, generation: u64) -> Option<&str> {
        let repaired = self.repaired.as_ref().filter(|(at, _)| *at == generation);
        repaired.map(|(_, why)| why.as_str())
    }

    /// How long it took until every ready proxy acknowledged the ring that this process wrote; returned once.
    pub(crate) fn acknowledged(&mut self, now: Timestamp) -> Option<Duration> {
        let ring = self.ring.as_ref()?;
        let awaited = self.awaited.take() == Some(ring.generation);
        awaited.then(|| now.duration_since(ring.changed_at).unsigned_abs())
    }

    /// Records whether ready proxies are still loading this ring and configuration; returns for how long.
    pub(crate) fn loading(
        &mut self,
        is_loading: bool,
        ring: Option<u64>,
        config: Option<&str>,
        now: Timestamp,
    ) -> Option<SignedDuration> {
        if !is_loading {
            self.loading = None;
            return None;
        }
        let same = self
            .loading
            .take()
            .filter(|last| last.ring == ring && last.config.as_deref() == config);
        let since = same.map_or(now, |last| last.since);
        self.loading = Some(Loading {
            ring,
            config: config.map(str::to_owned),
            since,
        });
        Some(now.duration_since(since))
    }

    /// Records a status that was written.
    pub(crate) fn wrote_status(&mut self, written: &TLSFarm) {
        self.written_status = resource_version(written).zip(written.status.clone());
    }

    /// The newest known status: the watch may lag behind the last write.
    pub(crate) fn status<'a>(&'a self, farm: &'a TLSFarm) -> Option<&'a TLSFarmStatus> {
        match (&self.written_status, resource_version(farm)) {
            (Some((written, status)), Some(seen)) if seen < *written => Some(status),
            _ => farm.status.as_ref(),
        }
    }
}

/// Parses a resource version; those of one resource increase.
fn resource_version(farm: &TLSFarm) -> Option<u64> {
    farm.metadata.resource_version.as_ref()?.parse().ok()
}

/// State of all farms. Locks are held briefly, and never across an await, except for the lock of a farm's own state.
#[derive(Default)]
pub(crate) struct Farms {
    farms: Mutex<HashMap<FarmKey, Arc<tokio::sync::Mutex<FarmMemory>>>>,
    touched: Mutex<HashSet<FarmKey>>,
    failures: Mutex<HashMap<FarmKey, u32>>,
    backends: Mutex<BackendIndex>,
}

/// Which farms route to which Services.
#[derive(Default)]
struct BackendIndex {
    farms: HashMap<(String, String), BTreeSet<String>>,
    services: HashMap<FarmKey, BTreeSet<String>>,
}

impl Farms {
    /// Locks the state of a farm. A farm that was deleted and created again starts with new state.
    pub(crate) async fn memory(&self, id: &FarmId) -> tokio::sync::OwnedMutexGuard<FarmMemory> {
        let memory = Arc::clone(lock(&self.farms).entry(id.key.clone()).or_default());
        let mut memory = memory.lock_owned().await;
        if memory.uid != id.uid {
            *memory = FarmMemory {
                uid: id.uid.clone(),
                ..FarmMemory::default()
            };
        }
        memory
    }

    /// Records that an object of the farm, or a Service that it routes to, has changed.
    pub(crate) fn touch(&self, farm: &FarmKey) {
        lock(&self.touched).insert(farm.clone());
    }

    /// Returns and clears whether the farm was touched.
    pub(crate) fn take_touched(&self, farm: &FarmKey) -> bool {
        lock(&self.touched).remove(farm)
    }

    /// Records the Services that a farm routes to. Call it before reading them, so that no change is missed.
    pub(crate) fn set_backends(&self, farm: &FarmKey, services: BTreeSet<String>) {
        let mut index = lock(&self.backends);
        index.remove(farm);
        for service in &services {
            let key = (farm.namespace.clone(), service.clone());
            index.farms.entry(key).or_default().insert(farm.name.clone());
        }
        index.services.insert(farm.clone(), services);
    }

    /// The farms that route to a Service.
    pub(crate) fn routing_to(&self, namespace: &str, service: &str) -> Vec<FarmKey> {
        let key = (namespace.to_owned(), service.to_owned());
        let index = lock(&self.backends);
        let farms = index.farms.get(&key).into_iter().flatten();
        farms
            .map(|name| FarmKey {
                namespace: namespace.to_owned(),
                name: name.clone(),
            })
            .collect()
    }

    /// Counts a failure; returns the number of consecutive failures.
    pub(crate) fn failed(&self, farm: &FarmKey) -> u32 {
        let mut failures = lock(&self.failures);
        let count = failures.entry(farm.clone()).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// Number of consecutive failures.
    pub(crate) fn failures(&self, farm: &FarmKey) -> u32 {
        lock(&self.failures).get(farm).copied().unwrap_or_default()
    }

    /// Resets the number of consecutive failures.
    pub(crate) fn succeeded(&self, farm: &FarmKey) {
        lock(&self.failures).remove(farm);
    }

    /// Removes the state of a deleted farm.
    pub(crate) fn forget(&self, farm: &FarmKey) {
        lock(&self.farms).remove(farm);
        lock(&self.touched).remove(farm);
        lock(&self.failures).remove(farm);
        lock(&self.backends).remove(farm);
    }
}

impl BackendIndex {
    fn remove(&mut self, farm: &FarmKey) {
        for service in self.services.remove(farm).unwrap_or_default() {
            let key = (farm.namespace.clone(), service);
            if let Some(farms) = self.farms.get_mut(&key) {
                farms.remove(&farm.name);
                if farms.is_empty() {
                    self.farms.remove(&key);
                }
            }
        }
    }
}

/// Locks a mutex and ignores poisoning: values are consistent between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
