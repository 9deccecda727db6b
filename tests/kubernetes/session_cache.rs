//! The session cache: sessions without tickets resume at every proxy, and nothing that happens to the caches costs more
//! than a full handshake.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Handshake, Load, Namespace, Version, farm, repository, run, s_client, scratch, wait_for,
};

const SHOP: &str = "shop.example.com";
const BANK: &str = "bank.example.com";

/// How long the kubelet may take to notice a changed Secret, or a dead container, and the farm to settle.
const PATIENCE: Duration = Duration::from_secs(150);

#[test]
fn session_ids_resume_at_every_proxy_and_single_use_tickets_once() {
    let namespace = Namespace::with_operator("test-session-ids");
    deploy(&namespace);
    let proxies = namespace.proxies("shop");
    assert_eq!(proxies.len(), 3);
    for (issuer, at) in &proxies {
        for (resumer, elsewhere) in &proxies {
            let pair = format!("{issuer} -> {resumer}");
            unless_disturbed(&namespace, &pair, || resumes_by_session_id(*at, *elsewhere));
            unless_disturbed(&namespace, &pair, || {
                resumes_once(*at, *elsewhere, proxies.iter().map(|(_, address)| *address))
            });
        }
    }
    namespace.delete();
}

#[test]
fn caches_that_are_killed_and_farms_that_are_scaled_lose_no_request() {
    let namespace = Namespace::with_operator("test-caches-killed");
    deploy(&namespace);
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
    deploy(&namespace);
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
    deploy(&namespace);
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
    let status = || namespace.get("tlsfarm", "shop").expect("there")["status"]["sessionCache"].clone();
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

    deploy(&namespace);
    namespace.kubectl(&["delete", "tlsfarm", "shop"]);
    wait_for("everything of the farm to go", PATIENCE, || {
        leftovers().is_empty().then_some(())
    });
    namespace.delete();
}

/// A farm `shop` with sidecars and two hosts, of which `bank` has single-use tickets; waits until it is ready.
fn deploy(namespace: &Namespace) {
    namespace.create_certificate("shop-tls", &[SHOP]);
    namespace.create_certificate("bank-tls", &[BANK]);
    let mut shop = farm("shop", 3, &[("shop", SHOP), ("bank", BANK)]);
    shop["spec"]["hosts"][1]["tls"]["tickets"] = json!({"kind": "SingleUse"});
    // As long as may be: the machine is busy, and misses are failures here.
    shop["spec"]["resumption"] = json!({"sessionCache": {"mode": "Sidecar", "lookupTimeout": "50ms"}});
    namespace.apply(&shop);
    namespace.wait_condition_for("shop", "SessionCacheReady", "True", "CacheReachable", PATIENCE);
    namespace.wait_ready("shop");
}

fn resumes_by_session_id(at: SocketAddr, elsewhere: SocketAddr) -> Result<(), String> {
    let session = scratch("session-ids").join("session.pem");
    let ask = |address, hostname, save, offer| {
        s_client(address, hostname, Version::Tls12WithoutTickets, save, offer)
    };
    full(ask(at, SHOP, Some(&session), None), "a new session");
    for time in ["once", "again"] {
        let next = ask(elsewhere, SHOP, None, Some(&session));
        resumed(next, &format!("its id, {time}"))?;
    }
    full(
        ask(elsewhere, BANK, None, Some(&session)),
        "its id under another name",
    );
    Ok(())
}

fn resumes_once(
    at: SocketAddr,
    elsewhere: SocketAddr,
    everywhere: impl Iterator<Item = SocketAddr>,
) -> Result<(), String> {
    let session = scratch("single-use").join("session.pem");
    let ask = |address, save, offer| s_client(address, BANK, Version::Tls13, save, offer);
    full(ask(at, Some(&session), None), "a new session");
    resumed(ask(elsewhere, None, Some(&session)), "a single-use ticket")?;
    for proxy in everywhere {
        let again = ask(proxy, None, Some(&session));
        full(again, &format!("a single-use ticket a second time, at {proxy}"));
    }
    Ok(())
}

/// Demands a full handshake, whatever happens.
fn full(seen: Handshake, what: &str) {
    assert!(seen.served && !seen.resumed, "{what}: {seen:?}");
}

/// Demands a page, and a resumed session unless there is an explanation.
fn resumed(seen: Handshake, what: &str) -> Result<(), String> {
    assert!(seen.served, "{what}: {seen:?}");
    match seen.resumed {
        true => Ok(()),
        false => Err(format!("{what} was not resumed")),
    }
}

