//! A node that goes off the network, with some of the farm's caches on it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::cached_farm::{LOOKUP_TIMEOUT, PATIENCE, Proxy, SHOP, deploy, sidecars, when_linked};
use crate::due::{Due, Visit, most_explained, resume, take, visit};
use crate::harness::{Load, Namespace, Version, repository, run, scratch};

/// What a client adds to the time of a lookup on a busy machine, nine times of ten: a process, a handshake, a request. Less
/// than the second that a proxy or a cache waits for a connection; the lookups that would wait for one are more than one of ten.
const MARGIN: Duration = Duration::from_millis(800);

/// Longest time that a handshake and a page may take on a busy machine.
const LONGEST: Duration = Duration::from_secs(5);

/// Sessions that are taken and offered once the caches know that the node is gone.
const AFTERWARDS: usize = 40;

#[test]
fn a_node_that_is_cut_off_loses_only_its_own_entries() {
    // The other tests' pods are on that node too.
    let namespace = Namespace::with_operator_alone("test-node-cut");
    let pinned =
        json!({"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "node1"}}}}});
    for deployment in ["web", "tlsfarm"] {
        namespace.kubectl(&["patch", "deployment", deployment, "--patch", &pinned.to_string()]);
        namespace.kubectl(&["rollout", "status", "deployment", deployment, "--timeout=120s"]);
    }
    deploy(&namespace, sidecars());
    let proxies = when_linked(&namespace, 3);
    let near = on_node(&namespace, "node1", &proxies);
    assert!(
        !near.is_empty() && near.len() < proxies.len(),
        "the proxies are not spread: {near:?}"
    );
    let at = &near[0];
    let loads = [(50, true), (10, false)].map(|(rate, keep)| {
        let address = at.address.to_string();
        Load::start("node-cut", SHOP, &address, rate, keep, Duration::from_secs(900))
    });

    let cut = Cut::off("2");
    let (lost, kept) = sessions_until_the_node_is_known_to_be_gone(at, proxies.len());
    let gone = proxies.len() - near.len();
    println!(
        "{lost} sessions were lost and {kept} resumed while {gone} of {} caches were gone",
        proxies.len()
    );
    is_the_share_of(gone, proxies.len(), lost, kept);

    when_linked(&namespace, near.len());
    let mut due = Due::default();
    let session = scratch("node-cut").join("afterwards.pem");
    for number in 0..AFTERWARDS {
        let at = &near[number % near.len()];
        due.attempt("after the node is known to be gone", || {
            take(at, SHOP, Version::Tls12WithoutTickets, &session)?;
            resume(at, SHOP, Version::Tls12WithoutTickets, &session, "its id")
        });
    }
    due.everywhere(&near);

    drop(cut);
    let proxies = when_linked(&namespace, 3);
    namespace.wait_ready("shop");
    due.everywhere(&proxies);
    for load in loads {
        let (requests, failures) = load.stop();
        assert!(failures.is_empty(), "of {requests} requests: {failures:?}");
    }
    namespace.delete();
}

/// Takes sessions at a proxy and offers them there again, until its cache counts fewer caches than there were; returns how
/// many were lost and how many resumed. Lost are those, and only those, whose owner did not answer.
fn sessions_until_the_node_is_known_to_be_gone(at: &Proxy, members: usize) -> (u32, u32) {
    let session = scratch("node-cut").join("session.pem");
    let (mut lost, mut kept, mut late) = (0, 0, 0);
    let mut lookups = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(
            Instant::now() < deadline,
            "the caches do not see that the node is gone"
        );
        let id = Version::Tls12WithoutTickets;
        let taken = visit(at, SHOP, id, Some(&session), None);
        let offered = visit(at, SHOP, id, None, Some(&session));
        for Visit { seen, took, .. } in [&taken, &offered] {
            assert!(seen.served, "{seen:?}");
            assert!(*took <= LONGEST, "a handshake and a page took {took:?}");
        }
        lookups.push(offered.took);
        let now = at
            .cache_metrics()
            .expect("the metrics of a reachable cache")
            .value("tlsfarm_cache_peer_members");
        if now != members as f64 {
            are_prompt(lookups);
            return (lost, kept);
        }
        match (taken.stored(), offered.resumed("a session of before")) {
            (Ok(()), Ok(())) => kept += 1,
            (Err(_), Err(_)) => lost += 1,
            // The owner is alive; its answer was late.
            (stored, resumed) => {
                println!("late: {stored:?}, {resumed:?}");
                late += 1;
                let most = most_explained(lookups.len());
                assert!(late <= most, "{late} answers were late");
            }
        }
    }
}

/// Demands that nine of ten lookups took no longer than they may.
fn are_prompt(mut lookups: Vec<Duration>) {
    lookups.sort_unstable();
    let (slow, slowest) = (lookups[lookups.len() * 9 / 10], lookups[lookups.len() - 1]);
    println!("nine of ten handshakes and pages took at most {slow:?}, the slowest {slowest:?}");
    assert!(
        slow <= LOOKUP_TIMEOUT + MARGIN,
        "one of ten handshakes and pages took {slow:?} or more"
    );
}

/// Demands that as many sessions were lost as belong to caches that are gone, as far as chance allows: four standard
/// deviations.
fn is_the_share_of(gone: usize, members: usize, lost: u32, kept: u32) {
    let (lost, all) = (f64::from(lost), f64::from(lost + kept));
    assert!(all >= 40.0, "only {all} sessions were offered");
    let share = gone as f64 / members as f64;
    let expected = all * share;
    let deviation = (expected * (1.0 - share)).sqrt();
    assert!(
        (lost - expected).abs() <= 4.0 * deviation,
        "{lost} of {all} sessions were lost, {expected:.0} ± {deviation:.0} are expected"
    );
}

fn on_node(namespace: &Namespace, node: &str, proxies: &[Proxy]) -> Vec<Proxy> {
    let pods = namespace.list("pods", "tlsfarm.dev/farm=shop");
    let there = |proxy: &&Proxy| {
        let pod = pods
            .iter()
            .find(|pod| pod["metadata"]["name"] == proxy.name.as_str());
        pod.is_some_and(|pod| pod["spec"]["nodeName"] == node)
    };
    proxies.iter().filter(there).cloned().collect()
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
