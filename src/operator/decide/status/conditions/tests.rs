use serde_json::json;

use super::super::tests::world::{World, parse, problem, proxy, with_sidecars};
use super::*;
use crate::operator::decide::backend::BackendFault;
use crate::operator::decide::validate::FarmRefusal;
use crate::ring::fixtures::{POLICY, at};

use ConditionStatus::{False, True, Unknown};
use ConditionType::{
    Accepted, Available, BackendsReady, CertificatesReady, KeysSynced, Ready, SessionCacheReady,
};

/// The conditions that `Ready` sums up.
const SUMMED_UP: [ConditionType; 6] = [
    Accepted,
    CertificatesReady,
    BackendsReady,
    Available,
    KeysSynced,
    SessionCacheReady,
];

fn finding(status: ConditionStatus, reason: Reason, message: impl Into<String>) -> Finding {
    let message = message.into();
    Finding {
        status,
        reason,
        message,
    }
}

/// What `Ready` says of a farm whose conditions are all true, but for those in `but`.
fn summed_up(but: &[(ConditionType, ConditionStatus, Reason)]) -> (ConditionStatus, Reason, String) {
    let findings = SUMMED_UP.map(|type_| {
        let differs = but.iter().find(|(other, ..)| *other == type_);
        let (status, reason) = differs.map_or((True, Reason::Valid), |&(_, status, reason)| (status, reason));
        (type_, finding(status, reason, format!("{type_} is {status}")))
    });
    let ready = ready(&World::new().facts(), &findings);
    (ready.status, ready.reason, ready.message)
}

#[test]
fn ready_needs_all_other_conditions_except_during_ring_distribution() {
    let good = (True, Reason::FarmReady, "all checks passed".to_owned());
    assert_eq!(summed_up(&[]), good);
    for type_ in SUMMED_UP {
        for reason in [
            Reason::RingRepaired,
            Reason::AcknowledgementOverdue,
            Reason::BackendNotFound,
            Reason::Pending,
        ] {
            let failing = (False, reason, format!("{type_} is False"));
            assert_eq!(summed_up(&[(type_, False, reason)]), failing);
        }
        let unknown = (False, Reason::Progressing, format!("{type_} is Unknown"));
        assert_eq!(summed_up(&[(type_, Unknown, Reason::Pending)]), unknown);
        assert_eq!(summed_up(&[(type_, False, Reason::Distributing)]), good);
    }
}

#[test]
fn ready_reports_the_first_fault_or_else_the_first_unknown() {
    let first_of_two = summed_up(&[
        (BackendsReady, False, Reason::BackendNotFound),
        (KeysSynced, False, Reason::RingRepaired),
    ]);
    assert_eq!(first_of_two.1, Reason::BackendNotFound);
    let fault_behind_unknown = summed_up(&[
        (CertificatesReady, Unknown, Reason::Pending),
        (KeysSynced, False, Reason::RingRepaired),
    ]);
    assert_eq!(fault_behind_unknown.1, Reason::RingRepaired);
    let unknown_beside_a_ring_on_its_way = summed_up(&[
        (KeysSynced, False, Reason::Distributing),
        (SessionCacheReady, Unknown, Reason::Pending),
    ]);
    assert_eq!(unknown_beside_a_ring_on_its_way.1, Reason::Progressing);
}

