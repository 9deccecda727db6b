use serde_json::json;

use super::*;
use crate::api::Reason;
use crate::operator::cluster::secret::Version;
use crate::operator::fleet::memory::Farms;
use crate::operator::fleet::observe::ProxyMemory;
use crate::operator::fleet::pods::ProxyPod;
use crate::operator::names::id;
use crate::operator::reconcile::forget;
use crate::report::ProxyReport;
use crate::ring::fixtures::{POLICY, at, ring};
use crate::ring::{KeyId, RingVersion};

fn farm(namespace: &str, name: &str, created: &str) -> TLSFarm {
    serde_json::from_value(json!({
        "apiVersion": "tlsfarm.dev/v1alpha1",
        "kind": "TLSFarm",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "spec": {"hosts": [{
            "name": "a",
            "hostnames": ["x.example.com"],
            "tls": {"certificateRefs": [{"name": "tls"}]},
            "routes": [{"path": "/", "backend": {"service": "web", "port": 80}}],
        }]},
    }))
    .expect("a farm")
}

#[test]
fn farms_of_other_namespaces_may_have_the_same_host_names() {
    let shop = farm("web", "shop", "2026-01-02T00:00:00Z");
    let judged = |older: TLSFarm| judge(&shop, &id("shop"), [older].iter(), &StoredRing::Missing, None);
    let elsewhere = farm("other", "first", "2026-01-01T00:00:00Z");
    assert_eq!(judged(elsewhere), Ok(()));
    let beside = judged(farm("web", "first", "2026-01-01T00:00:00Z"));
    assert_eq!(beside.expect_err("refused").reason, Reason::HostnameConflict);
}

#[test]
fn a_foreign_secret_with_a_needed_name_is_a_conflict() {
    let shop = farm("web", "shop", "2026-01-02T00:00:00Z");
    let judged = |ring: StoredRing, cache: Option<&str>| {
        let cache = cache.map(|name| (name.to_owned(), Ownership::Leftover));
        judge(&shop, &id("shop"), [].into_iter(), &ring, cache)
    };
    let refusal = |verdict: Result<(), FarmRefusal>| {
        let refusal = verdict.expect_err("refused");
        assert_eq!(refusal.reason, Reason::NameConflict);
        refusal.message
    };
    assert_eq!(
        judged(StoredRing::Good(Box::new(ring()), Version("1".into())), None),
        Ok(())
    );
    let foreign = refusal(judged(StoredRing::Foreign(Ownership::Foreign), None));
    assert!(
        foreign.starts_with("Secret shop-ring already exists"),
        "{foreign}"
    );
    let leftover = refusal(judged(StoredRing::Missing, Some("shop-cache-ca")));
    assert!(
        leftover.starts_with("Secret shop-cache-ca belongs to a deleted farm"),
        "{leftover}"
    );
}

/// A proxy that has acknowledged a generation, runs a configuration, and did or did not answer the last poll.
fn observed(ready: bool, acknowledged: u64, config: &str, failures: u32) -> Observed {
    let mut report = ProxyReport::default();
    report.config.fingerprint = config.into();
    Observed {
        proxy: ProxyPod {
            name: "a".into(),
            uid: "1".into(),
            address: None,
            addresses: Vec::new(),
            node_addresses: Vec::new(),
            ready_since: ready.then(|| at(0)),
            may_serve: true,
            obstacle: None,
            refreshed_for: None,
        },
        memory: ProxyMemory {
            generation: Some(acknowledged),
            report: Some(report),
            failures,
            ..ProxyMemory::default()
        },
    }
}

/// The farm's memory of a ring of generation 7 that was changed, and is awaited, since second 10.
fn awaiting() -> FarmMemory {
    let mut memory = FarmMemory::default();
    memory.ring = Some(ring().reissued(7, at(10)));
    memory.awaited = Some(7);
    memory
}

const TARGET: RefreshTarget<'_> = RefreshTarget {
    ring: Some(RingVersion {
        generation: 7,
        next: KeyId([1; 16]),
        primary: KeyId([2; 16]),
    }),
    config: Some("new"),
};

