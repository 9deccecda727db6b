//! The session cache: sessions without tickets resume at every proxy, and nothing that happens to the caches costs more
//! than a full handshake.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cached_farm::{
    BANK, PATIENCE, PEERS_PORT, Proxy, SHOP, ask_as_peer, deploy, fingerprint, hurry_kubelets, own_identity,
    presented_by, secret_texts, sidecars, status, when_linked, when_linked_within,
};
use crate::due::{Due, Explained, Watched};
use crate::harness::{Namespace, authority_file, farm, process, shares, signal, wait_for};
use crate::id_traffic::Traffic;

/// How long the farm may take to be whole again after one of its caches was killed, or to be scaled.
const RECOVERY: Duration = Duration::from_secs(60);

/// Mechanisms of the probe that need the cache.
const IN_THE_CACHE: [&str; 2] = ["tls12-session-id", "tls13-single-use"];

#[test]
fn session_ids_resume_at_every_proxy_and_single_use_tickets_once() {
    let namespace = Namespace::with_operator("test-session-ids");
    deploy(&namespace, sidecars());
    let proxies = when_linked(&namespace, 3);
    let mut due = Due::default();
    due.everywhere(&proxies);
    due.attempt("the probe", || probe_says_so(&namespace, &proxies));
    due.attempt("the probe's tables", || probe_prints_so(&namespace, &proxies));
    namespace.delete();
}

#[test]
fn caches_that_are_killed_and_farms_that_are_scaled_lose_no_request() {
    let namespace = Namespace::with_operator("test-caches-killed");
    deploy(&namespace, sidecars());
    let proxies = when_linked(&namespace, 3);
    let service: SocketAddr = format!("{}:443", namespace.service_address("shop"))
        .parse()
        .expect("an address");
    let mut traffic = Traffic::start("caches-killed", service, &proxies);

    for (name, address) in namespace.proxies("shop") {
        // The pod is not ready while its sidecar is gone, so one after another.
        // It may be that of the proxy that issues a session, of the one that resumes it, or the owner of the entry: all but
        // the eight in 27 sessions with which it has nothing to do. 19 in 27 are 70.4 %.
        traffic.during(&format!("the cache of {name} was killed"), 72, || {
            let before = cache_restarts(&namespace, &name);
            let victim = cache_process(address).expect("every pod has a cache");
            signal(victim, "KILL");
            // The pod is unready meanwhile; the others must have noticed before they are checked.
            wait_for("the cache to come back", RECOVERY, || {
                (cache_restarts(&namespace, &name) > before).then_some(())
            });
            when_linked_within(&namespace, 3, RECOVERY)
        });
    }
    // A little more than the share of the entries that change their owner: two of five, and three of five.
    for (replicas, moved) in [(5, 42), (2, 62)] {
        traffic.during(&format!("the farm was scaled to {replicas}"), moved, || {
            namespace.kubectl(&["scale", "tlsfarm/shop", &format!("--replicas={replicas}")]);
            let proxies = when_linked_within(&namespace, replicas, RECOVERY);
            // Terminating pods still serve for a while, and their caches see other members than the remaining ones.
            wait_for("the farm to be scaled", PATIENCE, || {
                (namespace.list("pods", "tlsfarm.dev/farm=shop").len() == replicas).then_some(())
            });
            proxies
        });
    }
    traffic.stop_without_losses();
    namespace.wait_ready("shop");
    Due::default().everywhere(&when_linked(&namespace, 2));
    namespace.delete();
}