/// Every fault that a farm can have, the condition that reports it with its reason, and the resulting `Ready`.
#[test]
fn every_fault_of_a_farm_shows_in_its_condition_and_in_ready() {
    type Change = Box<dyn Fn(&mut World)>;
    let refused =
        |reason| -> Change { Box::new(move |world| world.refusal = Some(FarmRefusal::new(reason, "no"))) };
    let certificate = |reason| -> Change {
        Box::new(move |world| {
            let report = world.proxies[1].memory.report.as_mut().expect("reported");
            report.certificates = vec![problem(reason, "no")];
        })
    };
    let behind = |since, repaired: Option<&'static str>| -> Change {
        Box::new(move |world| {
            world.proxies[1].memory.generation = None;
            world.proxies[1].memory.behind_since = Some(at(since));
            world.repaired = repaired.map(str::to_owned);
        })
    };
    let cases: Vec<(Change, ConditionType, ConditionStatus, Reason, Reason)> = vec![
        (
            refused(Reason::Invalid),
            Accepted,
            False,
            Reason::Invalid,
            Reason::Invalid,
        ),
        (
            refused(Reason::NameConflict),
            Accepted,
            False,
            Reason::NameConflict,
            Reason::NameConflict,
        ),
        (
            refused(Reason::HostnameConflict),
            Accepted,
            False,
            Reason::HostnameConflict,
            Reason::HostnameConflict,
        ),
        (
            certificate(Reason::CertificateMissing),
            CertificatesReady,
            False,
            Reason::CertificateMissing,
            Reason::CertificateMissing,
        ),
        (
            certificate(Reason::CertificateExpired),
            CertificatesReady,
            False,
            Reason::CertificateExpired,
            Reason::CertificateExpired,
        ),
        (
            Box::new(|world| world.live.config = None),
            CertificatesReady,
            Unknown,
            Reason::Pending,
            Reason::Progressing,
        ),
        (
            Box::new(|world| world.live.config = Some("newer".into())),
            CertificatesReady,
            Unknown,
            Reason::Pending,
            Reason::Progressing,
        ),
        (
            Box::new(|world| {
                let service = "late".into();
                world.backend_faults = vec![BackendFault::NoService { service }];
            }),
            BackendsReady,
            False,
            Reason::BackendNotFound,
            Reason::BackendNotFound,
        ),
        (
            Box::new(|world| world.farm.spec.replicas = 0),
            Available,
            False,
            Reason::ScaledToZero,
            Reason::ScaledToZero,
        ),
        (
            Box::new(|world| world.proxies.truncate(1)),
            Available,
            False,
            Reason::ProxiesUnavailable,
            Reason::ProxiesUnavailable,
        ),
        (
            Box::new(|world| world.ring = None),
            KeysSynced,
            Unknown,
            Reason::Pending,
            Reason::Progressing,
        ),
        (
            behind(50, None),
            KeysSynced,
            False,
            Reason::Distributing,
            Reason::FarmReady,
        ),
        (
            behind(50, Some("it was missing")),
            KeysSynced,
            False,
            Reason::RingRepaired,
            Reason::RingRepaired,
        ),
        (
            behind(60 - 600, Some("it was missing")),
            KeysSynced,
            False,
            Reason::AcknowledgementOverdue,
            Reason::AcknowledgementOverdue,
        ),
        (
            Box::new(|world| with_sidecars(world, &["b"])),
            SessionCacheReady,
            False,
            Reason::CacheUnreachable,
            Reason::CacheUnreachable,
        ),
        (
            Box::new(|world| {
                with_sidecars(world, &[]);
                world.proxies[1]
                    .memory
                    .report
                    .as_mut()
                    .expect("reported")
                    .session_cache = None;
            }),
            SessionCacheReady,
            Unknown,
            Reason::Pending,
            Reason::Progressing,
        ),
        (
            Box::new(|world| world.problem = Some("cannot apply Deployment shop-proxy".into())),
            Accepted,
            True,
            Reason::Valid,
            Reason::Progressing,
        ),
        (
            Box::new(|world| world.live.deployment = None),
            Available,
            True,
            Reason::ProxiesReady,
            Reason::Progressing,
        ),
    ];
    for (change, type_, status, reason, ready_reason) in cases {
        let mut world = World::new();
        change(&mut world);
        let condition = world.condition(type_);
        assert_eq!((condition.status, condition.reason), (status, reason), "{type_}");
        let ready = world.condition(Ready);
        let expected = if ready_reason == Reason::FarmReady {
            True
        } else {
            False
        };
        assert_eq!(
            (ready.status, ready.reason),
            (expected, ready_reason),
            "after {type_} {reason}"
        );
    }
}

#[test]
fn keys_and_cache_conditions_are_unknown_until_a_proxy_is_ready() {
    for type_ in [KeysSynced, SessionCacheReady] {
        let (status, reason, message) = World::after(type_, |world| {
            with_sidecars(world, &[]);
            world
                .proxies
                .iter_mut()
                .for_each(|one| one.proxy.ready_since = None);
        });
        assert_eq!((status, reason), (Unknown, Reason::Pending));
        assert_eq!(message, "no proxy is ready yet");
    }
}

#[test]
fn a_proxy_is_overdue_after_max_unacked_wait_and_not_before() {
    let late_by = |seconds| {
        World::after(KeysSynced, |world| {
            world.proxies[0].memory.generation = None;
            world.proxies[0].memory.behind_since = Some(at(50));
            world.proxies[1].memory.generation = None;
            world.proxies[1].memory.report = None;
            let report = world.proxies[0].memory.report.as_mut().expect("reported");
            report.ring.problem = Some("it is damaged".into());
            world.now = at(50 + seconds);
        })
    };
    let wait = POLICY.max_unacked_wait.as_secs();
    let (_, reason, message) = late_by(wait - 1);
    assert_eq!(reason, Reason::Distributing);
    assert!(
        message.ends_with("not acknowledged yet by a (it is damaged), b"),
        "{message}"
    );
    let (_, reason, message) = late_by(wait);
    assert_eq!(reason, Reason::AcknowledgementOverdue);
    assert!(message.ends_with(": a (it is damaged)"), "{message}");
}

