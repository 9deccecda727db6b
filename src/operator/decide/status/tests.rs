pub(super) mod world;

use serde_json::{Value, json};

use self::world::{World, parse, problem, with_sidecars};
use super::*;
use crate::api::Reason;
use crate::operator::decide::backend::BackendFault;
use crate::operator::decide::validate::FarmRefusal;
use crate::operator::names::id;
use crate::ring::Plan;
use crate::ring::fixtures::{POLICY, at, ring, secret};

use ConditionStatus::{False, True, Unknown};
use ConditionType::{
    Accepted, Available, BackendsReady, CertificatesReady, KeysSynced, Ready, SessionCacheReady,
    TrustedProxiesSafe,
};

#[test]
fn a_good_farm_is_ready_and_says_what_kubectl_prints() {
    let status = World::new().status(None);
    assert!(
        status.conditions.iter().all(|condition| condition.status == True),
        "{:#?}",
        status.conditions
    );
    assert!(
        status
            .conditions
            .iter()
            .all(|condition| condition.observed_generation == 4)
    );
    let types: Vec<_> = status
        .conditions
        .iter()
        .map(|condition| condition.type_)
        .collect();
    assert_eq!(
        types,
        [
            Accepted,
            CertificatesReady,
            BackendsReady,
            Available,
            KeysSynced,
            SessionCacheReady,
            TrustedProxiesSafe,
            Ready
        ]
    );
    assert_eq!(
        (status.proxies.as_str(), status.replicas, status.ready_replicas),
        ("3/3", 3, 3)
    );
    assert_eq!(status.observed_generation, Some(4));
    assert_eq!(status.addresses, ["10.0.0.1"]);
    let ring = status.ring.expect("there is a ring");
    assert_eq!(
        (ring.acked.as_str(), ring.acknowledged, ring.generation),
        ("3/3", 3, 1)
    );
    assert_eq!(ring.next_rotation, at(3600));
}

#[test]
fn a_farm_is_ready_when_its_condition_ready_is_true() {
    let mut world = World::new();
    assert!(is_ready(&world.status(None)));
    world.problem = Some("quota".into());
    let unready = world.status(None);
    assert!(!is_ready(&unready), "others are true");
    assert!(!is_ready(&TLSFarmStatus::default()));
}

#[test]
fn the_same_facts_give_the_same_status_at_any_later_time() {
    let mut world = World::new();
    let first = world.status(None);
    world.now = at(1000);
    assert_eq!(world.status(Some(&first)), first);
}