#[test]
fn proxies_are_loading_while_a_ready_one_lacks_the_ring_or_the_configuration() {
    let (metrics, _) = OperatorMetrics::new();
    let loading = |target, observed: &[Observed]| {
        count_acknowledgements(observed, target, &mut awaiting(), &metrics, at(13))
    };
    let done = || observed(true, 7, "new", 0);
    assert!(!loading(TARGET, &[done(), done()]));
    assert!(loading(TARGET, &[done(), observed(true, 6, "new", 0)]));
    assert!(loading(TARGET, &[done(), observed(true, 7, "old", 0)]));
    assert!(
        loading(TARGET, &[observed(true, 7, "new", 1)]),
        "its report may be outdated"
    );
    assert!(
        !loading(TARGET, &[done(), observed(false, 6, "old", 0)]),
        "no proxy must acknowledge it"
    );
    assert!(!loading(TARGET, &[observed(false, 6, "old", 0)]));
    assert!(!loading(TARGET, &[]));
    let nothing = RefreshTarget {
        ring: None,
        config: None,
    };
    assert!(!loading(nothing, &[observed(true, 0, "old", 0)]));
}

#[test]
fn acknowledgement_time_is_measured_once_per_written_ring() {
    let (metrics, registry) = OperatorMetrics::new();
    let mut memory = awaiting();
    let measured = |memory: &mut FarmMemory, observed: &[Observed], second| {
        count_acknowledgements(observed, TARGET, memory, &metrics, at(second));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("encodes");
        let value = |name: &str| {
            let line = page.lines().find_map(|line| line.strip_prefix(name));
            line.expect("exported").trim().parse::<f64>().expect("a number")
        };
        (
            value("tlsfarm_operator_acknowledge_seconds_count"),
            value("tlsfarm_operator_acknowledge_seconds_sum"),
        )
    };
    let (done, behind) = (observed(true, 7, "old", 0), observed(true, 6, "new", 0));
    assert_eq!(measured(&mut memory, &[], 11), (0.0, 0.0), "no proxy is ready");
    assert_eq!(measured(&mut memory, &[done.clone(), behind], 12), (0.0, 0.0));
    let all = [done, observed(false, 6, "new", 0)];
    assert_eq!(measured(&mut memory, &all, 13), (1.0, 3.0));
    assert_eq!(measured(&mut memory, &all, 14), (1.0, 3.0));
    memory.awaited = Some(6);
    assert_eq!(
        measured(&mut memory, &all, 15),
        (1.0, 3.0),
        "another ring took its place"
    );
}

#[test]
fn the_next_pass_is_due_at_the_earliest_future_time() {
    let behind_since = |second| {
        let mut one = observed(true, 6, "new", 0);
        one.memory.behind_since = Some(at(second));
        one
    };
    let plan = Plan::Keep { until: at(100) };
    let due =
        |plan, certificates, observed: &[Observed]| super::due(plan, certificates, observed, &POLICY, at(50));
    assert_eq!(due(None, None, &[]), None);
    assert_eq!(due(Some(&plan), None, &[]), Some(at(100)));
    assert_eq!(due(Some(&plan), Some(at(70)), &[]), Some(at(70)));
    assert_eq!(
        due(Some(&plan), Some(at(50)), &[]),
        Some(at(100)),
        "done in this pass"
    );
    assert_eq!(due(Some(&Plan::Expire), None, &[]), None);
    let overdue_at_80 = [behind_since(-480), behind_since(-520)];
    assert_eq!(due(Some(&plan), None, &overdue_at_80), Some(at(80)));
    assert_eq!(
        due(Some(&plan), None, &[behind_since(-550)]),
        Some(at(100)),
        "the rotation is overdue"
    );
}

#[test]
fn a_deleted_farm_leaves_neither_memory_nor_metrics() {
    let (metrics, registry) = OperatorMetrics::new();
    let farms = Farms::default();
    let shop = id("shop").key;
    metrics.ring(&shop, 7);
    farms.failed(&shop);
    farms.touch(&shop);
    forget(&shop, &farms, &metrics);
    assert_eq!(farms.failures(&shop), 0);
    assert!(!farms.take_touched(&shop));
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).expect("encodes");
    assert!(!page.contains("shop"), "{page}");
}
