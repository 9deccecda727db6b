mod farm;

use jiff::SignedDuration;

use super::*;
use crate::ring::fixtures::{POLICY, at, ring, secret};

fn proxies(generations: &[Option<u64>]) -> Vec<Acknowledgement> {
    generations
        .iter()
        .enumerate()
        .map(|(n, generation)| Acknowledgement {
            proxy: format!("proxy-{n}"),
            generation: *generation,
            opens: None,
        })
        .collect()
}

fn request(value: &str, second: i64) -> RotationRequest {
    RotationRequest {
        value: value.into(),
        seen_at: at(second),
    }
}

#[test]
fn nothing_happens_before_the_interval_is_over() {
    let all = proxies(&[Some(1), Some(1)]);
    assert_eq!(
        plan(&ring(), &POLICY, None, &all, at(3599)),
        Plan::Keep { until: at(3600) }
    );
    let rotate = Plan::Rotate {
        request: None,
        late: vec![],
    };
    assert_eq!(plan(&ring(), &POLICY, None, &all, at(3600)), rotate);
}

#[test]
fn a_rotation_waits_for_every_proxy_but_not_for_ever() {
    let one_silent = proxies(&[Some(1), None]);
    let wait = Plan::Wait {
        missing: vec!["proxy-1".into()],
        until: at(4200),
    };
    assert_eq!(plan(&ring(), &POLICY, None, &one_silent, at(3600)), wait);
    let rotate = Plan::Rotate {
        request: None,
        late: vec!["proxy-1".into()],
    };
    assert_eq!(plan(&ring(), &POLICY, None, &one_silent, at(4200)), rotate);
}

/// Until when a rotation waits for a proxy that has acknowledged nothing.
fn patience_ends(ring: &Ring, request: Option<&RotationRequest>, now: Timestamp) -> Timestamp {
    match plan(ring, &POLICY, request, &proxies(&[None]), now) {
        Plan::Wait { until, .. } => until,
        other => panic!("{other:?} instead of waiting"),
    }
}

#[test]
fn patience_is_counted_from_the_moment_a_rotation_is_due() {
    assert_eq!(patience_ends(&ring(), None, at(4000)), at(3600 + 600));
    let wanted = request("now", 1000);
    assert_eq!(patience_ends(&ring(), Some(&wanted), at(1000)), at(1000 + 600));
    let too_late = request("now", 3700);
    assert_eq!(
        patience_ends(&ring(), Some(&too_late), at(3700)),
        at(3600 + 600),
        "a request does not put off what is due anyway"
    );
}

#[test]
fn patience_is_counted_from_the_last_change_of_the_ring() {
    // After downtime, the operator repairs the ring when a rotation is overdue: proxies had no time to load the repair.
    let repaired = ring().reissued(2, at(9000));
    assert_eq!(patience_ends(&repaired, None, at(9001)), at(9000 + 600));
    let wanted = request("now", 8000);
    assert_eq!(patience_ends(&repaired, Some(&wanted), at(9001)), at(9000 + 600));
    let all = proxies(&[Some(2)]);
    assert!(matches!(
        plan(&repaired, &POLICY, None, &all, at(9001)),
        Plan::Rotate { .. }
    ));
}

#[test]
fn a_proxy_ahead_of_the_ring_is_not_waited_for() {
    let ahead = proxies(&[Some(2), Some(1)]);
    let rotate = Plan::Rotate {
        request: None,
        late: vec![],
    };
    assert_eq!(plan(&ring(), &POLICY, None, &ahead, at(3600)), rotate);
}

#[test]
fn a_request_is_carried_out_once() {
    let all = proxies(&[Some(1)]);
    let wanted = request("now", 10);
    let Plan::Rotate {
        request: Some(granted),
        ..
    } = plan(&ring(), &POLICY, Some(&wanted), &all, at(10))
    else {
        panic!("the request was not granted");
    };
    let ring = ring().rotated(secret(), Some(&granted), &POLICY, at(10));
    assert_eq!(
        plan(&ring, &POLICY, Some(&wanted), &all, at(11)),
        Plan::Keep { until: at(3610) }
    );
    let behind = plan(&ring, &POLICY, Some(&request("again", 11)), &all, at(11));
    assert!(
        matches!(behind, Plan::Wait { .. }),
        "the second request overtook the acknowledgements"
    );
}

#[test]
fn after_a_long_outage_there_is_one_rotation_and_no_burst() {
    let days_later = 3 * 86_400;
    let ring = ring().rotated(secret(), None, &POLICY, at(days_later));
    let all = proxies(&[Some(2)]);
    assert_eq!(
        plan(&ring, &POLICY, None, &all, at(days_later + 1)),
        Plan::Keep {
            until: at(days_later + 3600)
        }
    );
}

#[test]
fn a_full_ring_waits_for_its_oldest_key() {
    let mut ring = ring();
    for round in 0..30 {
        ring = ring.rotated(secret(), None, &POLICY, at(round));
    }
    let all = proxies(&[Some(ring.generation)]);
    let oldest = ring.previous.last().expect("full").open_until;
    let wanted = request("one more", 100);
    assert_eq!(
        plan(&ring, &POLICY, Some(&wanted), &all, at(100)),
        Plan::Full { until: oldest }
    );
    assert!(matches!(
        plan(&ring, &POLICY, Some(&wanted), &all, oldest),
        Plan::Rotate { .. }
    ));
}

#[test]
fn keys_are_dropped_when_no_ticket_needs_them_any_more() {
    let day = RotationPolicy {
        rotation_interval: SignedDuration::from_hours(24),
        ..POLICY
    };
    let ring = ring().rotated(secret(), None, &day, at(0));
    let all = proxies(&[Some(2)]);
    let end = ring.previous[0].open_until;
    let before = end - SignedDuration::from_secs(1);
    for now in [at(1), before] {
        assert_eq!(plan(&ring, &day, None, &all, now), Plan::Keep { until: end });
    }
    assert_eq!(plan(&ring, &day, None, &all, end), Plan::Expire);
}
