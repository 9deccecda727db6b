//! What the tests of the status go by.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::*;
use crate::api::{Condition, ConditionStatus, ConditionType, Reason, TLSFarm};
use crate::operator::decide::backend::BackendFault;
use crate::operator::decide::validate::FarmRefusal;
use crate::operator::fleet::observe::{Observed, ProxyMemory};
use crate::operator::fleet::pods::ProxyPod;
use crate::operator::names::{FarmId, id};
use crate::report::{CertificateReport, Problem, ProxyReport, SessionCacheReport};
use crate::ring::Plan;
use crate::ring::fixtures::{POLICY, at, ring};

/// A farm of three proxies of which everything is well.
pub(in crate::operator::decide::status) struct World {
    pub(in crate::operator::decide::status) farm: TLSFarm,
    id: FarmId,
    pub(in crate::operator::decide::status) refusal: Option<FarmRefusal>,
    pub(in crate::operator::decide::status) backend_faults: Vec<BackendFault>,
    pub(in crate::operator::decide::status) live: Live,
    pub(in crate::operator::decide::status) problem: Option<String>,
    pub(in crate::operator::decide::status) proxies: Vec<Observed>,
    pub(in crate::operator::decide::status) ring: Option<Ring>,
    pub(in crate::operator::decide::status) plan: Option<Plan>,
    pub(in crate::operator::decide::status) unknown_format: Option<u32>,
    pub(in crate::operator::decide::status) repaired: Option<String>,
    pub(in crate::operator::decide::status) certificate_renewal: Option<Timestamp>,
    pub(in crate::operator::decide::status) now: Timestamp,
}

impl World {
    pub(in crate::operator::decide::status) fn new() -> Self {
        let farm = json!({
            "apiVersion": "tlsfarm.dev/v1alpha1",
            "kind": "TLSFarm",
            "metadata": {"name": "shop", "namespace": "web", "generation": 4},
            "spec": {"hosts": []},
        });
        Self {
            farm: serde_json::from_value(farm).expect("a farm"),
            id: id("shop"),
            refusal: None,
            backend_faults: Vec::new(),
            live: Live {
                deployment: Some(parse(json!({
                    "metadata": {"generation": 2},
                    "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3},
                }))),
                service: Some(parse(
                    json!({"spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}}),
                )),
                config: Some("abc".into()),
            },
            problem: None,
            proxies: ["a", "b", "c"].map(proxy).into(),
            ring: Some(ring()),
            plan: None,
            unknown_format: None,
            repaired: None,
            certificate_renewal: None,
            now: at(60),
        }
    }

    pub(in crate::operator::decide::status) fn facts(&self) -> StatusInputs<'_> {
        StatusInputs {
            farm: &self.farm,
            id: &self.id,
            refusal: self.refusal.as_ref(),
            backend_faults: &self.backend_faults,
            live: &self.live,
            problem: self.problem.as_deref(),
            proxies: &self.proxies,
            ring: self.ring.as_ref(),
            plan: self.plan.as_ref(),
            unknown_format: self.unknown_format,
            policy: &POLICY,
            repaired: self.repaired.as_deref(),
            certificate_renewal: self.certificate_renewal,
            now: self.now,
        }
    }

    pub(in crate::operator::decide::status) fn status(
        &self,
        before: Option<&TLSFarmStatus>,
    ) -> TLSFarmStatus {
        status(&self.facts(), before)
    }

    pub(in crate::operator::decide::status) fn condition(&self, type_: ConditionType) -> Condition {
        let found = self
            .status(None)
            .conditions
            .into_iter()
            .find(|condition| condition.type_ == type_);
        found.expect("every condition is there")
    }

    /// Changes a good world and returns one condition's status, reason and message.
    pub(in crate::operator::decide::status) fn after(
        type_: ConditionType,
        change: impl FnOnce(&mut Self),
    ) -> (ConditionStatus, Reason, String) {
        let mut world = Self::new();
        change(&mut world);
        let condition = world.condition(type_);
        (condition.status, condition.reason, condition.message)
    }
}

pub(in crate::operator::decide::status) fn parse<K: serde::de::DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).expect("an object")
}

pub(in crate::operator::decide::status) fn proxy(name: &str) -> Observed {
    let mut report = ProxyReport {
        ready: true,
        ..ProxyReport::default()
    };
    report.config.fingerprint = "abc".into();
    Observed {
        proxy: ProxyPod {
            name: name.into(),
            uid: format!("uid-of-{name}"),
            address: None,
            addresses: Vec::new(),
            node_addresses: Vec::new(),
            ready_since: Some(at(0)),
            may_serve: true,
            obstacle: None,
            refreshed_for: None,
        },
        memory: ProxyMemory {
            generation: Some(1),
            report: Some(report),
            ..ProxyMemory::default()
        },
    }
}

pub(in crate::operator::decide::status) fn problem(reason: Reason, message: &str) -> CertificateReport {
    CertificateReport {
        host: "shop".into(),
        certificate: "shop-tls".into(),
        not_after: None,
        problem: Some(Problem {
            reason,
            message: message.into(),
        }),
    }
}

/// A farm with sidecars of which every proxy but those in `cut_off` reaches its cache.
pub(in crate::operator::decide::status) fn with_sidecars(world: &mut World, cut_off: &[&str]) {
    world.farm.spec.resumption.session_cache.mode = SessionCacheMode::Sidecar;
    for one in &mut world.proxies {
        let away = cut_off.contains(&one.proxy.name.as_str());
        one.memory.report.as_mut().expect("reported").session_cache = Some(SessionCacheReport {
            reachable: !away,
            problem: away.then(|| "no connection".into()),
        });
    }
}
