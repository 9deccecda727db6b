//! A ring Secret that was damaged, lost or rolled back: the operator writes a good one, and meanwhile no proxy uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Metrics, Namespace, Version, farm, operator_process, run, s_client, scratch, signal, wait_for,
};

const SHOP: &str = "shop.example.com";

/// How long the kubelet may take to bring a changed Secret to every proxy.
const BROUGHT: Duration = Duration::from_secs(60);

#[test]
fn a_damaged_missing_or_old_ring_is_replaced_by_the_operator_and_never_used() {
    let namespace = Namespace::with_operator("test-ring");
    // The operator is stopped for a while below, and must not be restarted: a new process would not know the keys.
    let unwatched = r#"[{"op":"remove","path":"/spec/template/spec/containers/0/livenessProbe"}]"#;
    namespace.kubectl(&[
        "patch",
        "deployment",
        "tlsfarm",
        "--type=json",
        "--patch",
        unwatched,
    ]);
    namespace.kubectl(&["rollout", "status", "deployment", "tlsfarm", "--timeout=120s"]);
    namespace.create_certificate("shop-tls", &[SHOP]);
    namespace.apply(&farm("shop", 2, &[("shop", SHOP)]));
    namespace.wait_ready("shop");
    let proxies = namespace.proxies("shop");
    assert_eq!(proxies.len(), 2);
    let secrets = RingSecrets::follow(&namespace);
    let reports = Reports::follow(&proxies);
    let session = scratch("ring").join("session.pem");
    let taken = s_client(proxies[0].1, SHOP, Version::Tls12, Some(&session), None);
    assert!(taken.served && !taken.resumed, "{taken:?}");
    let old = namespace.get("secret", "shop-ring").expect("the ring exists")["data"]["ring.json"].clone();
    namespace.rotate("shop", "once");

    let text = old.as_str().expect("data");
    let damage = [
        ("truncated", Some(json!(&text[..text.len() / 8 * 4])), "ring"),
        ("garbage", Some(json!("bm90IGEgcmluZw==")), "ring"),
        ("emptied", Some(Value::Null), "missing"),
        (
            "rolled back",
            Some(old.clone()),
            "older than the loaded generation",
        ),
        // The kubelet keeps the last content of a deleted Secret.
        ("deleted", None, ""),
    ];
    for (name, content, problem) in &damage {
        let generation = namespace.ring_generation("shop");
        while_the_operator_is_stopped(&namespace, || {
            match content {
                Some(content) => {
                    let patch = json!({"data": {"ring.json": content}}).to_string();
                    namespace.kubectl(&["patch", "secret", "shop-ring", "--type=merge", "--patch", &patch]);
                    hurry_kubelets(&namespace, name);
                    wait_for(&format!("every proxy to see the {name} ring"), BROUGHT, || {
                        let said = |report: &Report| {
                            report.problem.as_ref().is_some_and(|said| said.contains(problem))
                        };
                        let last = reports.last();
                        (last.len() == proxies.len() && last.values().all(said)).then_some(())
                    });
                }
                None => drop(namespace.kubectl(&["delete", "secret", "shop-ring"])),
            }
            serve_as_before(&proxies, &session, name);
        });
        wait_for(
            &format!("the {name} ring to be repaired"),
            Duration::from_secs(60),
            || (namespace.ring_generation("shop") > generation).then_some(()),
        );
        namespace.wait_condition("shop", "KeysSynced", "True", "Acknowledged");
        serve_as_before(&proxies, &session, &format!("{name} and repaired"));
    }
    assert_eq!(namespace.proxies("shop"), proxies, "the proxies were replaced");

    let bad: BTreeSet<_> = damage
        .iter()
        .filter_map(|(_, content, _)| content.as_ref()?.as_str())
        .collect();
    let last = namespace.ring_generation("shop");
    let written = secrets.written(&bad, last);
    reports.used_only(&written, last);
    namespace.delete();
}

/// Demands that a session of before resumes at every proxy, and a new one of each at each.
fn serve_as_before(proxies: &[(String, SocketAddr)], session: &Path, ring: &str) {
    let new = scratch("ring").join("new.pem");
    for (issuer, at) in proxies {
        let kept = s_client(*at, SHOP, Version::Tls12, None, Some(session));
        assert!(
            kept.served && kept.resumed,
            "{ring}: {issuer} lost a session of before: {kept:?}"
        );
        for version in [Version::Tls12, Version::Tls13] {
            let taken = s_client(*at, SHOP, version, Some(&new), None);
            assert!(taken.served && !taken.resumed, "{ring}: {taken:?}");
            for (resumer, elsewhere) in proxies {
                let next = s_client(*elsewhere, SHOP, version, None, Some(&new));
                assert!(
                    next.served && next.resumed,
                    "{ring}, {version:?}, {issuer} to {resumer}: {next:?}"
                );
            }
        }
    }
}

/// Keeps the operator from repairing anything; it goes on afterwards as if nothing had happened.
fn while_the_operator_is_stopped(namespace: &Namespace, act: impl FnOnce()) {
    let operator = operator_process(namespace);
    let stopped = Stopped::process(operator);
    act();
    drop(stopped);
    assert_eq!(operator_process(namespace), operator, "the operator was replaced");
}

/// A stopped process that goes on when this is dropped.
struct Stopped(u32);

impl Stopped {
    fn process(process: u32) -> Self {
        signal(process, "STOP");
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = run("kill", &["-CONT", &self.0.to_string()], None);
    }
}

