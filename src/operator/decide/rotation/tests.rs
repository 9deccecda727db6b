mod histories;

use super::*;
use crate::operator::names::Ownership;
use crate::ring::fixtures::{POLICY, at, ring};

fn version() -> Version {
    Version("5".into())
}

fn good(ring: &Ring) -> StoredRing {
    StoredRing::Good(Box::new(ring.clone()), version())
}

fn decided(stored: StoredRing, known: KnownRing<'_>) -> Decision {
    decide(stored, known, true, &POLICY, None, &[], at(10)).expect("randomness")
}

fn known(ring: &Ring) -> KnownRing<'_> {
    KnownRing {
        ring: Some(ring),
        generation: ring.generation,
    }
}

#[test]
fn a_new_farm_gets_a_ring_and_one_that_was_never_accepted_does_not() {
    let Decision::Write(ring, None, Change::Created) = decided(StoredRing::Missing, KnownRing::default())
    else {
        panic!("no ring was made");
    };
    assert_eq!(ring.generation, 1);
    let refused = decide(
        StoredRing::Missing,
        KnownRing::default(),
        false,
        &POLICY,
        None,
        &[],
        at(10),
    );
    assert_eq!(refused.expect("randomness"), Decision::None);
}

#[test]
fn a_new_ring_records_the_pending_rotation_request_as_handled() {
    let asked = RotationRequest {
        value: "once".into(),
        seen_at: at(0),
    };
    let decision = decide(
        StoredRing::Missing,
        KnownRing::default(),
        true,
        &POLICY,
        Some(&asked),
        &[],
        at(10),
    );
    let Decision::Write(ring, ..) = decision.expect("randomness") else {
        panic!("no ring was made");
    };
    let next = decide(
        good(&ring),
        known(&ring),
        true,
        &POLICY,
        Some(&asked),
        &[],
        at(11),
    );
    assert!(matches!(
        next.expect("randomness"),
        Decision::Keep(_, Plan::Keep { .. })
    ));
}

#[test]
fn a_lost_damaged_altered_or_rolled_back_ring_is_written_back_with_its_keys() {
    let old = ring();
    let current = old
        .clone()
        .rotated(KeySecret::generate().expect("randomness"), None, &POLICY, at(5));
    let mut altered = current.clone();
    altered.previous.clear();
    let cases = [
        (StoredRing::Missing, None),
        (
            StoredRing::Damaged("it is empty".into(), version()),
            Some(version()),
        ),
        (good(&old), Some(version())),
        (good(&altered), Some(version())),
    ];
    for (stored, replaces) in cases {
        let name = format!("{stored:?}");
        let Decision::Write(ring, replaced, Change::Repaired(_)) = decided(stored, known(&current)) else {
            panic!("{name} was not repaired");
        };
        assert_eq!(replaced, replaces);
        assert_eq!(ring.generation, current.generation + 1);
        assert_eq!(ring.primary, current.primary);
    }
}

#[test]
fn a_restarted_operator_repairs_above_every_reported_generation() {
    let old = ring();
    for stored in [StoredRing::Missing, good(&old)] {
        let heard = KnownRing {
            ring: None,
            generation: 41,
        };
        let Decision::Write(ring, _, Change::Repaired(_)) = decided(stored, heard) else {
            panic!("the ring was not repaired");
        };
        assert_eq!(ring.generation, 42);
        assert_ne!(ring.primary.id, old.primary.id);
    }
}

#[test]
fn a_stored_ring_newer_than_the_known_one_is_adopted() {
    let first = ring();
    let second = first
        .clone()
        .rotated(KeySecret::generate().expect("randomness"), None, &POLICY, at(5));
    assert!(matches!(
        decided(good(&second), known(&first)),
        Decision::Keep(..)
    ));
}

#[test]
fn a_request_keeps_its_first_time_and_a_huge_one_cannot_bloat_the_ring() {
    let mut farm: TLSFarm = serde_json::from_value(serde_json::json!({
        "apiVersion": "tlsfarm.dev/v1alpha1",
        "kind": "TLSFarm",
        "metadata": {"name": "shop", "annotations": {"tlsfarm.dev/rotate": "x"}},
        "spec": {"hosts": []},
    }))
    .expect("a farm");
    let first = requested(&farm, None, at(1)).expect("requested");
    assert_eq!(requested(&farm, Some(&first), at(2)), Some(first.clone()));
    let annotations = farm.metadata.annotations.as_mut().expect("set");
    annotations.insert(crate::api::ROTATE_ANNOTATION.into(), "y".repeat(200_000));
    let huge = requested(&farm, Some(&first), at(3)).expect("requested");
    assert!(huge.value.len() <= LONGEST_REQUEST);
    assert_eq!(huge.seen_at, at(3));
    assert_eq!(
        requested(&farm, Some(&huge), at(4)),
        Some(huge),
        "it was seen before"
    );
}