#[test]
fn every_condition_is_there_from_the_start() {
    let mut world = World::new();
    world.live = Live::default();
    world.proxies.clear();
    world.ring = None;
    let found: Vec<_> = world
        .status(None)
        .conditions
        .into_iter()
        .map(|condition| (condition.type_, condition.status))
        .collect();
    let expected = [
        (Accepted, True),
        (CertificatesReady, Unknown),
        (BackendsReady, True),
        (Available, False),
        (KeysSynced, Unknown),
        (SessionCacheReady, True),
        (TrustedProxiesSafe, True),
        (Ready, False),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_refused_farm_says_why() {
    let refuse =
        |world: &mut World| world.refusal = Some(FarmRefusal::new(Reason::HostnameConflict, "x is taken"));
    let why = (False, Reason::HostnameConflict, "x is taken".to_owned());
    assert_eq!(World::after(Accepted, refuse), why);
    assert_eq!(World::after(Ready, refuse), why);
}

#[test]
fn certificate_problems_are_reported_once_for_all_pods() {
    let (status, reason, message) = World::after(CertificatesReady, |world| {
        for one in &mut world.proxies {
            let report = one.memory.report.as_mut().expect("reported");
            report.certificates = vec![problem(
                Reason::KeyMismatch,
                "host shop: the key of shop-tls is another's",
            )];
        }
    });
    assert_eq!((status, reason), (False, Reason::KeyMismatch));
    assert_eq!(message, "host shop: the key of shop-tls is another's");
}

#[test]
fn certificates_are_unknown_until_a_proxy_runs_the_current_configuration() {
    let (status, reason, _) = World::after(CertificatesReady, |world| world.live.config = Some("new".into()));
    assert_eq!((status, reason), (Unknown, Reason::Pending));
}

#[test]
fn missing_backends_are_named() {
    let missing = |world: &mut World| {
        world.backend_faults = vec![BackendFault::NoService {
            service: "late".into(),
        }]
    };
    let (status, reason, message) = World::after(BackendsReady, missing);
    assert_eq!((status, reason), (False, Reason::BackendNotFound));
    assert!(message.contains("Service late not found"), "{message}");
    assert_eq!(World::after(Ready, missing).1, Reason::BackendNotFound);
}

#[test]
fn one_missing_proxy_leaves_the_farm_available_and_not_ready() {
    let one_down = |world: &mut World| world.proxies[0].proxy.ready_since = None;
    assert_eq!(World::after(Available, one_down).0, True);
    assert_eq!(World::after(Ready, one_down).1, Reason::Progressing);
    let two_down = |world: &mut World| {
        world.proxies[..2]
            .iter_mut()
            .for_each(|one| one.proxy.ready_since = None)
    };
    assert_eq!(World::after(Available, two_down).1, Reason::ProxiesUnavailable);
    let to_zero = |world: &mut World| {
        world.farm.spec.replicas = 0;
        world.proxies.clear();
    };
    assert_eq!(World::after(Available, to_zero).1, Reason::ScaledToZero);
    assert_eq!(World::after(Ready, to_zero).1, Reason::ScaledToZero);
}

#[test]
fn reasons_why_proxies_do_not_serve_are_reported() {
    let pods_refused = json!({
        "metadata": {"generation": 2},
        "status": {
            "observedGeneration": 2,
            "conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}],
        },
    });
    let (_, reason, message) = World::after(Ready, |world| {
        world.live.deployment = Some(parse(pods_refused));
        world.proxies.clear();
    });
    assert_eq!(
        (reason, message.as_str()),
        (
            Reason::ProxiesUnavailable,
            "0 of 3 proxies are ready; exceeded quota"
        )
    );

    let one_stuck = |world: &mut World| {
        world.proxies[0].proxy.ready_since = None;
        world.proxies[0].proxy.obstacle = Some("CrashLoopBackOff, OOMKilled".into());
    };
    let message = "2 of 3 proxies are ready; a: CrashLoopBackOff, OOMKilled";
    for type_ in [Available, Ready] {
        assert_eq!(World::after(type_, one_stuck).2, message);
    }

    let (_, _, message) = World::after(Ready, |world| {
        world.problem = Some("failed to apply Deployment shop-proxy: no".into());
        world.proxies.clear();
    });
    assert!(
        message.ends_with("; failed to apply Deployment shop-proxy: no"),
        "{message}"
    );
}

#[test]
fn ring_distribution_does_not_make_the_farm_unready() {
    let behind = |world: &mut World| {
        world.proxies[1].memory.generation = None;
        world.proxies[1].memory.behind_since = Some(at(50));
    };
    let (status, reason, message) = World::after(KeysSynced, behind);
    assert_eq!((status, reason), (False, Reason::Distributing));
    assert!(message.ends_with("by b"), "{message}");
    assert_eq!(World::after(Ready, behind).1, Reason::FarmReady);
}

#[test]
fn an_overdue_acknowledgement_names_the_pod_and_makes_the_farm_unready() {
    let overdue = |world: &mut World| {
        world.proxies[1].memory.generation = None;
        world.proxies[1].memory.behind_since = Some(at(0));
        world.now = at(600);
    };
    let (status, reason, message) = World::after(KeysSynced, overdue);
    assert_eq!((status, reason), (False, Reason::AcknowledgementOverdue));
    assert!(message.ends_with(": b"), "{message}");
    assert_eq!(World::after(Ready, overdue).1, Reason::AcknowledgementOverdue);
}

#[test]
fn a_repair_shows_until_every_proxy_has_the_ring() {
    let (status, reason, message) = World::after(KeysSynced, |world| {
        world.repaired = Some("the ring Secret was missing".into());
        world.proxies[0].memory.generation = None;
    });
    assert_eq!((status, reason), (False, Reason::RingRepaired));
    assert_eq!(message, "the ring Secret was missing");
    let done = World::after(KeysSynced, |world| {
        world.repaired = Some("the ring Secret was missing".into())
    });
    assert_eq!(done.1, Reason::Acknowledged);
}

#[test]
fn a_waiting_rotation_names_the_proxies() {
    let (status, _, message) = World::after(KeysSynced, |world| {
        world.plan = Some(Plan::Wait {
            missing: vec!["d".into()],
            until: at(600),
        });
    });
    assert_eq!(status, True);
    assert!(message.contains("is waiting for d"), "{message}");
}

#[test]
fn ready_waits_for_the_rollout_and_for_the_configuration() {
    let rollout = |status: Value| {
        World::after(Ready, |world| {
            world.live.deployment = Some(parse(json!({"metadata": {"generation": 2}, "status": status})));
        })
        .1
    };
    let behind = json!({"observedGeneration": 1, "replicas": 3, "updatedReplicas": 3});
    assert_eq!(rollout(behind), Reason::Progressing);
    let replacing = json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3});
    assert_eq!(rollout(replacing), Reason::Progressing);
    let (_, reason, message) = World::after(Ready, |world| {
        let report = world.proxies[2].memory.report.as_mut().expect("reported");
        report.config.fingerprint = "old".into();
        report.config.problem = Some("it is malformed".into());
    });
    assert_eq!(reason, Reason::Progressing);
    assert!(message.contains("c (it is malformed)"), "{message}");
    let failed = World::after(Ready, |world| world.problem = Some("quota".into()));
    assert_eq!((failed.1, failed.2.as_str()), (Reason::Progressing, "quota"));
}