#[test]
fn foreign_clients_are_refused_and_disabling_or_deleting_leaves_nothing() {
    let namespace = Namespace::with_operator("test-cache-off");
    deploy(&namespace, sidecars());
    for (name, address) in namespace.proxies("shop") {
        let peers = SocketAddr::new(address.ip(), PEERS_PORT);
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

    // The operator may not watch Secrets; it polls them twice a minute.
    namespace.kubectl(&["delete", "secret", "shop-cache-tls", "shop-cache-ca"]);
    let leaf = wait_for("both Secrets to be recreated", PATIENCE, || {
        secret("shop-cache-ca").and(secret_texts(&namespace, "shop-cache-tls"))
    });
    hurry_kubelets(&namespace, "new-authority");
    wait_for("the caches to present the new leaf", PATIENCE, || {
        let caches = namespace.proxies("shop").into_iter();
        let mut presented =
            caches.map(|(_, address)| presented_by(SocketAddr::new(address.ip(), PEERS_PORT)));
        presented
            .all(|presented| presented == fingerprint(&leaf["tls.crt"]))
            .then_some(())
    });
    Due::default().everywhere(&when_linked(&namespace, 3));

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
fn probe_says_so(namespace: &Namespace, proxies: &[Proxy]) -> Result<(), Explained> {
    let watched = Watched::from_now(proxies);
    let (_, json) = probe(namespace, "json");
    let document: Value = serde_json::from_str(&json).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let names = || proxies.iter().map(|proxy| proxy.name.clone());
    let all: Vec<_> = names()
        .flat_map(|issuer| names().map(move |resumer| (issuer.clone(), resumer)))
        .collect();
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
            if trial["outcome"] == "missed" && IN_THE_CACHE.contains(&text(&matrix["mechanism"]).as_str()) {
                return Err(watched.explain(&text(&trial["issuer"]), &text(&trial["resumer"])));
            }
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
    Ok(())
}

/// Demands the same of the tables that people read.
fn probe_prints_so(namespace: &Namespace, proxies: &[Proxy]) -> Result<(), Explained> {
    let watched = Watched::from_now(proxies);
    let (clean, tables) = probe(namespace, "text");
    let mut title = "";
    for line in tables.lines() {
        if line.ends_with(" %") {
            title = line;
        }
        let missed = line.trim_start().strip_prefix("missed: session of ");
        let in_the_cache = title.contains("session id") || title.contains("single-use");
        if let Some((issuer, rest)) = missed.and_then(|missed| missed.split_once(" at "))
            && in_the_cache
        {
            let resumer = rest.split_once(':').map_or(rest, |(resumer, _)| resumer);
            return Err(watched.explain(issuer, resumer));
        }
    }
    let expected = [
        "bank.example.com  TLS 1.2 session id  9/9  100 %",
        "bank.example.com  TLS 1.3 single-use  9/9  100 %",
        "shop.example.com  TLS 1.2 session id  9/9  100 %",
        "shop.example.com  TLS 1.2 ticket  9/9  100 %",
        "shop.example.com  TLS 1.3 ticket  9/9  100 %",
    ];
    assert_eq!(shares(&tables), BTreeSet::from(expected), "{tables}");
    assert!(clean, "{tables}");
    Ok(())
}

/// Whether the probe says that all is well, and what it prints.
fn probe(namespace: &Namespace, output: &str) -> (bool, String) {
    let probe = Command::new("timeout")
        .args(["120", env!("CARGO_BIN_EXE_tlsfarm"), "probe", "shop", "--ca-file"])
        .arg(authority_file())
        .args(["--namespace", namespace.name, "--output", output])
        .output()
        .expect("the probe runs");
    let text = String::from_utf8_lossy(&probe.stdout).into_owned();
    assert!(!text.is_empty(), "{}", String::from_utf8_lossy(&probe.stderr));
    (probe.status.success(), text)
}

/// How often the cache of a pod was restarted, as far as Kubernetes knows.
fn cache_restarts(namespace: &Namespace, pod: &str) -> u64 {
    let pod = namespace.get("pod", pod).expect("there");
    let restarts = &pod["status"]["initContainerStatuses"][0]["restartCount"];
    restarts.as_u64().expect("a pod has one sidecar")
}

/// The process of the cache beside the proxy at `address`.
fn cache_process(address: SocketAddr) -> Option<u32> {
    process(
        "/etc/tlsfarm/config/cache.json",
        &format!("POD_IP={}", address.ip()),
    )
}
