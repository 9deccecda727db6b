mod histories;

use super::*;
use crate::operator::names::Ownership;
use crate::ring::KeyId;
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
            "its keys were kept",
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

fn acknowledged(opens: &[KeyId]) -> Acknowledgement {
    Acknowledgement {
        proxy: "a".into(),
        generation: Some(1),
        opens: Some(opens.iter().copied().collect()),
    }
}

#[test]
fn a_repaired_ring_encrypts_only_with_a_key_that_every_proxy_has() {
    let ring = ring();
    let repaired = |stored, known, proxies: &[Acknowledgement]| {
        let decision = decide(stored, known, true, &POLICY, None, proxies, at(10)).expect("randomness");
        match decision {
            Decision::Write(ring, ..) => *ring,
            other => panic!("{other:?}"),
        }
    };
    let has_it = acknowledged(&[ring.next.id, ring.primary.id]);
    let has_it_not = acknowledged(&[ring.next.id]);
    let rolled_back = KnownRing {
        ring: None,
        generation: 7,
    };
    for (stored, known) in [(StoredRing::Missing, known(&ring)), (good(&ring), rolled_back)] {
        let kept = repaired(clone_of(&stored), known, std::slice::from_ref(&has_it));
        assert!(kept.may_seal(at(10)));
        let silent = repaired(stored, known, &[has_it.clone(), has_it_not.clone()]);
        assert!(!silent.may_seal(at(10)));
        assert_eq!(
            (silent.primary.id, silent.next.id),
            (ring.primary.id, ring.next.id)
        );
    }
    let fresh = repaired(StoredRing::Missing, rolled_back, std::slice::from_ref(&has_it));
    assert!(!fresh.may_seal(at(10)), "no proxy can have a new key");
    let first = repaired(StoredRing::Missing, KnownRing::default(), &[]);
    assert!(first.may_seal(at(10)), "every proxy will start with it");
}

fn clone_of(stored: &StoredRing) -> StoredRing {
    match stored {
        StoredRing::Good(ring, version) => StoredRing::Good(ring.clone(), version.clone()),
        _ => StoredRing::Missing,
    }
}

#[test]
fn a_ring_without_a_key_that_encrypts_is_rotated_as_soon_as_the_next_one_is_confirmed() {
    let ring = ring().without_sealing(at(10));
    let decide =
        |proxy| decide(good(&ring), known(&ring), true, &POLICY, None, &[proxy], at(11)).expect("randomness");
    assert!(matches!(
        decide(acknowledged(&[])),
        Decision::Keep(_, Plan::Wait { .. })
    ));
    let Decision::Write(rotated, _, Change::Rotated { late }) = decide(acknowledged(&[ring.next.id])) else {
        panic!("the ring was not rotated");
    };
    assert!(late.is_empty() && rotated.may_seal(at(11)));
    assert_eq!(rotated.primary.id, ring.next.id);
}

#[test]
fn a_next_key_that_expires_before_it_could_be_used_is_replaced_and_not_promoted() {
    let ring = ring();
    // The proxies still report the generation that has it, as after days without an operator.
    let now = ring.next.open_until;
    let all_expired = acknowledged(&[]);
    let decision = decide(
        good(&ring),
        known(&ring),
        true,
        &POLICY,
        None,
        &[all_expired],
        now,
    );
    let Decision::Write(renewed, _, Change::Renewed) = decision.expect("randomness") else {
        panic!("the key was not renewed");
    };
    assert_ne!(renewed.next.id, ring.next.id);
    assert_eq!((renewed.primary.id, renewed.generation), (ring.primary.id, 2));
    let just_before = now - POLICY.max_unacked_wait - jiff::SignedDuration::from_secs(1);
    let earlier = decide(good(&ring), known(&ring), true, &POLICY, None, &[], just_before);
    assert!(matches!(
        earlier.expect("randomness"),
        Decision::Write(_, _, Change::Rotated { .. })
    ));
}

#[test]
fn a_ring_dated_in_the_future_is_written_with_the_present_time_and_then_rotates_on_schedule() {
    let ahead = Ring::new(
        1,
        KeySecret::generate().expect("randomness"),
        KeySecret::generate().expect("randomness"),
        &POLICY,
        at(86_400 * 365),
    );
    let decision = decide(good(&ahead), known(&ahead), true, &POLICY, None, &[], at(10));
    let Decision::Write(clamped, _, Change::Repaired(why)) = decision.expect("randomness") else {
        panic!("the ring was left in the future");
    };
    assert!(why.contains("in the future"), "{why}");
    assert_eq!(
        (clamped.rotated_at, clamped.changed_at, clamped.generation),
        (at(10), at(10), 2)
    );
    assert_eq!(
        (clamped.next.id, clamped.primary.id),
        (ahead.next.id, ahead.primary.id)
    );
    let latest = at(10) + jiff::SignedDuration::from_hours(48) + POLICY.lifetime;
    assert!(
        clamped
            .keys()
            .all(|key| key.open_until <= latest && key.created_at <= at(10))
    );
    let due = decide(
        good(&clamped),
        known(&clamped),
        true,
        &POLICY,
        None,
        &[],
        at(3610),
    );
    assert!(matches!(
        due.expect("randomness"),
        Decision::Write(_, _, Change::Rotated { .. })
    ));
    let slightly = Ring::new(
        1,
        KeySecret::generate().expect("randomness"),
        KeySecret::generate().expect("randomness"),
        &POLICY,
        at(60),
    );
    let kept = decide(
        good(&slightly),
        known(&slightly),
        true,
        &POLICY,
        None,
        &[],
        at(10),
    );
    assert!(
        matches!(kept.expect("randomness"), Decision::Keep(..)),
        "clocks differ a little"
    );
}

#[test]
fn a_ring_of_a_later_format_is_left_alone() {
    for known in [KnownRing::default(), known(&ring())] {
        let decision = decided(StoredRing::UnknownFormat(2), known);
        assert_eq!(decision, Decision::UnknownFormat(2));
    }
}