#[test]
fn the_load_balancer_address_is_preferred_to_the_cluster_ip() {
    let mut world = World::new();
    world.live.service = Some(parse(json!({
        "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb.example.com"}]}},
    })));
    assert_eq!(world.status(None).addresses, ["192.0.2.1", "lb.example.com"]);
}

#[test]
fn session_cache_status_counts_who_reaches_it_and_names_the_others() {
    let mut world = World::new();
    assert_eq!(world.condition(SessionCacheReady).reason, Reason::CacheDisabled);
    assert_eq!(world.status(None).session_cache, None);

    with_sidecars(&mut world, &[]);
    world.certificate_renewal = Some(at(90));
    let status = world.status(None);
    let cache = status.session_cache.as_ref().expect("there is one");
    assert_eq!(
        (cache.reachable.as_str(), cache.certificate_renewal),
        ("3/3", Some(at(90)))
    );
    assert_eq!(world.condition(Ready).status, True);
    world.certificate_renewal = None;
    assert_eq!(
        world.status(Some(&status)),
        status,
        "certificates that were not seen are not gone"
    );

    with_sidecars(&mut world, &["b"]);
    let cache = world.status(None).session_cache.expect("there is one");
    assert_eq!(cache.reachable, "2/3");
    let condition = world.condition(SessionCacheReady);
    assert_eq!(
        (condition.status, condition.reason),
        (False, Reason::CacheUnreachable)
    );
    assert!(
        condition.message.contains("b (no connection)"),
        "{}",
        condition.message
    );
    assert_eq!(world.condition(Ready).reason, Reason::CacheUnreachable);
}

#[test]
fn session_cache_ready_is_unknown_until_every_proxy_has_reported() {
    let (status, _, message) = World::after(SessionCacheReady, |world| {
        with_sidecars(world, &[]);
        world.proxies[1]
            .memory
            .report
            .as_mut()
            .expect("reported")
            .session_cache = None;
    });
    assert_eq!(status, Unknown);
    assert!(message.contains('b'), "{message}");
}

