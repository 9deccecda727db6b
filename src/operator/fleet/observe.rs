//! Observes the farm's proxies: their pods, their reports, and the state remembered of each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::pods::{ProxyPod, proxies};
use super::poll::poll;
use crate::api::TLSFarm;
use crate::operator::error::ReconcileError;
use crate::operator::names::FarmId;
use crate::report::{ProxyReport, SessionCacheReport};
use crate::ring::{Acknowledgement, KeyId, MAX_KEYS, RingVersion};

/// A report stays valid until this many consecutive polls have failed, so that a single lost packet changes no
/// condition.
const MOST_FAILURES: u32 = 3;

/// Reports with a higher generation are ignored as bogus: the ring changes at most every few milliseconds.
const LARGEST_GENERATION: u64 = 1 << 48;

/// State remembered of one proxy, by the UID of its pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct ProxyMemory {
    /// The newest ring generation that it has reported. It never decreases.
    pub(crate) generation: Option<u64>,
    /// Ids of the ticket keys that it can decrypt with, by its last report.
    pub(crate) opens: Option<BTreeSet<KeyId>>,
    /// Its last report.
    pub(crate) report: Option<ProxyReport>,
    pub(crate) failures: u32,
    /// Since when it has not acknowledged the current ring.
    pub(crate) behind_since: Option<Timestamp>,
    /// Number of refreshes for the same change, and time of the last.
    pub(crate) refreshes: Option<(u32, Timestamp)>,
}

/// A proxy with its remembered state.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) proxy: ProxyPod,
    pub(crate) memory: ProxyMemory,
}

impl Observed {
    /// Session cache state in its last report.
    pub(crate) fn cache(&self) -> Option<&SessionCacheReport> {
        self.memory.report.as_ref()?.session_cache.as_ref()
    }
}

/// Lists the farm's proxies and polls each for its status.
pub(crate) async fn observe(
    client: &Client,
    id: &FarmId,
    farm: &TLSFarm,
    memory: &mut BTreeMap<String, ProxyMemory>,
) -> Result<Vec<ProxyPod>, ReconcileError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), id.namespace());
    let listed = pods.list(&ListParams::default().labels(&id.pod_selector())).await;
    let listed = listed.map_err(ReconcileError::api("list", "Pods"))?;
    let proxies = proxies(&listed.items, id, farm.creation_timestamp().map(|time| time.0));
    let reports = poll(reachable(&proxies)).await;
    hear(&proxies, reports, memory);
    Ok(proxies)
}

/// UID and address of the proxies to poll: every proxy that may serve.
fn reachable(proxies: &[ProxyPod]) -> Vec<(String, IpAddr)> {
    proxies
        .iter()
        .filter(|proxy| proxy.may_serve)
        .filter_map(|proxy| Some((proxy.uid.clone(), proxy.address?)))
        .collect()
}

/// Records reports and failed polls, and removes the state of deleted proxies.
fn hear(
    proxies: &[ProxyPod],
    reports: Vec<(String, Option<ProxyReport>)>,
    memory: &mut BTreeMap<String, ProxyMemory>,
) {
    memory.retain(|uid, _| proxies.iter().any(|proxy| proxy.uid == *uid));
    for (uid, report) in reports {
        memory.entry(uid).or_default().hear(report);
    }
}