fn hurry_kubelets(namespace: &Namespace, why: &str) {
    let annotation = format!("test.tlsfarm.dev/hurry={}", why.replace(' ', "-"));
    let farm = "tlsfarm.dev/farm=shop";
    namespace.kubectl(&["annotate", "pods", "--selector", farm, "--overwrite", &annotation]);
}

/// Every state that the ring Secret was in.
struct RingSecrets {
    kubectl: Child,
    contents: Arc<Mutex<Vec<String>>>,
}

impl RingSecrets {
    fn follow(namespace: &Namespace) -> Self {
        let path = "--output=jsonpath={.data.ring\\.json}{\"\\n\"}";
        let mut kubectl = Command::new("kubectl")
            .args(["--namespace", namespace.name, "get", "secrets", "--watch", path])
            .args(["--field-selector", "metadata.name=shop-ring"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let lines = BufReader::new(kubectl.stdout.take().expect("piped")).lines();
        let contents = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&contents);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let secrets = Self { kubectl, contents };
        wait_for(
            "the first state of the ring Secret",
            Duration::from_secs(60),
            || (!secrets.contents().is_empty()).then_some(()),
        );
        secrets
    }

    fn contents(&self) -> Vec<String> {
        self.contents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Generation and primary key of every ring that was not put there as a bad one, once that of `last` is among them.
    fn written(&self, bad: &BTreeSet<&str>, last: u64) -> BTreeMap<u64, String> {
        wait_for("the last ring to be seen", Duration::from_secs(60), || {
            let contents = self.contents();
            let mut written = BTreeMap::new();
            // The first ring seen is good, though `bad` lists it: the test puts it back later as the old one.
            let good = |content: &&String| !content.is_empty() && !bad.contains(content.as_str());
            for content in contents.iter().take(1).chain(contents.iter().filter(good)) {
                let document = run("base64", &["--decode"], Some(content)).expect("base64");
                let ring: Value = serde_json::from_str(&document).expect("the operator writes JSON");
                let generation = ring["generation"].as_u64().expect("a number");
                let primary = ring["primary"]["id"].as_str().expect("an id").to_owned();
                let other = written.insert(generation, primary.clone());
                assert!(
                    other.is_none_or(|other| other == primary),
                    "two rings are of generation {generation}"
                );
            }
            written.contains_key(&last).then_some(written)
        })
    }
}

impl Drop for RingSecrets {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

/// What a proxy says of its ring.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Report {
    generation: Option<u64>,
    primary: Option<String>,
    problem: Option<String>,
}

impl Report {
    fn of(proxy: SocketAddr) -> Self {
        let url = format!("http://{}/status", SocketAddr::new(proxy.ip(), 9090));
        let page = run("curl", &["--silent", "--fail", "--max-time", "10", &url], None)
            .unwrap_or_else(|error| panic!("{error}"));
        let page: Value = serde_json::from_str(&page).expect("JSON");
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let ring = &page["ring"];
        Self {
            generation: ring["generation"].as_u64(),
            primary: text(&ring["primary"]),
            problem: text(&ring["problem"]),
        }
    }
}

type Seen = BTreeMap<String, Vec<Report>>;

/// What every proxy says of its ring, all the time.
struct Reports {
    before: Vec<(String, SocketAddr, Metrics)>,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    asking: Option<JoinHandle<()>>,
}

impl Reports {
    fn follow(proxies: &[(String, SocketAddr)]) -> Self {
        let before = |(name, address): &(String, SocketAddr)| (name.clone(), *address, metrics(*address));
        let before = proxies.iter().map(before).collect();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (proxies, to, until) = (proxies.to_vec(), Arc::clone(&seen), Arc::clone(&stop));
        let asking = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                for (name, address) in &proxies {
                    let report = Report::of(*address);
                    let mut seen = to.lock().unwrap_or_else(PoisonError::into_inner);
                    let reports = seen.entry(name.clone()).or_default();
                    if reports.last() != Some(&report) {
                        println!("{name}: {report:?}");
                        reports.push(report);
                    }
                }
            }
        });
        Self {
            before,
            seen,
            stop,
            asking: Some(asking),
        }
    }

    fn last(&self) -> BTreeMap<String, Report> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let last = |(name, reports): (&String, &Vec<Report>)| Some((name.clone(), reports.last()?.clone()));
        seen.iter().filter_map(last).collect()
    }

    /// Demands that every proxy has only ever used rings that the operator wrote, one after another, up to the last.
    fn used_only(mut self, written: &BTreeMap<u64, String>, last: u64) {
        self.stop.store(true, Ordering::Relaxed);
        let asking = self.asking.take().expect("once");
        asking.join().expect("every proxy answered all the time");
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, address, before) in &self.before {
            let mut used = Vec::new();
            for report in &seen[name] {
                let generation = report
                    .generation
                    .unwrap_or_else(|| panic!("{name} has no ring: {report:?}"));
                assert_eq!(
                    report.primary.as_ref(),
                    written.get(&generation),
                    "{name} seals with a key that the operator did not write: {report:?}"
                );
                used.push(generation);
            }
            assert!(used.is_sorted(), "{name} went back to an older ring: {used:?}");
            assert_eq!(used.last(), Some(&last), "{name} did not come to the last ring");
            // A ring that was loaded and replaced between two polls would have been counted.
            used.dedup();
            let reloads = metrics(*address).grown(before, "tlsfarm_proxy_reloads_total");
            let rings = reloads.get("{file=\"ring\"}").copied().unwrap_or_default();
            assert_eq!(rings, last - used[0], "{name} loaded other rings than {used:?}");
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn metrics(proxy: SocketAddr) -> Metrics {
    let admin = SocketAddr::new(proxy.ip(), 9090);
    Metrics::of(admin).unwrap_or_else(|error| panic!("{error}"))
}