#[test]
fn every_key_of_the_ring_is_listed_with_its_role_and_times_in_whole_seconds() {
    let mut world = World::new();
    let first = ring();
    let a_moment_later = at(3600) + jiff::SignedDuration::from_millis(999);
    let rotated = first.rotated(secret(), None, &POLICY, a_moment_later);
    world.ring = Some(rotated.clone());
    world.proxies[0].memory.generation = Some(2);
    let status = world.status(None).ring.expect("there is a ring");
    let keys: Vec<_> = status.keys.iter().map(|key| (key.id.clone(), key.role)).collect();
    let expected = [
        (rotated.next.id.to_string(), KeyRole::Next),
        (rotated.primary.id.to_string(), KeyRole::Primary),
        (rotated.previous[0].id.to_string(), KeyRole::Previous),
    ];
    assert_eq!(keys, expected);
    assert_eq!(status.primary, rotated.primary.id.to_string());
    assert_eq!((status.acknowledged, status.acked.as_str()), (1, "1/3"));
    assert_eq!((status.last_rotation, status.next_rotation), (at(3600), at(7200)));
    assert_eq!(status.keys[0].created_at, at(3600));
}

#[test]
fn a_ring_that_was_not_seen_in_this_pass_stays_in_the_status() {
    let mut world = World::new();
    let before = world.status(None);
    world.ring = None;
    assert_eq!(world.status(Some(&before)).ring, before.ring);
    assert_eq!(world.status(None).ring, None);
}

#[test]
fn proxies_that_do_not_serve_count_only_as_replicas() {
    let mut world = World::new();
    world.proxies[0].proxy.ready_since = None;
    let status = world.status(None);
    assert_eq!((status.replicas, status.ready_replicas), (3, 2));
    assert_eq!(status.proxies, "2/3");
    assert_eq!(status.ring.expect("there is a ring").acked, "2/2");
    assert_eq!(status.selector, id("shop").pod_selector());
}

#[test]
fn a_service_that_has_no_address_yet_shows_none() {
    let addresses = |service: Option<Value>| {
        let mut world = World::new();
        world.live.service = service.map(parse);
        world.status(None).addresses
    };
    let none: [&str; 0] = [];
    assert_eq!(addresses(None), none);
    assert_eq!(addresses(Some(json!({}))), none);
    assert_eq!(
        addresses(Some(
            json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}})
        )),
        none
    );
    assert_eq!(addresses(Some(json!({"spec": {"clusterIP": ""}}))), none);
    assert_eq!(
        addresses(Some(json!({"spec": {"clusterIP": "10.0.0.1"}}))),
        ["10.0.0.1"]
    );
    let both = json!({"spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]}});
    assert_eq!(addresses(Some(both)), ["10.0.0.1", "fd00::1"]);
}

#[test]
fn only_sidecars_have_certificates_to_renew() {
    let mut world = World::new();
    with_sidecars(&mut world, &[]);
    world.certificate_renewal = Some(at(90));
    let before = world.status(None);
    world.farm.spec.resumption.session_cache.mode = SessionCacheMode::Redis;
    let cache = world.status(Some(&before)).session_cache.expect("there is one");
    assert_eq!(cache.certificate_renewal, None);
    assert_eq!(
        (cache.mode, cache.reachable.as_str()),
        (SessionCacheMode::Redis, "3/3")
    );
}

#[test]
fn proxies_that_do_not_serve_are_ignored_for_the_session_cache() {
    let mut world = World::new();
    with_sidecars(&mut world, &[]);
    world.proxies[2].proxy.ready_since = None;
    let cache = world.status(None).session_cache.expect("there is one");
    assert_eq!(cache.reachable, "2/2");
}

#[test]
fn unreachable_caches_are_reported_before_unknown_ones() {
    let (status, reason, message) = World::after(SessionCacheReady, |world| {
        with_sidecars(world, &["b"]);
        let silent = world.proxies[0].memory.report.as_mut().expect("reported");
        silent.session_cache = None;
    });
    assert_eq!((status, reason), (False, Reason::CacheUnreachable), "{message}");
}

#[test]
fn a_farm_is_not_ready_until_every_proxy_has_reported_its_configuration() {
    let (status, reason, message) = World::after(Ready, |world| world.proxies[2].memory.report = None);
    assert_eq!((status, reason), (False, Reason::Progressing));
    assert!(message.ends_with("not loaded yet by c"), "{message}");
}

#[test]
fn a_load_balancer_address_is_preferred_to_its_host_name() {
    let mut world = World::new();
    world.live.service = Some(parse(json!({
        "spec": {"clusterIP": "10.0.0.1"},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "hostname": "lb.example.com"}]}},
    })));
    assert_eq!(world.status(None).addresses, ["192.0.2.1"]);
}

