//! The session cache: sessions without tickets resume at every proxy, and nothing that happens to the caches costs more
//! than a full handshake.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cached_farm::{
    BANK, PATIENCE, SHOP, ask_as_peer, deploy, own_identity, resumes_everywhere, sidecars, status,
    try_everywhere, unless_disturbed,
};
use crate::harness::{Load, Namespace, Version, farm, process, repository, run, s_client, scratch, wait_for};

#[test]
fn session_ids_resume_at_every_proxy_and_single_use_tickets_once() {
    let namespace = Namespace::with_operator("test-session-ids");
    deploy(&namespace, sidecars());
    resumes_everywhere(&namespace);
    unless_disturbed(&namespace, "the probe", || probe_says_so(&namespace));
    namespace.delete();
}

#[test]
fn caches_that_are_killed_and_farms_that_are_scaled_lose_no_request() {
    let namespace = Namespace::with_operator("test-caches-killed");
    deploy(&namespace, sidecars());
    let service: SocketAddr = format!("{}:443", namespace.service_address("shop"))
        .parse()
        .expect("an address");
    let traffic = Traffic::start("caches-killed", service);

    for (name, address) in namespace.proxies("shop") {
        let victim = cache_process(address).expect("every pod has a cache");
        run("kill", &["-KILL", &victim.to_string()], None).unwrap_or_else(|error| panic!("{error}"));
        // The pod is not ready while its sidecar is gone, so one after another.
        wait_for("the cache to come back", PATIENCE, || {
            cache_process(address).filter(|process| *process != victim)
        });
        wait_for("the farm to be whole again", PATIENCE, || {
            let whole = namespace.proxies("shop").len() == 3;
            (whole && namespace.condition("shop", "SessionCacheReady").0 == "True").then_some(())
        });
        println!("killed the cache of {name}");
    }
    for replicas in [5, 2] {
        namespace.kubectl(&["scale", "tlsfarm/shop", &format!("--replicas={replicas}")]);
        wait_for("the farm to be scaled", PATIENCE, || {
            let pods = namespace.list("pods", "tlsfarm.dev/farm=shop").len();
            (pods == replicas && namespace.proxies("shop").len() == replicas).then_some(())
        });
        println!("scaled to {replicas}");
    }
    traffic.stop_without_losses();
    namespace.wait_ready("shop");
    unless_disturbed(&namespace, "after all that", || {
        try_everywhere(&namespace).map_or(Ok(()), Err)
    });
    namespace.delete();
}

