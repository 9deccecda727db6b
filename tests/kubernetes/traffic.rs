//! What clients see: sessions resume at every proxy, and nothing that happens to the farm loses one or fails a request.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{
    Followed, Load, Namespace, Version, authority_file, farm, operator_process, replace_operator, s_client,
    scratch, signal, wait_for,
};

const SHOP: &str = "shop.example.com";
const BLOG: &str = "blog.example.com";

/// Requests a second, and whether connections are kept between them.
type Stream = (u32, bool);

/// What a round of the probe may take on a busy machine.
const SLOWEST_ROUND: Duration = Duration::from_secs(5);

const KEPT: Stream = (100, true);
const NEW: Stream = (20, false);

/// Kills of the operator: before the first write of a rotation, and after those to the ring, the three pods and the events.
const KILLS: usize = 6;

#[test]
fn openssl_resumes_at_every_proxy_and_only_under_its_own_host_name() {
    let namespace = Namespace::with_operator("test-resumption");
    namespace.create_certificate("shop-tls", &[SHOP]);
    namespace.create_certificate("blog-tls", &[BLOG]);
    namespace.apply(&farm("shop", 3, &[("shop", SHOP), ("blog", BLOG)]));
    namespace.wait_ready("shop");
    let proxies = namespace.proxies("shop");
    assert_eq!(proxies.len(), 3);

    let dir = scratch("resumption");
    for version in [Version::Tls12, Version::Tls13] {
        for (issuer, issuer_address) in &proxies {
            for (resumer, resumer_address) in &proxies {
                let session = dir.join("session.pem");
                let first = s_client(*issuer_address, SHOP, version, Some(&session), None);
                assert!(
                    first.served && !first.resumed,
                    "{version:?} at {issuer}: {first:?}"
                );
                let second = s_client(*resumer_address, SHOP, version, None, Some(&session));
                assert!(
                    second.served && second.resumed,
                    "{version:?} from {issuer} at {resumer}: {second:?}"
                );
                let foreign = s_client(*resumer_address, BLOG, version, None, Some(&session));
                assert!(
                    foreign.served && !foreign.resumed,
                    "{version:?} under another name: {foreign:?}"
                );
            }
        }
    }
    namespace.delete();
}

#[test]
fn ten_rotations_in_a_row_lose_no_session_and_no_request() {
    let namespace = Namespace::with_operator_alone("test-rotation");
    namespace.create_certificate("shop-tls", &[SHOP]);
    namespace.apply(&farm("shop", 3, &[("shop", SHOP)]));
    namespace.wait_ready("shop");
    let traffic = Traffic::start(&namespace, "rotation", &[KEPT, NEW]);

    let before = namespace.ring_generation("shop");
    let mut slowest = Duration::ZERO;
    for round in 0..10 {
        let took = namespace.rotate("shop", &format!("round-{round}"));
        println!("rotation {round} was acknowledged by every proxy after {took:?}");
        slowest = slowest.max(took);
    }
    assert_eq!(namespace.ring_generation("shop"), before + 10);
    assert!(
        slowest <= Duration::from_secs(2),
        "the slowest rotation took {slowest:?}"
    );
    let summary = traffic.stop_without_losses();
    let across = summary["crossedRotation"]["resumed"].as_u64().expect("a number");
    assert!(across >= 10, "{across} sessions were offered after a rotation");
    namespace.delete();
}

#[test]
fn restarts_and_scaling_lose_no_session_and_no_request() {
    let namespace = Namespace::with_operator("test-restarts");
    namespace.create_certificate("shop-tls", &[SHOP]);
    namespace.apply(&farm("shop", 3, &[("shop", SHOP)]));
    namespace.wait_ready("shop");
    let traffic = Traffic::start(&namespace, "restarts", &[KEPT, NEW]);

    let (victim, _) = &namespace.proxies("shop")[0];
    namespace.kubectl(&["delete", "pod", victim, "--wait=true"]);
    namespace.wait_ready("shop");
    println!("deleted {victim}");

    namespace.kubectl(&["rollout", "restart", "deployment/shop-proxy"]);
    namespace.kubectl(&["rollout", "status", "deployment/shop-proxy", "--timeout=180s"]);
    println!("restarted the Deployment");

    for replicas in [5, 2] {
        namespace.kubectl(&["scale", "tlsfarm/shop", &format!("--replicas={replicas}")]);
        wait_for("the farm to be scaled", Duration::from_secs(120), || {
            let pods = namespace.list("pods", "tlsfarm.dev/farm=shop").len();
            (pods == replicas && namespace.proxies("shop").len() == replicas).then_some(())
        });
        println!("scaled to {replicas}");
    }
    traffic.stop_without_losses();
    namespace.delete();
}

