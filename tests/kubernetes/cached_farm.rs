//! A farm `shop` whose sessions are in a cache, and what is demanded of it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Handshake, Namespace, Version, farm, run, s_client, scratch};

pub const SHOP: &str = "shop.example.com";
pub const BANK: &str = "bank.example.com";

/// How long the kubelet may take to notice a changed Secret, or a dead container, and the farm to settle.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// The settings of a cache in sidecars.
pub fn sidecars() -> Value {
    json!({"mode": "Sidecar", "lookupTimeout": LOOKUP_TIMEOUT})
}

/// As long as may be: the machine is busy, and misses are failures here.
pub const LOOKUP_TIMEOUT: &str = "50ms";

/// A farm `shop` with this cache and two hosts, of which `bank` has single-use tickets; waits until it is ready.
pub fn deploy(namespace: &Namespace, session_cache: Value) {
    namespace.create_certificate("shop-tls", &[SHOP]);
    namespace.create_certificate("bank-tls", &[BANK]);
    let mut shop = farm("shop", 3, &[("shop", SHOP), ("bank", BANK)]);
    shop["spec"]["hosts"][1]["tls"]["tickets"] = json!({"kind": "SingleUse"});
    shop["spec"]["resumption"] = json!({"sessionCache": session_cache});
    namespace.apply(&shop);
    namespace.wait_condition_for("shop", "SessionCacheReady", "True", "CacheReachable", PATIENCE);
    namespace.wait_ready("shop");
}

/// Demands that a session of each proxy resumes at each: by its id as often as it is offered, and a single-use one once.
pub fn resumes_everywhere(namespace: &Namespace) {
    let proxies = namespace.proxies("shop");
    assert_eq!(proxies.len(), 3);
    let session = scratch(namespace.name).join("session.pem");
    for (issuer, at) in &proxies {
        for (resumer, elsewhere) in &proxies {
            let pair = format!("{issuer} -> {resumer}");
            unless_disturbed(namespace, &pair, || {
                resumes_by_session_id(&session, *at, *elsewhere)
            });
            unless_disturbed(namespace, &pair, || {
                let everywhere = proxies.iter().map(|(_, address)| *address);
                resumes_once(&session, *at, *elsewhere, everywhere)
            });
        }
    }
}

fn resumes_by_session_id(session: &Path, at: SocketAddr, elsewhere: SocketAddr) -> Result<(), String> {
    let ask = |address, hostname, save, offer| {
        s_client(address, hostname, Version::Tls12WithoutTickets, save, offer)
    };
    full(ask(at, SHOP, Some(session), None), "a new session");
    for time in ["once", "again"] {
        let next = ask(elsewhere, SHOP, None, Some(session));
        resumed(next, &format!("its id, {time}"))?;
    }
    full(
        ask(elsewhere, BANK, None, Some(session)),
        "its id under another name",
    );
    Ok(())
}

fn resumes_once(
    session: &Path,
    at: SocketAddr,
    elsewhere: SocketAddr,
    everywhere: impl Iterator<Item = SocketAddr>,
) -> Result<(), String> {
    let ask = |address, save, offer| s_client(address, BANK, Version::Tls13, save, offer);
    full(ask(at, Some(session), None), "a new session");
    resumed(ask(elsewhere, None, Some(session)), "a single-use ticket")?;
    for proxy in everywhere {
        let again = ask(proxy, None, Some(session));
        full(again, &format!("a single-use ticket a second time, at {proxy}"));
    }
    Ok(())
}

/// Demands a full handshake, whatever happens.
pub fn full(seen: Handshake, what: &str) {
    assert!(seen.served && !seen.resumed, "{what}: {seen:?}");
}

/// Demands a page, and a resumed session unless there is an explanation.
pub fn resumed(seen: Handshake, what: &str) -> Result<(), String> {
    assert!(seen.served, "{what}: {seen:?}");
    match seen.resumed {
        true => Ok(()),
        false => Err(format!("{what} was not resumed")),
    }
}

/// Demands that an attempt succeeds, at once or after attempts whose failure the metrics explain: on a machine that is
/// busy with other tests a lookup may run out of time, or a pod be unready for a moment.
pub fn unless_disturbed(namespace: &Namespace, what: &str, attempt: impl Fn() -> Result<(), String>) {
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
    type Counts = fn(&str) -> bool;
    let mut found = BTreeSet::new();
    let cache =
        namespace.get("tlsfarm", "shop").expect("there")["spec"]["resumption"]["sessionCache"].clone();
    let ports: &[(u16, Counts)] = match cache["mode"] == "Sidecar" {
        true => &[(9090, unanswered), (9091, moved)],
        false => &[(9090, unanswered)],
    };
    for (name, address) in namespace.proxies("shop") {
        for (port, counts) in ports {
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
pub fn try_everywhere(namespace: &Namespace) -> Option<String> {
    let proxies = namespace.proxies("shop");
    let session = scratch(namespace.name).join("everywhere.pem");
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

/// Certificate and key of somebody who calls himself `name`.
pub fn own_identity(name: &str) -> (PathBuf, PathBuf) {
    let dir = scratch("stranger");
    let (certificate, key) = crate::harness::certificate(&[name], 2000..2100);
    let files = (dir.join("tls.crt"), dir.join("tls.key"));
    std::fs::write(&files.0, certificate).expect("written");
    std::fs::write(&files.1, key).expect("written");
    files
}

/// What the farm's status says of its cache.
pub fn status(namespace: &Namespace) -> Value {
    namespace.get("tlsfarm", "shop").expect("there")["status"]["sessionCache"].clone()
}

/// Makes the kubelets look at once at what the farm's pods mount. They do so within two minutes by themselves.
pub fn hurry_kubelets(namespace: &Namespace, why: &str) {
    let annotation = format!("test.tlsfarm.dev/hurry={why}");
    let farm = "tlsfarm.dev/farm=shop";
    namespace.kubectl(&["annotate", "pods", "--selector", farm, "--overwrite", &annotation]);
}

/// What a peers' port answers to PING.
pub fn ask_as_peer(address: SocketAddr, identity: Option<&(PathBuf, PathBuf)>) -> String {
    let address = address.to_string();
    let mut args = vec!["10", "openssl", "s_client", "-connect", &address, "-ign_eof"];
    if let Some((certificate, key)) = identity {
        args.extend(["-cert", certificate.to_str().expect("UTF-8")]);
        args.extend(["-key", key.to_str().expect("UTF-8")]);
    }
    run("timeout", &args, Some("PING\r\nQUIT\r\n")).unwrap_or_else(|error| error)
}
