//! The chart's caches for servers that are not TLSFarm's proxies, on every node and as a Deployment.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cached_farm::{PATIENCE, ask_as_peer};
use crate::harness::{Namespace, condition_of, repository, run, wait_for};

const PASSWORD: &str = "password-of-the-caches";
const CACHES: &str = "app.kubernetes.io/name=tlsfarm,app.kubernetes.io/component=cache";

/// Entries that are set at one cache and read at another: enough that each cache owns some.
const ENTRIES: usize = 64;

/// Most answers of owners that may be late among all pairs of caches.
const MOST_LATE: usize = 4;

#[test]
fn caches_of_the_chart_share_entries_and_an_upgrade_keeps_ca_and_password() {
    let namespace = Namespace::for_operator("test-cache-chart");
    namespace.apply(&json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "cache-login"},
        "stringData": {"password": PASSWORD},
    }));
    let settings = "cache.enabled=true,cache.password.secretName=cache-login";
    namespace.helm("install", settings);
    let on_nodes = wait_caches(&namespace, 2);
    let nodes: BTreeSet<_> = on_nodes.iter().map(|cache| cache.node.as_str()).collect();
    assert_eq!(nodes.len(), 2, "{on_nodes:?}");
    are_one(&on_nodes);
    refuse_strangers(&on_nodes);
    each_node_reaches_its_own(&namespace, &on_nodes);
    is_guarded(&namespace, &on_nodes);
    let secrets = || ["tlsfarm-cache-tls", "cache-login"].map(|name| namespace.get("secret", name));
    let before = secrets();
    let certificates = before[0].as_ref().expect("made by Helm")["data"]
        .as_object()
        .expect("data");
    let held: Vec<_> = certificates.keys().map(String::as_str).collect();
    assert_eq!(
        held,
        ["ca.crt", "tls.crt", "tls.key"],
        "the authority's key is kept"
    );

    namespace.helm(
        "upgrade",
        &format!("{settings},cache.kind=Deployment,cache.replicas=3"),
    );
    let replicas = wait_caches(&namespace, 3);
    assert!(
        data(&secrets()) == data(&before),
        "there is another authority or password"
    );
    are_one(&replicas);
    refuse_strangers(&replicas);
    is_guarded(&namespace, &replicas);

    namespace.uninstall();
    assert!(
        namespace.get("secret", "cache-login").is_some(),
        "the user's own Secret went"
    );
    namespace.delete();
}

/// A pod of the chart.
#[derive(Debug)]
struct Cache {
    name: String,
    node: String,
    address: IpAddr,
}

impl Cache {
    /// What it answers to commands, one a line, of a client that gives the password.
    fn ask(&self, commands: &str) -> String {
        redis_cli(self.address, &["-a", PASSWORD, "--no-auth-warning"], commands)
    }

    /// Commands of this kind whose owner did not answer it in time.
    fn unavailable(&self, command: &str) -> u64 {
        self.metric(&format!(
            "tlsfarm_cache_requests_total{{command=\"{command}\",outcome=\"unavailable\"}} "
        ))
    }

    /// The value of a series of its metrics; 0 when there is none.
    fn metric(&self, series: &str) -> u64 {
        let url = format!("http://{}/metrics", SocketAddr::new(self.address, 9090));
        let metrics = run("curl", &["--silent", "--fail", "--max-time", "10", &url], None)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let value = metrics.lines().find_map(|line| line.strip_prefix(series));
        value.map_or(0, |value| value.trim().parse().expect("a number"))
    }
}

/// Waits until there are so many caches and each reaches all the others.
fn wait_caches(namespace: &Namespace, count: usize) -> Vec<Cache> {
    wait_for(&format!("{count} caches that reach each other"), PATIENCE, || {
        let pods = namespace.list("pods", CACHES);
        let ready = |pod: &&Value| {
            pod["metadata"]["deletionTimestamp"].is_null() && condition_of(pod, "Ready").0 == "True"
        };
        if pods.len() != count || pods.iter().filter(ready).count() != count {
            return None;
        }
        let text = |value: &Value| value.as_str().expect("a ready pod has it").to_owned();
        let caches: Vec<_> = pods
            .iter()
            .map(|pod| Cache {
                name: text(&pod["metadata"]["name"]),
                node: text(&pod["spec"]["nodeName"]),
                address: text(&pod["status"]["podIP"]).parse().expect("an address"),
            })
            .collect();
        let others = caches.len() as u64 - 1;
        let reach = |cache: &Cache| {
            cache.metric("tlsfarm_cache_peer_members ") == others + 1
                && cache.metric("tlsfarm_cache_peer_reachable ") == others
        };
        caches.iter().all(reach).then_some(caches)
    })
}

