use super::*;
use crate::operator::cluster::apply::tests::inspection;
use crate::operator::cluster::ring_secret::StoredRing;
use crate::operator::decide::rotation::{Change, Decision, KnownRing, decide};
use crate::operator::names::id;
use crate::ring::fixtures::{POLICY, at, ring};

fn services(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn farms_are_found_by_the_services_that_they_route_to_now() {
    let farms = Farms::default();
    let (shop, blog) = (id("shop").key, id("blog").key);
    farms.set_backends(&shop, services(&["web", "api"]));
    farms.set_backends(&blog, services(&["web"]));
    assert_eq!(farms.routing_to("web", "web"), [blog.clone(), shop.clone()]);
    assert_eq!(farms.routing_to("other", "web"), []);
    farms.set_backends(&shop, services(&["api"]));
    assert_eq!(farms.routing_to("web", "web"), std::slice::from_ref(&blog));
    farms.forget(&blog);
    assert_eq!(farms.routing_to("web", "web"), []);
    assert_eq!(
        lock(&farms.backends).farms.len(),
        1,
        "deleted farms leave nothing behind"
    );
}

#[tokio::test]
async fn a_farm_that_is_created_again_starts_without_the_old_ones_keys() {
    let farms = Farms::default();
    farms.memory(&id("shop")).await.ring = Some(ring());
    assert!(farms.memory(&id("shop")).await.ring.is_some());
    let again = FarmId {
        uid: "another".into(),
        ..id("shop")
    };
    assert!(farms.memory(&again).await.ring.is_none());
}

fn refusal() -> FarmRefusal {
    FarmRefusal::new(crate::api::Reason::Invalid, "no")
}

/// A memory of objects that were looked at, for generation 4 of a spec against which nothing was to be said.
fn looked(change: impl FnOnce(&mut Objects)) -> FarmMemory {
    let mut objects = Objects {
        generation: Some(4),
        verdict: Ok(()),
        refusal: None,
        backend_faults: Vec::new(),
        live: Live::default(),
        failed: false,
    };
    change(&mut objects);
    FarmMemory {
        objects: Some(objects),
        ..FarmMemory::default()
    }
}

#[test]
fn a_farm_is_accepted_when_neither_its_spec_nor_its_objects_are_refused() {
    let (good, bad) = (Ok(()), Err(refusal()));
    let (free, conflicting) = (inspection(None), inspection(Some(refusal())));
    let well = looked(|_| ());
    let refused = looked(|objects| objects.refusal = Some(refusal()));
    let cases = [
        (
            "the farm is new and its objects are inspected",
            FarmMemory::default(),
            &good,
            Some(&free),
            true,
        ),
        (
            "its objects were never inspected",
            FarmMemory::default(),
            &good,
            None,
            false,
        ),
        (
            "its spec is refused",
            FarmMemory::default(),
            &bad,
            Some(&free),
            false,
        ),
        (
            "a name is taken",
            FarmMemory::default(),
            &good,
            Some(&conflicting),
            false,
        ),
        ("nothing has changed", looked(|_| ()), &good, None, true),
        (
            "a name was taken since",
            looked(|_| ()),
            &good,
            Some(&conflicting),
            false,
        ),
        ("its spec was refused since", well, &bad, None, false),
        (
            "the farm was refused and its objects are not inspected",
            looked(|objects| objects.refusal = Some(refusal())),
            &good,
            None,
            false,
        ),
        ("the name is free again", refused, &good, Some(&free), true),
    ];
    for (what, memory, verdict, inspection, accepted) in cases {
        assert_eq!(memory.is_accepted(verdict, inspection), accepted, "{what}");
    }
}

#[test]
fn a_farm_that_is_not_accepted_gets_no_ring() {
    let first_ring = |memory: &FarmMemory, verdict: &Result<(), FarmRefusal>, found: Option<&Inspection>| {
        let may_create = memory.is_accepted(verdict, found);
        let (stored, known) = (StoredRing::Missing, KnownRing::default());
        decide(stored, known, may_create, &POLICY, None, &[], at(0)).expect("randomness")
    };
    let (new, free) = (FarmMemory::default(), inspection(None));
    let made = first_ring(&new, &Ok(()), Some(&free));
    assert!(
        matches!(made, Decision::Write(_, None, Change::Created)),
        "{made:?}"
    );

    let refused_by_validation = first_ring(&new, &Err(refusal()), Some(&free));
    assert_eq!(refused_by_validation, Decision::None);
    let name_is_taken = first_ring(&new, &Ok(()), Some(&inspection(Some(refusal()))));
    assert_eq!(name_is_taken, Decision::None);
    let refused_before = looked(|objects| objects.refusal = Some(refusal()));
    assert_eq!(first_ring(&refused_before, &Ok(()), None), Decision::None);
}

#[test]
fn objects_are_inspected_after_spec_or_verdict_changes_and_until_correct() {
    let (good, bad) = (Ok(()), Err(refusal()));
    let refused = |objects: &mut Objects| {
        objects.verdict = Err(refusal());
        objects.refusal = Some(refusal());
    };
    let taken = |objects: &mut Objects| objects.refusal = Some(refusal());
    let failed = |objects: &mut Objects| objects.failed = true;
    assert!(
        FarmMemory::default().must_look(false, Some(4), &good),
        "the objects were never inspected"
    );
    assert!(!looked(|_| ()).must_look(false, Some(4), &good));
    assert!(looked(|_| ()).must_look(false, Some(5), &good), "another spec");
    assert!(
        looked(|_| ()).must_look(false, Some(4), &bad),
        "the farm is refused now"
    );
    assert!(
        looked(failed).must_look(false, Some(4), &good),
        "something failed"
    );
    assert!(
        !looked(refused).must_look(false, Some(4), &bad),
        "the farm is still refused"
    );
    assert!(
        looked(refused).must_look(false, Some(4), &good),
        "the farm is accepted now"
    );
    let reworded = Err(FarmRefusal::new(crate::api::Reason::Invalid, "still no"));
    assert!(looked(refused).must_look(false, Some(4), &reworded));
    assert!(
        looked(taken).must_look(false, Some(4), &good),
        "the name may be free again"
    );
}

#[test]
fn cache_certificates_are_deleted_once_and_only_without_sidecars_or_failures() {
    let removes = |memory: &FarmMemory, has_sidecars, has_failed| {
        memory.must_remove_certificates(has_sidecars, has_failed)
    };
    let accepted = looked(|_| ());
    assert!(removes(&accepted, false, false));
    assert!(!removes(&accepted, true, false));
    assert!(!removes(&accepted, false, true));
    let refused = looked(|objects| objects.refusal = Some(refusal()));
    assert!(
        !removes(&refused, false, false),
        "nothing of a refused farm is changed"
    );
    let mut gone = looked(|_| ());
    gone.cache_secrets_gone = true;
    assert!(!removes(&gone, false, false));
    assert!(!removes(&FarmMemory::default(), false, false));
}

#[test]
fn a_ring_is_measured_once_and_only_if_this_process_wrote_it() {
    let mut memory = FarmMemory {
        awaited: Some(1),
        ..FarmMemory::default()
    };
    assert_eq!(memory.acknowledged(at(3)), None, "there is no ring");
    memory.ring = Some(ring());
    assert_eq!(memory.acknowledged(at(3)), Some(Duration::from_secs(3)));
    assert_eq!(memory.acknowledged(at(4)), None);
}

#[test]
fn a_change_of_an_object_is_noticed_once() {
    let (farms, shop) = (Farms::default(), id("shop").key);
    assert!(!farms.take_touched(&shop));
    farms.touch(&shop);
    farms.touch(&shop);
    assert!(farms.take_touched(&shop));
    assert!(!farms.take_touched(&shop));
    farms.touch(&shop);
    assert!(!farms.take_touched(&id("blog").key));
    farms.forget(&shop);
    assert!(!farms.take_touched(&shop));
}

#[test]
fn failures_count_up_until_a_pass_succeeds() {
    let (farms, shop, blog) = (Farms::default(), id("shop").key, id("blog").key);
    assert_eq!(farms.failures(&shop), 0);
    assert_eq!((farms.failed(&shop), farms.failed(&shop)), (1, 2));
    assert_eq!((farms.failures(&shop), farms.failures(&blog)), (2, 0));
    farms.succeeded(&shop);
    assert_eq!(farms.failures(&shop), 0);
    farms.failed(&shop);
    farms.forget(&shop);
    assert_eq!(farms.failed(&shop), 1);
}

#[test]
fn a_stale_watch_does_not_hide_the_written_status() {
    let farm = |version: &str, proxies: &str| -> TLSFarm {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "tlsfarm.dev/v1alpha1",
            "kind": "TLSFarm",
            "metadata": {"name": "shop", "resourceVersion": version},
            "spec": {"hosts": []},
            "status": {"proxies": proxies},
        }))
        .expect("a farm")
    };
    let mut memory = FarmMemory::default();
    memory.wrote_status(&farm("12", "new"));
    let proxies = |seen: &TLSFarm| memory.status(seen).map(|status| status.proxies.clone());
    assert_eq!(proxies(&farm("11", "old")).as_deref(), Some("new"));
    assert_eq!(proxies(&farm("12", "seen")).as_deref(), Some("seen"));
    assert_eq!(proxies(&farm("13", "meddled")).as_deref(), Some("meddled"));
}

#[test]
fn loading_restarts_with_every_change() {
    let mut memory = FarmMemory::default();
    assert_eq!(
        memory.loading(true, Some(1), None, at(0)),
        Some(SignedDuration::ZERO)
    );
    assert_eq!(
        memory.loading(true, Some(1), None, at(9)),
        Some(SignedDuration::from_secs(9))
    );
    assert_eq!(
        memory.loading(true, Some(2), None, at(9)),
        Some(SignedDuration::ZERO)
    );
    assert_eq!(
        memory.loading(true, Some(2), Some("abc"), at(9)),
        Some(SignedDuration::ZERO)
    );
    assert_eq!(
        memory.loading(true, Some(2), Some("abc"), at(10)),
        Some(SignedDuration::from_secs(1))
    );
    assert_eq!(
        memory.loading(true, Some(2), Some("def"), at(10)),
        Some(SignedDuration::ZERO)
    );
    assert_eq!(memory.loading(false, Some(2), Some("abc"), at(10)), None);
    assert_eq!(
        memory.loading(true, Some(2), Some("abc"), at(20)),
        Some(SignedDuration::ZERO)
    );
}
