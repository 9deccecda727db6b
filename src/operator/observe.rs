//! Seeing the farm's proxies: their pods, what they report, and what is remembered of each.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::error::ReconcileError;
use super::names::FarmId;
use super::pods::{Proxy, proxies};
use super::poll::poll;
use crate::api::TLSFarm;
use crate::report::{ProxyReport, SessionCacheReport};
use crate::ring::Acknowledgement;

/// A report is believed until this many polls in a row have failed, so that a single lost packet changes no condition.
const MOST_FAILURES: u32 = 3;

/// Generations above this are no honest proxy's: the ring changes at most every few milliseconds.
const LARGEST_GENERATION: u64 = 1 << 48;

/// What is remembered of one proxy, by the uid of its pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct ProxyMemory {
    /// The newest ring generation that it has reported. A mounted ring never goes back.
    pub(super) acknowledged: Option<u64>,
    /// What it last reported.
    pub(super) report: Option<ProxyReport>,
    pub(super) failures: u32,
    /// Since when it has been behind the current ring.
    pub(super) behind_since: Option<Timestamp>,
    /// How often it was told to refresh for the same change, and when.
    pub(super) refreshes: Option<(u32, Timestamp)>,
}

/// A proxy and what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    pub(super) proxy: Proxy,
    pub(super) memory: ProxyMemory,
}

impl Observed {
    /// What it last reported of the session cache.
    pub(super) fn cache(&self) -> Option<&SessionCacheReport> {
        self.memory.report.as_ref()?.session_cache.as_ref()
    }
}

/// Lists the farm's proxies and asks each for its state.
pub(super) async fn observe(
    client: &Client,
    id: &FarmId,
    farm: &TLSFarm,
    memory: &mut BTreeMap<String, ProxyMemory>,
) -> Result<Vec<Proxy>, ReconcileError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), id.namespace());
    let listed = pods.list(&ListParams::default().labels(&id.pod_selector())).await;
    let listed = listed.map_err(ReconcileError::api("list", "Pods"))?;
    let proxies = proxies(&listed.items, id, farm.creation_timestamp().map(|time| time.0));
    memory.retain(|uid, _| proxies.iter().any(|proxy| proxy.uid == *uid));

    let reachable: Vec<_> = proxies
        .iter()
        .filter(|proxy| proxy.may_serve)
        .filter_map(|proxy| Some((proxy.uid.clone(), proxy.address?)))
        .collect();
    for (uid, report) in poll(reachable).await {
        memory.entry(uid).or_default().hear(report);
    }
    Ok(proxies)
}

impl ProxyMemory {
    fn hear(&mut self, report: Option<ProxyReport>) {
        match report {
            Some(report) => {
                let generation = report
                    .ring
                    .generation
                    .filter(|generation| *generation <= LARGEST_GENERATION);
                self.acknowledged = self.acknowledged.max(generation);
                self.report = Some(report);
                self.failures = 0;
            }
            None => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= MOST_FAILURES {
                    self.report = None;
                }
            }
        }
    }

    /// Whether it has acknowledged `generation`.
    pub(super) fn has_acknowledged(&self, generation: u64) -> bool {
        self.acknowledged
            .is_some_and(|acknowledged| acknowledged >= generation)
    }

    /// Whether it runs the configuration with this fingerprint.
    pub(super) fn runs(&self, config: &str) -> bool {
        self.report
            .as_ref()
            .is_some_and(|report| report.config.fingerprint == config)
    }

    /// Whether the last poll failed although earlier ones did not.
    pub(super) fn is_shaky(&self) -> bool {
        self.failures > 0 && self.report.is_some()
    }
}

/// Who must have acknowledged the ring before it may rotate.
pub(super) fn acknowledgements(
    proxies: &[Proxy],
    memory: &BTreeMap<String, ProxyMemory>,
) -> Vec<Acknowledgement> {
    proxies
        .iter()
        .filter(|proxy| proxy.may_serve)
        .map(|proxy| Acknowledgement {
            proxy: proxy.name.clone(),
            generation: memory.get(&proxy.uid).and_then(|memory| memory.acknowledged),
        })
        .collect()
}

/// Notes since when each ready proxy has been behind the ring, and joins each proxy with what is known of it.
pub(super) fn follow(
    proxies: Vec<Proxy>,
    memory: &mut BTreeMap<String, ProxyMemory>,
    ring: Option<(u64, Timestamp)>,
) -> Vec<Observed> {
    proxies
        .into_iter()
        .map(|proxy| {
            let memory = memory.entry(proxy.uid.clone()).or_default();
            memory.behind_since = match (ring, proxy.ready_since) {
                (Some((generation, changed_at)), Some(ready_since))
                    if !memory.has_acknowledged(generation) =>
                {
                    Some(memory.behind_since.unwrap_or(changed_at.max(ready_since)))
                }
                _ => None,
            };
            let memory = memory.clone();
            Observed { proxy, memory }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(generation: u64) -> Option<ProxyReport> {
        let mut report = ProxyReport::default();
        report.ring.generation = Some(generation);
        Some(report)
    }

    #[test]
    fn a_failed_poll_loses_no_acknowledgement_and_few_lose_no_report() {
        let mut memory = ProxyMemory::default();
        memory.hear(report(4));
        memory.hear(None);
        memory.hear(None);
        assert!(memory.has_acknowledged(4) && memory.is_shaky());
        memory.hear(None);
        assert!(memory.has_acknowledged(4));
        assert_eq!(memory.report, None);
    }

    #[test]
    fn acknowledgements_never_go_back_and_lies_are_not_believed() {
        let mut memory = ProxyMemory::default();
        memory.hear(report(4));
        memory.hear(report(3));
        assert_eq!(memory.acknowledged, Some(4));
        memory.hear(report(u64::MAX));
        assert_eq!(memory.acknowledged, Some(4));
    }

    #[test]
    fn a_proxy_is_behind_from_the_first_ring_that_it_misses_until_it_catches_up() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let proxy = Proxy {
            name: "a".into(),
            uid: "1".into(),
            address: None,
            ready_since: Some(at(5)),
            may_serve: true,
            obstacle: None,
            refreshed_for: None,
        };
        let mut memory = BTreeMap::new();
        let mut behind = |acknowledged, ring| {
            if let Some(acknowledged) = acknowledged {
                memory
                    .entry("1".to_owned())
                    .or_insert_with(ProxyMemory::default)
                    .hear(report(acknowledged));
            }
            follow(vec![proxy.clone()], &mut memory, Some(ring))[0]
                .memory
                .behind_since
        };
        assert_eq!(behind(Some(1), (1, at(1))), None);
        assert_eq!(behind(None, (2, at(10))), Some(at(10)));
        assert_eq!(
            behind(None, (3, at(700))),
            Some(at(10)),
            "the next rotation excuses nothing"
        );
        assert_eq!(behind(Some(3), (3, at(700))), None);
        assert_eq!(behind(None, (4, at(2))), Some(at(5)), "not before it was ready");
    }
}