#[test]
fn a_node_that_is_cut_off_takes_its_entries_and_nothing_else() {
    // The other tests' pods are on that node too.
    let namespace = Namespace::with_operator_alone("test-node-cut");
    let pinned =
        json!({"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "node1"}}}}});
    for deployment in ["web", "tlsfarm"] {
        namespace.kubectl(&["patch", "deployment", deployment, "--patch", &pinned.to_string()]);
        namespace.kubectl(&["rollout", "status", "deployment", deployment, "--timeout=120s"]);
    }
    deploy(&namespace, sidecars());
    let on_node = |node: &str| -> Vec<SocketAddr> {
        let pods = namespace.list("pods", "tlsfarm.dev/farm=shop");
        let there: Vec<_> = pods
            .iter()
            .filter(|pod| pod["spec"]["nodeName"] == node)
            .map(|pod| pod["metadata"]["name"].as_str().expect("named").to_owned())
            .collect();
        let proxies = namespace.proxies("shop").into_iter();
        proxies
            .filter(|(name, _)| there.contains(name))
            .map(|(_, address)| address)
            .collect()
    };
    let near = on_node("node1");
    assert!(
        !near.is_empty() && !on_node("node2").is_empty(),
        "the proxies are not spread"
    );
    let near = near[0];
    let traffic = Traffic::start("node-cut", near);

    let cut = Cut::off("2");
    let session = scratch("node-cut").join("session.pem");
    let until = Instant::now() + Duration::from_secs(60);
    let mut slowest = Duration::ZERO;
    let mut handshakes = 0;
    while Instant::now() < until {
        // Owners on the other node do not answer: some of these are full handshakes, none of them waits.
        let start = Instant::now();
        let first = s_client(near, SHOP, Version::Tls12WithoutTickets, Some(&session), None);
        let second = s_client(near, SHOP, Version::Tls12WithoutTickets, None, Some(&session));
        slowest = slowest.max(start.elapsed());
        assert!(first.served && second.served, "{first:?} {second:?}");
        handshakes += 2;
    }
    println!("{handshakes} handshakes beside a node that is cut off, the slowest two took {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "the slowest took {slowest:?}");
    drop(cut);

    namespace.wait_ready("shop");
    traffic.stop_without_losses();
    wait_for("the caches to find each other again", PATIENCE, || {
        try_everywhere(&namespace).is_none().then_some(())
    });
    namespace.delete();
}

#[test]
fn strangers_are_refused_and_what_is_switched_off_or_deleted_leaves_nothing() {
    let namespace = Namespace::with_operator("test-cache-off");
    deploy(&namespace, sidecars());
    for (name, address) in namespace.proxies("shop") {
        let peers = SocketAddr::new(address.ip(), 7443);
        for identity in [None, Some(own_identity("cache.shop.test-cache-off.tlsfarm"))] {
            let seen = ask_as_peer(peers, identity.as_ref());
            assert!(
                !seen.contains("PONG") && seen.contains("alert"),
                "{name} talks to a stranger: {seen}"
            );
        }
    }
    let secret = |name: &str| namespace.get("secret", name);
    let authority = secret("shop-cache-ca").expect("the farm has an authority");
    assert_eq!(authority["type"], "tlsfarm.dev/cache-ca");
    let pods = namespace.list("pods", "tlsfarm.dev/farm=shop");
    assert!(
        !json!(pods).to_string().contains("shop-cache-ca"),
        "a pod mounts the authority"
    );
    let status = || status(&namespace);
    assert_eq!(
        (&status()["mode"], &status()["reachable"]),
        (&json!("Sidecar"), &json!("3/3"))
    );
    assert!(status()["certificateRenewal"].is_string());

    // The operator may not watch Secrets; it looks twice a minute.
    namespace.kubectl(&["delete", "secret", "shop-cache-tls", "shop-cache-ca"]);
    wait_for("both Secrets to be made anew", PATIENCE, || {
        secret("shop-cache-tls").and(secret("shop-cache-ca"))
    });
    wait_for("the caches to trust the new authority", PATIENCE, || {
        try_everywhere(&namespace).is_none().then_some(())
    });

    let mut off = farm("shop", 3, &[("shop", SHOP), ("bank", BANK)]);
    off["spec"]["resumption"] = json!({"sessionCache": {"mode": "Disabled"}});
    namespace.apply(&off);
    namespace.wait_condition_for("shop", "SessionCacheReady", "True", "CacheDisabled", PATIENCE);
    let leftovers = || -> Vec<&str> {
        let named = [
            ("service", "shop-cache"),
            ("secret", "shop-cache-ca"),
            ("secret", "shop-cache-tls"),
        ];
        let there = named
            .into_iter()
            .filter(|(kind, name)| namespace.get(kind, name).is_some());
        there.map(|(_, name)| name).collect()
    };
    wait_for("what belongs to the cache to go", PATIENCE, || {
        let pods = namespace.list("pods", "tlsfarm.dev/farm=shop");
        let without = pods.iter().all(|pod| pod["spec"]["initContainers"].is_null());
        (without && leftovers().is_empty()).then_some(())
    });
    assert_eq!(status(), Value::Null);
    namespace.wait_ready("shop");

    deploy(&namespace, sidecars());
    namespace.kubectl(&["delete", "tlsfarm", "shop"]);
    wait_for("everything of the farm to go", PATIENCE, || {
        leftovers().is_empty().then_some(())
    });
    namespace.delete();
}

/// Demands of the probe, which goes to every pod, a table for each mechanism that the farm offers with 100 % in it.
fn probe_says_so(namespace: &Namespace) -> Result<(), String> {
    let probe = env!("CARGO_BIN_EXE_tlsfarm");
    let farm = ["probe", "shop", "--namespace", namespace.name];
    let json = run(probe, &[&farm[..], &["--output=json"]].concat(), None)?;
    let document: Value = serde_json::from_str(&json).expect("JSON");
    let proxies = namespace.proxies("shop");
    let names: Vec<_> = proxies.iter().map(|(name, _)| name.as_str()).collect();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let pair = |issuer: &str, resumer: &str| (issuer.to_owned(), resumer.to_owned());
    let of = |issuer| names.iter().map(move |resumer| pair(issuer, resumer));
    let all: Vec<_> = names.iter().flat_map(|issuer| of(issuer)).collect();
    let mut offered = BTreeSet::new();
    for matrix in document["matrices"].as_array().expect("a list") {
        offered.insert((text(&matrix["serverName"]), text(&matrix["mechanism"])));
        let trials = matrix["fresh"].as_array().expect("a list");
        let pairs: Vec<_> = trials
            .iter()
            .map(|trial| (text(&trial["issuer"]), text(&trial["resumer"])))
            .collect();
        assert_eq!(pairs, all);
        for trial in trials {
            assert_eq!(trial["outcome"], "resumed", "{trial}");
            let again = trial["offeredAgainTo"].is_string();
            assert_eq!(again, matrix["mechanism"] == "tls13-single-use", "{trial}");
        }
    }
    let expected = [
        (BANK, "tls12-session-id"),
        (BANK, "tls13-single-use"),
        (SHOP, "tls12-session-id"),
        (SHOP, "tls12-ticket"),
        (SHOP, "tls13-ticket"),
    ];
    let expected = expected.map(|(host, mechanism)| (host.to_owned(), mechanism.to_owned()));
    assert_eq!(offered, BTreeSet::from(expected));

    let tables = run(probe, &farm, None)?;
    for title in [
        "shop.example.com  TLS 1.2 session id",
        "bank.example.com  TLS 1.3 single-use",
    ] {
        let title = format!("{title}  9/9  100 %");
        assert!(
            tables.lines().any(|line| line == title),
            "no {title:?} in\n{tables}"
        );
    }
    Ok(())
}

/// The process of the cache beside the proxy at `address`.
fn cache_process(address: SocketAddr) -> Option<u32> {
    process(
        "/etc/tlsfarm/config/cache.json",
        &format!("POD_IP={}", address.ip()),
    )
}

/// A node that is off the network until this is dropped.
struct Cut(&'static str);

impl Cut {
    fn off(node: &'static str) -> Self {
        cluster("cut", node);
        Self(node)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        cluster("mend", self.0);
    }
}

fn cluster(command: &str, node: &str) {
    let script = repository().join("tests/cluster/cluster");
    let script = script.to_str().expect("UTF-8");
    run(script, &[command, node], None).unwrap_or_else(|error| panic!("{error}"));
}

/// Requests over kept and over new connections, and sessions without tickets that are taken and offered again.
struct Traffic {
    loads: Vec<Load>,
    sessions: JoinHandle<(u32, u32, u32)>,
    stop: Arc<AtomicBool>,
}

impl Traffic {
    fn start(name: &'static str, address: SocketAddr) -> Self {
        let limit = Duration::from_secs(900);
        let loads = [(50, true), (10, false)]
            .map(|(rate, keep)| Load::start(name, SHOP, &address.to_string(), rate, keep, limit))
            .into();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sessions = thread::spawn(move || {
            let session = scratch(name).join("traffic.pem");
            let (mut offered, mut resumed, mut failed) = (0, 0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let first = s_client(address, SHOP, Version::Tls12WithoutTickets, Some(&session), None);
                let second = s_client(address, SHOP, Version::Tls12WithoutTickets, None, Some(&session));
                offered += 1;
                resumed += u32::from(second.resumed);
                failed += u32::from(!first.served) + u32::from(!second.served);
            }
            (offered, resumed, failed)
        });
        Self {
            loads,
            sessions,
            stop,
        }
    }

    fn stop_without_losses(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (offered, resumed, failed) = self.sessions.join().expect("the sessions' thread ends");
        println!("{offered} sessions were offered, {resumed} of them resumed");
        let mut failures = Vec::new();
        for load in self.loads {
            let (requests, some) = load.stop();
            println!("{requests} requests, failures: {some:?}");
            assert!(requests > 0, "the load tool sent nothing");
            failures.extend(some);
        }
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(
            failed, 0,
            "handshakes or requests of sessions without tickets failed"
        );
        assert!(resumed > 0, "no session was resumed at all");
    }
}