/// Demands that what is set at one cache is read at every other, whichever owns it. The machine is busy, so a few answers
/// of owners may be late; each is counted by the very cache that was asked.
fn are_one(caches: &[Cache]) {
    let mut late = 0;
    for setter in caches {
        for getter in caches {
            let key = |number: usize| format!("{}:{}:{number}", setter.name, getter.name);
            let (mut sets, mut gets) = (String::new(), String::new());
            for number in 0..ENTRIES {
                sets += &format!("SET {} value-{number} EX 600\n", key(number));
                gets += &format!("GET {}\n", key(number));
            }
            let pair = format!("{} -> {}", setter.name, getter.name);
            let (not_set, not_answered) = (setter.unavailable("set"), getter.unavailable("get"));
            let set = setter.ask(&sets).lines().filter(|answer| *answer == "OK").count();
            let not_set = (setter.unavailable("set") - not_set) as usize;
            assert_eq!(set, ENTRIES - not_set, "{pair}: entries were not taken");
            let answers = getter.ask(&gets);
            let not_answered = (getter.unavailable("get") - not_answered) as usize;
            let right = |(number, answer): &(usize, &str)| *answer == format!("value-{number}");
            let read = answers.lines().enumerate().filter(right).count();
            // An owner whose answer is late may have the entry.
            assert!(
                read + not_set + not_answered >= ENTRIES,
                "{pair}: {read} of {ENTRIES} entries were read, {not_set} not set, {not_answered} not answered:\n{answers}"
            );
            late += not_set + not_answered;
        }
    }
    println!("{late} late answers");
    assert!(late <= MOST_LATE, "{late} answers of owners were late");
    for cache in caches {
        let entries = cache.metric("tlsfarm_cache_entries ");
        assert!(entries > 0, "{} owns nothing", cache.name);
    }
}

fn refuse_strangers(caches: &[Cache]) {
    for cache in caches {
        for command in ["PING\n", "GET key\n", "SET key value\n", "INFO\n"] {
            let answer = redis_cli(cache.address, &[], command);
            assert!(
                answer.contains("NOAUTH"),
                "{} says {answer:?} to {command:?}",
                cache.name
            );
        }
        let answer = redis_cli(cache.address, &[], "AUTH another\nPING\n");
        assert!(
            answer.contains("WRONGPASS") && !answer.contains("PONG"),
            "{answer:?}"
        );
        let seen = ask_as_peer(SocketAddr::new(cache.address, 7443), None);
        assert!(seen.contains("alert") && !seen.contains("PONG"), "{seen}");
    }
}

/// Demands that the Service leads to the cache of the client's node.
fn each_node_reaches_its_own(namespace: &Namespace, caches: &[Cache]) {
    const CONNECTIONS: u64 = 8;
    let service = namespace.get("service", "tlsfarm-cache").expect("there is one");
    let address = service["spec"]["clusterIP"].as_str().expect("an address");
    let script = repository().join("tests/cluster/cluster");
    let script = script.to_str().expect("UTF-8");
    let accepted = |cache: &Cache| cache.metric("tlsfarm_cache_connections_accepted_total{from=\"client\"} ");
    for near in caches {
        let node = near.node.strip_prefix("node").expect("nodes have numbers");
        let ask = || {
            let client = ["exec", node, "timeout", "10", "redis-cli", "-h", address, "PING"];
            run(script, &client, None).is_ok_and(|answer| answer.contains("NOAUTH"))
        };
        // kube-proxy may not have programmed the Service yet.
        wait_for("the Service to answer", Duration::from_secs(60), || {
            ask().then_some(())
        });
        let before: Vec<_> = caches.iter().map(accepted).collect();
        for _ in 0..CONNECTIONS {
            assert!(ask(), "the Service does not answer on {}", near.node);
        }
        for (cache, before) in caches.iter().zip(before) {
            let expected = if cache.name == near.name { CONNECTIONS } else { 0 };
            assert_eq!(
                accepted(cache) - before,
                expected,
                "{} from {}",
                cache.name,
                near.node
            );
        }
    }
}

/// Demands a NetworkPolicy that lets clients of the namespace and the caches themselves in, each to their port. The
/// cluster of the tests does not enforce it.
fn is_guarded(namespace: &Namespace, caches: &[Cache]) {
    let policy = namespace
        .get("networkpolicy", "tlsfarm-cache")
        .expect("there is one");
    let caches_labels = json!({"matchLabels": {
        "app.kubernetes.io/name": "tlsfarm",
        "app.kubernetes.io/instance": "tlsfarm",
        "app.kubernetes.io/component": "cache",
    }});
    let port = |name: &str| json!([{"port": name, "protocol": "TCP"}]);
    let expected = json!({
        "podSelector": caches_labels,
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": port("redis"), "from": [{"podSelector": {}}]},
            {"ports": port("cache-peers"), "from": [{"podSelector": caches_labels}]},
            {"ports": port("admin")},
        ],
    });
    assert_eq!(policy["spec"], expected);
    let labels = expected["podSelector"]["matchLabels"]
        .as_object()
        .expect("labels");
    let selector: Vec<_> = labels
        .iter()
        .map(|(name, value)| format!("{name}={}", value.as_str().expect("text")))
        .collect();
    let selected = namespace.list("pods", &selector.join(","));
    assert_eq!(
        selected.len(),
        caches.len(),
        "the Service selects other pods than the caches"
    );
    for pod in selected {
        let ports: Vec<_> = pod["spec"]["containers"][0]["ports"]
            .as_array()
            .expect("ports")
            .iter()
            .map(|port| port["name"].clone())
            .collect();
        assert_eq!(
            ports,
            ["redis", "cache-peers", "admin"],
            "a port is unguarded or unknown"
        );
    }
}

fn data(secrets: &[Option<Value>]) -> Vec<Value> {
    secrets
        .iter()
        .flatten()
        .map(|secret| secret["data"].clone())
        .collect()
}

fn redis_cli(address: IpAddr, options: &[&str], commands: &str) -> String {
    let address = address.to_string();
    let args = [&["10", "redis-cli", "-h", &address], options].concat();
    run("timeout", &args, Some(commands)).unwrap_or_else(|error| error)
}