#[test]
fn a_repair_exceeds_acknowledged_generations_even_if_the_ring_is_known() {
    let ring = ring();
    let heard = KnownRing {
        ring: Some(&ring),
        generation: ring.generation + 4,
    };
    let damaged = StoredRing::Damaged("it is empty".into(), version());
    let Decision::Write(repaired, _, Change::Repaired(_)) = decided(damaged, heard) else {
        panic!("the ring was not repaired");
    };
    assert_eq!(repaired.generation, ring.generation + 5);
    assert_eq!(repaired.primary, ring.primary);
}

#[test]
fn a_refused_farm_keeps_its_ring_and_its_rotations() {
    let ring = ring();
    let refused = |stored, known: KnownRing<'_>, second| {
        decide(stored, known, false, &POLICY, None, &[], at(second)).expect("randomness")
    };
    let kept = refused(good(&ring), known(&ring), 10);
    assert!(matches!(kept, Decision::Keep(same, _) if *same == ring));
    let due = refused(good(&ring), known(&ring), 3600);
    assert!(
        matches!(due, Decision::Write(_, _, Change::Rotated { .. })),
        "{due:?}"
    );
    // Its proxies keep running, and losing the ring would end their sessions at the next restart.
    for stored in [
        StoredRing::Missing,
        StoredRing::Damaged("it is empty".into(), version()),
    ] {
        let repaired = refused(stored, known(&ring), 10);
        assert!(
            matches!(&repaired, Decision::Write(same, _, Change::Repaired(_)) if same.primary == ring.primary),
            "{repaired:?}"
        );
    }
}

#[test]
fn a_foreign_ring_secret_is_never_overwritten() {
    let ring = ring();
    for ownership in [Ownership::Foreign, Ownership::Leftover] {
        for known in [KnownRing::default(), known(&ring)] {
            assert_eq!(decided(StoredRing::Foreign(ownership), known), Decision::None);
        }
    }
}

#[test]
fn a_repair_names_the_fault_and_what_happened_to_the_keys() {
    let old = ring();
    let current = old
        .clone()
        .rotated(KeySecret::generate().expect("randomness"), None, &POLICY, at(5));
    let mut altered = current.clone();
    altered.previous.clear();
    let restarted = KnownRing {
        ring: None,
        generation: 2,
    };
    let cases = [
        (
            StoredRing::Missing,
            known(&current),
            "was missing",
            "the same keys",
        ),
        (StoredRing::Missing, restarted, "was missing", "new keys"),
        (
            StoredRing::Damaged("it is empty".into(), version()),
            known(&current),
            "it is empty",
            "the same keys",
        ),
        (
            good(&old),
            known(&current),
            "rolled back to generation 1; the newest known generation is 2",
            "the same keys",
        ),
        (
            good(&old),
            restarted,
            "rolled back to generation 1; the newest known generation is 2",
            "new keys",
        ),
        (
            good(&altered),
            known(&current),
            "generation 2 was modified",
            "the same keys",
        ),
    ];
    for (stored, known, fault, keys) in cases {
        let name = format!("{stored:?}");
        let Decision::Write(_, _, Change::Repaired(note)) = decided(stored, known) else {
            panic!("{name} was not repaired");
        };
        assert!(note.contains(fault) && note.contains(keys), "{name}: {note}");
    }
}

#[test]
fn a_request_of_up_to_128_bytes_is_kept_as_it_is() {
    let asked = |annotations: serde_json::Value| {
        let farm = serde_json::json!({
            "apiVersion": "tlsfarm.dev/v1alpha1",
            "kind": "TLSFarm",
            "metadata": {"name": "shop", "annotations": annotations},
            "spec": {"hosts": []},
        });
        requested(&serde_json::from_value(farm).expect("a farm"), None, at(1))
    };
    let (longest, longer) = ("x".repeat(LONGEST_REQUEST), "x".repeat(LONGEST_REQUEST + 1));
    let value =
        |text: &str| asked(serde_json::json!({crate::api::ROTATE_ANNOTATION: text})).map(|one| one.value);
    assert_eq!(value(&longest), Some(longest));
    let kept = value(&longer).expect("requested");
    assert!(kept.starts_with("fingerprint "), "{kept}");
    assert_ne!(value(&(longer + "y")), Some(kept), "another request");
    assert_eq!(asked(serde_json::json!({"other": "x"})), None);
    assert_eq!(asked(serde_json::Value::Null), None);
}