#[test]
fn available_tolerates_one_missing_proxy_but_never_zero_ready() {
    let available = |wanted: i32, ready: usize| {
        World::after(Available, |world| {
            world.farm.spec.replicas = wanted;
            world.proxies = (0..ready).map(|n| proxy(&format!("proxy-{n}"))).collect();
        })
        .0
    };
    for (wanted, ready, expected) in [
        (1, 0, False),
        (1, 1, True),
        (2, 0, False),
        (2, 1, True),
        (4, 2, False),
        (4, 3, True),
        (4, 5, True),
    ] {
        assert_eq!(available(wanted, ready), expected, "{ready} of {wanted}");
    }
}

#[test]
fn a_rollout_is_complete_when_all_proxies_are_of_the_current_deployment() {
    let ready = |generation: i64, observed: i64, updated: i32, all: i32| {
        let (_, reason, message) = World::after(Ready, |world| {
            world.live.deployment = Some(parse(json!({
                "metadata": {"generation": generation},
                "status": {"observedGeneration": observed, "replicas": all, "updatedReplicas": updated},
            })));
        });
        (reason, message)
    };
    assert_eq!(ready(2, 2, 3, 3).0, Reason::FarmReady);
    assert_eq!(ready(2, 3, 3, 3).0, Reason::FarmReady);
    for (unfinished, words) in [
        (ready(3, 2, 3, 3), "waiting for the Deployment rollout to start"),
        (ready(2, 2, 2, 3), "2 of 3 proxies are updated, 3 exist"),
        (ready(2, 2, 3, 4), "3 of 3 proxies are updated, 4 exist"),
        (ready(2, 2, 4, 4), "4 of 3 proxies are updated, 4 exist"),
    ] {
        assert_eq!(unfinished, (Reason::Progressing, words.to_owned()));
    }
    let (_, reason, message) = World::after(Ready, |world| world.proxies.truncate(2));
    assert_eq!(
        (reason, message.as_str()),
        (Reason::Progressing, "2 of 3 proxies are ready")
    );
    let (_, reason, message) = World::after(Ready, |world| world.proxies.push(proxy("d")));
    assert_eq!(
        (reason, message.as_str()),
        (Reason::Progressing, "4 of 3 proxies are ready")
    );
}

#[test]
fn only_failures_of_the_deployment_are_obstacles() {
    let message = |type_: &str, status: &str| {
        let condition = json!({"type": type_, "status": status, "message": "exceeded quota"});
        World::after(Available, |world| {
            world.live.deployment = Some(parse(json!({"status": {"conditions": [condition]}})));
            world.proxies.truncate(2);
        })
        .2
    };
    assert_eq!(
        message("ReplicaFailure", "True"),
        "2 of 3 proxies are ready; exceeded quota"
    );
    assert_eq!(message("ReplicaFailure", "False"), "2 of 3 proxies are ready");
    assert_eq!(message("Progressing", "True"), "2 of 3 proxies are ready");
    let (_, _, message) = World::after(Available, |world| {
        world.proxies[0].proxy.obstacle = Some("it is stuck".into());
    });
    assert_eq!(message, "3 of 3 proxies are ready", "nothing is amiss");
}

#[test]
fn keys_synced_says_until_when_a_full_ring_delays_the_rotation() {
    let (status, _, message) = World::after(KeysSynced, |world| {
        let until = at(90) + jiff::SignedDuration::from_millis(5);
        world.plan = Some(Plan::Full { until });
    });
    assert_eq!(status, True);
    let until = at(90);
    assert!(
        message.ends_with(&format!(
            "; the ring is full, the next rotation waits until {until}"
        )),
        "{message}"
    );
    let (_, _, message) = World::after(KeysSynced, |world| {
        world.plan = Some(Plan::Keep { until: at(90) })
    });
    assert!(message.ends_with("ring generation 1"), "{message}");
}

#[test]
fn certificates_are_judged_by_the_proxies_that_run_the_current_configuration() {
    let (status, reason, message) = World::after(CertificatesReady, |world| {
        for one in &mut world.proxies {
            let report = one.memory.report.as_mut().expect("reported");
            report.certificates = vec![problem(Reason::KeyMismatch, "no")];
            report.config.fingerprint = "old".into();
        }
        let report = world.proxies[0].memory.report.as_mut().expect("reported");
        report.config.fingerprint = "abc".into();
        report.certificates.clear();
    });
    assert_eq!((status, reason), (True, Reason::CertificatesLoaded), "{message}");
}

#[test]
fn messages_list_eight_names_and_count_the_rest() {
    let words = |count: usize| {
        let words: Vec<String> = (0..count).map(|n| n.to_string()).collect();
        first_of(&words, MOST_NAMED, ", ")
    };
    assert_eq!(words(1), "0");
    assert_eq!(words(8), "0, 1, 2, 3, 4, 5, 6, 7");
    assert_eq!(words(9), "0, 1, 2, 3, 4, 5, 6, 7, and 1 more");
    assert_eq!(words(100), "0, 1, 2, 3, 4, 5, 6, 7, and 92 more");
}