#[test]
fn an_operator_killed_at_any_moment_disturbs_no_traffic_and_makes_no_second_key() {
    let namespace = Namespace::with_operator("test-operator-killed");
    namespace.create_certificate("shop-tls", &[SHOP]);
    namespace.apply(&farm("shop", 3, &[("shop", SHOP)]));
    namespace.wait_ready("shop");
    let traffic = Traffic::start(&namespace, "killed", &[KEPT, NEW]);

    let user = format!("system:serviceaccount:{}:tlsfarm", namespace.name);
    let before = namespace.ring_generation("shop");
    for round in 0..KILLS {
        let operator = operator_process(&namespace);
        let writes = Followed::from_now(&user);
        // One write later in each round, so that the kill hits each step of the rotation. All writes may come before
        // kubectl has exited.
        let killer = thread::spawn(move || {
            let seen = writes.wait_for(round, Duration::from_secs(30));
            signal(operator, "KILL");
            seen
        });
        namespace.kubectl(&[
            "annotate",
            "--overwrite",
            "tlsfarm",
            "shop",
            &format!("tlsfarm.dev/rotate=kill-{round}"),
        ]);
        let seen = killer.join().expect("the operator writes");
        println!("round {round}: killed after {seen:?}");
        replace_operator(&namespace);
        wait_for(
            "the rotation to be finished by the next operator",
            Duration::from_secs(60),
            || {
                let synced = namespace.condition("shop", "KeysSynced").0 == "True";
                (synced && namespace.ring_generation("shop") > before + round as u64).then_some(())
            },
        );
        assert_eq!(
            namespace.ring_generation("shop"),
            before + round as u64 + 1,
            "one request made more than one rotation"
        );
    }
    namespace.wait_ready("shop");
    traffic.stop_without_losses();
    namespace.delete();
}

/// Clients of all kinds, for as long as a test disturbs the farm: streams of requests through the Service, over kept
/// connections and over new ones, and the probe, which offers every session at every proxy.
struct Traffic {
    loads: Vec<Load>,
    probe: Child,
    /// What the probe prints: a line a round, more than a pipe holds that nobody empties meanwhile.
    output: PathBuf,
    begun: Instant,
}

impl Traffic {
    fn start(namespace: &Namespace, name: &str, streams: &[Stream]) -> Self {
        let address = format!("{}:443", namespace.service_address("shop"));
        let limit = Duration::from_secs(600);
        let loads = streams
            .iter()
            .map(|(rate, keep_alive)| Load::start(name, SHOP, &address, *rate, *keep_alive, limit))
            .collect();
        let output = scratch(name).join("probe.json");
        let probe = Command::new(env!("CARGO_BIN_EXE_tlsfarm"))
            .args(["probe", "shop", "--namespace", namespace.name, "--ca-file"])
            .arg(authority_file())
            .args(["--watch", "--interval=500ms", "--output=json"])
            .stdout(File::create(&output).expect("created"))
            .spawn()
            .expect("the probe starts");
        Self {
            loads,
            probe,
            output,
            begun: Instant::now(),
        }
    }

    /// Demands that every request was served and every session resumed; returns what the probe says of all its rounds.
    fn stop_without_losses(mut self) -> Value {
        let mut failures = Vec::new();
        for load in self.loads {
            let (requests, failed) = load.stop();
            println!("{requests} requests, failures: {failed:?}");
            failures.extend(failed);
        }
        let took = self.begun.elapsed();
        signal(self.probe.id(), "INT");
        let status = wait_for("the probe to end", Duration::from_secs(30), || {
            self.probe.try_wait().expect("our child")
        });
        let seen = std::fs::read_to_string(&self.output).expect("written");
        let last = seen
            .lines()
            .last()
            .unwrap_or_else(|| panic!("the probe printed nothing"));
        let summary: Value = serde_json::from_str(last).expect("JSON");
        println!("probe: {summary}");
        assert!(status.success(), "the probe saw misses:\n{seen}");
        assert!(failures.is_empty(), "{failures:?}");
        let rounds = summary["rounds"].as_u64().expect("a number");
        assert!(
            rounds >= took.as_secs() / SLOWEST_ROUND.as_secs(),
            "the probe made {rounds} rounds in {took:?}"
        );
        summary
    }
}