#[test]
fn trusting_the_addresses_of_nodes_is_a_warning_where_clients_arrive_from_them() {
    let trusting = |networks: Value, service: Value| {
        World::after(TrustedProxiesSafe, |world| {
            world.farm.spec.proxy.trusted_proxies = parse(networks);
            world.farm.spec.service = parse(service);
            world.proxies[1].proxy.node_addresses = vec!["192.168.7.2".parse().expect("an address")];
            world.proxies[2].proxy.addresses = ["10.244.1.7", "fd00:244::7"]
                .map(|address| address.parse().expect("an address"))
                .into();
        })
    };
    let (status, reason, message) = trusting(json!(["10.0.0.0/8"]), json!({}));
    assert_eq!((status, reason), (False, Reason::NodesTrusted));
    for word in ["10.0.0.0/8", "10.244.1.7", "externalTrafficPolicy"] {
        assert!(message.contains(word), "{message}");
    }
    let of_a_node = trusting(
        json!(["203.0.113.0/24", "192.168.0.0/16"]),
        json!({"type": "NodePort"}),
    );
    assert_eq!((of_a_node.0, of_a_node.1), (False, Reason::NodesTrusted));

    let of_the_other_family = trusting(json!(["fd00:244::/64"]), json!({}));
    assert_eq!(
        (of_the_other_family.0, of_the_other_family.1),
        (False, Reason::NodesTrusted)
    );
    for everybody in ["0.0.0.0/0", "::/0", "128.0.0.0/1"] {
        for service in [
            json!({}),
            json!({"externalTrafficPolicy": "Local"}),
            json!({"type": "ClusterIP"}),
        ] {
            let (status, reason, _) = trusting(json!([everybody]), service.clone());
            assert_eq!(
                (status, reason),
                (False, Reason::AnyoneTrusted),
                "{everybody} {service}"
            );
        }
    }

    for (networks, service, expected) in [
        (json!([]), json!({}), Reason::NodesNotTrusted),
        (json!(["203.0.113.0/24"]), json!({}), Reason::NodesNotTrusted),
        (
            json!(["10.0.0.0/8"]),
            json!({"externalTrafficPolicy": "Local"}),
            Reason::ClientAddressesPreserved,
        ),
        (
            json!(["10.0.0.0/8"]),
            json!({"type": "ClusterIP"}),
            Reason::ClientAddressesPreserved,
        ),
    ] {
        let (status, reason, _) = trusting(networks.clone(), service.clone());
        assert_eq!((status, reason), (True, expected), "{networks} {service}");
    }
}

#[test]
fn a_warning_about_trusted_proxies_does_not_make_the_farm_unready() {
    let trusting = |world: &mut World| {
        world.farm.spec.proxy.trusted_proxies = parse(json!(["10.0.0.0/8"]));
        world.proxies[0].proxy.addresses = vec!["10.244.1.7".parse().expect("an address")];
    };
    assert_eq!(World::after(TrustedProxiesSafe, trusting).0, False);
    assert_eq!(World::after(Ready, trusting).1, Reason::FarmReady);
    let without_addresses = |world: &mut World| {
        world.farm.spec.proxy.trusted_proxies = parse(json!(["10.0.0.0/8"]));
    };
    assert_eq!(World::after(TrustedProxiesSafe, without_addresses).0, Unknown);
    assert_eq!(World::after(Ready, without_addresses).1, Reason::FarmReady);
}

#[test]
fn a_ring_of_a_later_release_is_a_condition_and_makes_the_farm_unready() {
    let later = |world: &mut World| world.unknown_format = Some(2);
    let (status, reason, message) = World::after(KeysSynced, later);
    assert_eq!((status, reason), (False, Reason::RingFormatUnknown));
    assert!(message.contains("version 2"), "{message}");
    assert_eq!(World::after(Ready, later).1, Reason::RingFormatUnknown);
}