/// Demands that an attempt succeeds, at once or after attempts whose failure the metrics explain: on a machine that is
/// busy with other tests a lookup may run out of time, or a pod be unready for a moment.
fn unless_disturbed(namespace: &Namespace, what: &str, attempt: impl Fn() -> Result<(), String>) {
    const ATTEMPTS: u32 = 5;
    for _ in 0..ATTEMPTS {
        let before = disturbances(namespace);
        let Err(miss) = attempt() else { return };
        let mut after = disturbances(namespace);
        after.retain(|series| !before.contains(series));
        assert!(!after.is_empty(), "{what}: {miss}, and nothing explains it");
        println!("{what}: {miss}, which is tried again because of {after:?}");
    }
    panic!("{what}: none of {ATTEMPTS} attempts was left undisturbed");
}

/// Everything that proxies and caches have counted so far which makes a full handshake of a resumption that is due.
fn disturbances(namespace: &Namespace) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (name, address) in namespace.proxies("shop") {
        for (port, counts) in [
            (9090, unanswered as fn(&str) -> bool),
            (9091, moved as fn(&str) -> bool),
        ] {
            let url = format!("http://{}:{port}/metrics", address.ip());
            let metrics = run("curl", &["--silent", "--fail", "--max-time", "10", &url], None)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            found.extend(
                metrics
                    .lines()
                    .filter(|line| counts(line))
                    .map(|line| format!("{name} {line}")),
            );
        }
    }
    found
}

/// A lookup or a put that came to nothing.
fn unanswered(line: &str) -> bool {
    let expected = ["hit", "miss", "stored"].map(|outcome| format!("outcome=\"{outcome}\""));
    line.starts_with("tlsfarm_proxy_session_cache_requests_total{")
        && !expected.iter().any(|outcome| line.contains(outcome))
        && !line.ends_with(" 0")
}

/// Entries that are not where they were, or whose owner did not answer.
fn moved(line: &str) -> bool {
    let of_requests = line.starts_with("tlsfarm_cache_requests_total{");
    (of_requests && line.contains("outcome=\"unavailable\""))
        || line.starts_with("tlsfarm_cache_peer_member_changes_total")
        || line.starts_with("tlsfarm_cache_evictions_total")
}

/// Takes a session without a ticket at each proxy and offers it at each; returns the first miss.
fn try_everywhere(namespace: &Namespace) -> Option<String> {
    let proxies = namespace.proxies("shop");
    let session = scratch("everywhere").join(format!("{}.pem", namespace.name));
    for (issuer, at) in &proxies {
        s_client(*at, SHOP, Version::Tls12WithoutTickets, Some(&session), None);
        for (resumer, elsewhere) in &proxies {
            let next = s_client(
                *elsewhere,
                SHOP,
                Version::Tls12WithoutTickets,
                None,
                Some(&session),
            );
            if !next.resumed {
                return Some(format!(
                    "a session of {issuer} does not resume at {resumer}: {next:?}"
                ));
            }
        }
    }
    None
}

/// The process of the cache beside the proxy at `address`. All nodes' processes are this machine's.
fn cache_process(address: SocketAddr) -> Option<u32> {
    let own_address = format!("POD_IP={}", address.ip());
    let processes = std::fs::read_dir("/proc").expect("there is /proc");
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .find(|process| {
            // Either may be gone by now.
            let read = |file| std::fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
            let (command, environment) = (read("cmdline"), read("environ"));
            let mut words = command.split(|byte| *byte == 0);
            words.any(|word| word == b"/etc/tlsfarm/config/cache.json")
                && environment
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == own_address.as_bytes())
        })
}

/// Certificate and key of somebody who calls himself `name`.
fn own_identity(name: &str) -> (PathBuf, PathBuf) {
    let dir = scratch("stranger");
    let (certificate, key) = crate::harness::certificate(&[name], 2000..2100);
    let files = (dir.join("tls.crt"), dir.join("tls.key"));
    std::fs::write(&files.0, certificate).expect("written");
    std::fs::write(&files.1, key).expect("written");
    files
}

/// What a peers' port answers to PING.
fn ask_as_peer(address: SocketAddr, identity: Option<&(PathBuf, PathBuf)>) -> String {
    let address = address.to_string();
    let mut args = vec!["10", "openssl", "s_client", "-connect", &address, "-ign_eof"];
    if let Some((certificate, key)) = identity {
        args.extend(["-cert", certificate.to_str().expect("UTF-8")]);
        args.extend(["-key", key.to_str().expect("UTF-8")]);
    }
    run("timeout", &args, Some("PING\r\n")).unwrap_or_else(|error| error)
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