impl ProxyMemory {
    fn hear(&mut self, report: Option<ProxyReport>) {
        match report {
            Some(report) => {
                let generation = report
                    .ring
                    .generation
                    .filter(|generation| *generation <= LARGEST_GENERATION);
                self.generation = self.generation.max(generation);
                let ids = report.ring.opens.as_ref().map(|ids| ids.iter().take(MAX_KEYS));
                self.opens = ids.map(|ids| ids.filter_map(|id| KeyId::from_hex(id)).collect());
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

    /// Whether it has loaded this ring or a later one, and can decrypt with the keys that others encrypt with now and
    /// after the next rotation. A proxy whose clock is ahead may have dropped them.
    pub(crate) fn has_acknowledged(&self, ring: RingVersion) -> bool {
        let has_loaded = self
            .generation
            .is_some_and(|generation| generation >= ring.generation);
        let opens = self.opens.as_ref();
        let is_later = self.generation > Some(ring.generation);
        let can_open = opens.is_none_or(|ids| ids.contains(&ring.next) && ids.contains(&ring.primary));
        has_loaded && (can_open || is_later)
    }

    /// Whether it has loaded the configuration with this fingerprint.
    pub(crate) fn runs(&self, config: &str) -> bool {
        self.report
            .as_ref()
            .is_some_and(|report| report.config.fingerprint == config)
    }

    /// Whether the last poll failed after earlier ones succeeded.
    pub(crate) fn is_shaky(&self) -> bool {
        self.failures > 0 && self.report.is_some()
    }
}

/// Acknowledgements of the proxies that a rotation waits for.
pub(crate) fn acknowledgements(
    proxies: &[ProxyPod],
    memory: &BTreeMap<String, ProxyMemory>,
) -> Vec<Acknowledgement> {
    proxies
        .iter()
        .filter(|proxy| proxy.may_serve)
        .map(|proxy| Acknowledgement {
            proxy: proxy.name.clone(),
            generation: memory.get(&proxy.uid).and_then(|memory| memory.generation),
            opens: memory.get(&proxy.uid).and_then(|memory| memory.opens.clone()),
        })
        .collect()
}

/// Records since when each ready proxy has been behind the ring, and joins each proxy with its remembered state.
pub(crate) fn follow(
    proxies: Vec<ProxyPod>,
    memory: &mut BTreeMap<String, ProxyMemory>,
    ring: Option<(RingVersion, Timestamp)>,
) -> Vec<Observed> {
    proxies
        .into_iter()
        .map(|proxy| {
            let memory = memory.entry(proxy.uid.clone()).or_default();
            memory.behind_since = match (ring, proxy.ready_since) {
                (Some((ring, changed_at)), Some(ready_since)) if !memory.has_acknowledged(ring) => {
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
    use serde_json::{Value, json};

    use super::*;
    use crate::operator::fleet::pods::tests::{pod, waiting};
    use crate::operator::names::id;
    use crate::ring::fixtures::{POLICY, ring, version};
    use crate::ring::{Plan, plan};

    fn report(generation: u64) -> Option<ProxyReport> {
        let mut report = ProxyReport::default();
        report.ring.generation = Some(generation);
        Some(report)
    }

    /// A pod of the farm, ready unless `change` says otherwise.
    fn named(name: &str, change: impl FnOnce(&mut Value)) -> Pod {
        pod(|pod| {
            pod["metadata"]["name"] = json!(name);
            pod["metadata"]["uid"] = json!(format!("uid-of-{name}"));
            change(pod);
        })
    }

    fn unready(pod: &mut Value) {
        pod["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
        pod["status"]["containerStatuses"] = json!([{
            "name": "proxy", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"running": {}},
        }]);
    }

    /// A farm of pods in every state, and what a pass makes of it.
    struct World {
        proxies: Vec<ProxyPod>,
        memory: BTreeMap<String, ProxyMemory>,
    }

    impl World {
        fn new() -> Self {
            let pods = [
                named("ready", |_| ()),
                named("about-to-serve", unready),
                named("being-created", |pod| {
                    unready(pod);
                    pod["status"]["containerStatuses"] = json!([waiting("ContainerCreating", 0)]);
                    pod["status"]["podIP"] = Value::Null;
                }),
                named("crashing", |pod| {
                    unready(pod);
                    pod["status"]["containerStatuses"] = json!([waiting("CrashLoopBackOff", 2)]);
                }),
                named("unscheduled", |pod| {
                    unready(pod);
                    pod["spec"]["nodeName"] = Value::Null;
                }),
                named("leaving", |pod| {
                    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:03:00Z");
                }),
            ];
            Self {
                proxies: proxies(&pods, &id("shop"), None),
                memory: BTreeMap::new(),
            }
        }

        fn reports(&mut self, reports: &[(&str, Option<u64>)]) {
            let reports = reports.iter();
            let reports =
                reports.map(|(name, generation)| (format!("uid-of-{name}"), generation.and_then(report)));
            hear(&self.proxies, reports.collect(), &mut self.memory);
        }

        /// What becomes of the ring of generation 1 once its rotation is due.
        fn plan(&self) -> Plan {
            let acknowledgements = acknowledgements(&self.proxies, &self.memory);
            let ring = ring();
            let due = ring.rotated_at + POLICY.rotation_interval;
            plan(&ring, &POLICY, None, &acknowledgements, due)
        }

        fn awaited(&self) -> Vec<String> {
            match self.plan() {
                Plan::Wait { missing, .. } => missing,
                Plan::Rotate { late, .. } => {
                    assert_eq!(late, Vec::<String>::new());
                    Vec::new()
                }
                other => panic!("{other:?} although a rotation is due"),
            }
        }
    }

    #[test]
    fn a_rotation_waits_for_starting_pods_but_not_for_failing_ones() {
        let mut world = World::new();
        assert_eq!(world.awaited(), ["about-to-serve", "being-created", "ready"]);
        world.reports(&[("ready", Some(1))]);
        assert_eq!(world.awaited(), ["about-to-serve", "being-created"]);
        world.reports(&[("about-to-serve", Some(1))]);
        assert_eq!(world.awaited(), ["being-created"]);
        world.reports(&[("being-created", Some(1))]);
        assert_eq!(world.awaited(), Vec::<String>::new());
    }

    #[test]
    fn an_older_generation_or_silence_acknowledges_nothing() {
        let mut world = World::new();
        world.reports(&[("about-to-serve", Some(1)), ("being-created", Some(1))]);
        world.reports(&[("ready", Some(0))]);
        assert_eq!(world.awaited(), ["ready"]);
        world.reports(&[("ready", None)]);
        assert_eq!(world.awaited(), ["ready"]);
        world.reports(&[("ready", Some(2))]);
        assert_eq!(world.awaited(), Vec::<String>::new());
    }

    #[test]
    fn every_proxy_that_may_serve_is_polled_if_it_has_an_address() {
        let asked: Vec<String> = reachable(&World::new().proxies)
            .into_iter()
            .map(|(uid, _)| uid)
            .collect();
        assert_eq!(asked, ["uid-of-about-to-serve", "uid-of-ready"]);
    }

    #[test]
    fn a_deleted_pod_is_forgotten_with_its_acknowledgement() {
        let mut world = World::new();
        world.reports(&[("ready", Some(1)), ("about-to-serve", Some(1))]);
        world.proxies.retain(|proxy| proxy.name != "ready");
        world.reports(&[]);
        let remembered: Vec<_> = world.memory.keys().collect();
        assert_eq!(remembered, ["uid-of-about-to-serve"]);
    }

    #[test]
    fn failed_polls_keep_the_acknowledgement_and_three_drop_the_report() {
        let mut memory = ProxyMemory::default();
        memory.hear(None);
        assert!(!memory.is_shaky(), "there is no report that could be doubted");
        memory.hear(report(4));
        assert!(!memory.is_shaky());
        memory.hear(None);
        memory.hear(None);
        assert!(memory.has_acknowledged(version(4)) && memory.is_shaky());
        memory.hear(report(4));
        assert!(!memory.is_shaky(), "an answer ends a row of failures");
        memory.hear(None);
        memory.hear(None);
        assert!(memory.report.is_some());
        memory.hear(None);
        assert!(memory.has_acknowledged(version(4)));
        assert_eq!(memory.report, None);
    }

    #[test]
    fn acknowledgements_never_decrease_and_impossible_ones_are_ignored() {
        let mut memory = ProxyMemory::default();
        assert!(!memory.has_acknowledged(version(0)), "nothing is known of it");
        memory.hear(report(4));
        memory.hear(report(3));
        assert_eq!(memory.generation, Some(4));
        assert!(
            memory.has_acknowledged(version(3))
                && memory.has_acknowledged(version(4))
                && !memory.has_acknowledged(version(5))
        );
        for lie in [u64::MAX, LARGEST_GENERATION + 1] {
            memory.hear(report(lie));
            assert_eq!(memory.generation, Some(4));
        }
        memory.hear(Some(ProxyReport::default()));
        assert_eq!(
            memory.generation,
            Some(4),
            "a proxy that has lost its ring still opened it"
        );
        memory.hear(report(LARGEST_GENERATION));
        assert_eq!(memory.generation, Some(1 << 48));
    }

    #[test]
    fn a_proxy_runs_the_configuration_that_it_reports_and_no_other() {
        let mut memory = ProxyMemory::default();
        assert!(!memory.runs("abc"));
        let mut report = ProxyReport::default();
        report.config.fingerprint = "abc".into();
        memory.hear(Some(report));
        assert!(memory.runs("abc") && !memory.runs("abcd"));
    }

    #[test]
    fn a_proxy_is_behind_from_the_first_ring_that_it_misses_until_it_catches_up() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let proxy = ProxyPod {
            name: "a".into(),
            uid: "1".into(),
            address: None,
            addresses: Vec::new(),
            node_addresses: Vec::new(),
            ready_since: Some(at(5)),
            may_serve: true,
            obstacle: None,
            refreshed_for: None,
        };
        let unready = ProxyPod {
            ready_since: None,
            ..proxy.clone()
        };
        let mut memory = BTreeMap::new();
        let mut behind = |proxy: &ProxyPod, acknowledged, ring| {
            if let Some(acknowledged) = acknowledged {
                memory
                    .entry("1".to_owned())
                    .or_insert_with(ProxyMemory::default)
                    .hear(report(acknowledged));
            }
            follow(vec![proxy.clone()], &mut memory, ring)[0]
                .memory
                .behind_since
        };
        assert_eq!(behind(&proxy, Some(1), Some((version(1), at(1)))), None);
        assert_eq!(behind(&proxy, None, Some((version(2), at(10)))), Some(at(10)));
        assert_eq!(
            behind(&proxy, None, Some((version(3), at(700)))),
            Some(at(10)),
            "the next rotation excuses nothing"
        );
        assert_eq!(behind(&proxy, Some(3), Some((version(3), at(700)))), None);
        assert_eq!(
            behind(&proxy, None, Some((version(4), at(2)))),
            Some(at(5)),
            "not before it was ready"
        );
        assert_eq!(
            behind(&unready, None, Some((version(4), at(2)))),
            None,
            "a proxy that does not serve is never late"
        );
        assert_eq!(behind(&proxy, None, None), None, "there is no ring to be behind");
    }

    #[test]
    fn a_proxy_that_has_dropped_a_key_has_not_acknowledged_its_generation() {
        let ring = version(4);
        let reporting = |generation, opens: &[KeyId]| {
            let mut one = report(generation).expect("a report");
            one.ring.opens = Some(opens.iter().map(ToString::to_string).collect());
            let mut memory = ProxyMemory::default();
            memory.hear(Some(one));
            memory.has_acknowledged(ring)
        };
        assert!(reporting(4, &[ring.next, ring.primary]));
        assert!(
            !reporting(4, &[ring.primary]),
            "its clock is ahead, or the key has expired"
        );
        assert!(!reporting(4, &[]));
        assert!(
            !reporting(3, &[ring.next, ring.primary]),
            "an older ring with the same keys"
        );
        assert!(reporting(5, &[]), "another operator wrote a later ring");
    }

    #[test]
    fn a_report_of_countless_or_malformed_keys_is_bounded() {
        let mut one = report(4).expect("a report");
        let ids = (0..100_000u32).map(|n| format!("{n:032x}"));
        one.ring.opens = Some(["x".to_owned()].into_iter().chain(ids).collect());
        let mut memory = ProxyMemory::default();
        memory.hear(Some(one));
        assert!(memory.opens.is_some_and(|ids| ids.len() < MAX_KEYS));
    }
}
