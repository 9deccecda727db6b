//! Mode Redis: the proxies share a server of the user's, and do without it while it is gone.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::cached_farm::{BANK, PATIENCE, SHOP, deploy, hurry_kubelets, lookup_timeout, status, when_linked};
use crate::due::{Due, full};
use crate::harness::{Namespace, Version, s_client, wait_for};
use crate::redis_server::{Redis, USER};

const PASSWORD: &str = "first-password-of-the-farm";
const OTHER_PASSWORD: &str = "second-password-of-the-farm";

#[test]
fn proxies_share_a_redis_serve_without_it_and_say_what_is_wrong() {
    let namespace = Namespace::with_operator("test-redis");
    let mut redis = Redis::start(&namespace, PASSWORD);
    put_secret(&namespace, "redis-ca", json!({"ca.crt": redis.authority}));
    put_login(&namespace, PASSWORD);
    let service = namespace.get("service", "redis").expect("created");
    let address = format!(
        "{}:6379",
        service["spec"]["clusterIP"].as_str().expect("assigned")
    );
    // An IP address, since the test cluster has no DNS; hence the explicit server name.
    let cache = json!({
        "mode": "Redis",
        "lookupTimeout": lookup_timeout(),
        "redis": {
            "address": address,
            "tls": {"secretRef": {"name": "redis-ca"}, "serverName": redis.server_name},
            "credentialsSecretRef": {"name": "redis-login"},
        },
    });
    deploy(&namespace, cache);
    assert_eq!(status(&namespace), json!({"mode": "Redis", "reachable": "3/3"}));
    for pod in namespace.list("pods", "tlsfarm.dev/farm=shop") {
        assert_eq!(pod["spec"]["initContainers"], Value::Null, "a sidecar");
    }
    for (kind, name) in [
        ("service", "shop-cache"),
        ("secret", "shop-cache-ca"),
        ("secret", "shop-cache-tls"),
    ] {
        assert_eq!(namespace.get(kind, name), None, "{name} has no use");
    }
    let mut due = Due::default();
    due.everywhere(&when_linked(&namespace, 3));

    redis.stop();
    let message = wait_unreachable(&namespace, "refused");
    assert!(message.contains(&address), "{message}");
    assert_eq!(status(&namespace), json!({"mode": "Redis", "reachable": "0/3"}));
    assert_eq!(namespace.condition("shop", "Available").0, "True");
    let https = format!("{}:443", namespace.service_address("shop"));
    let service: SocketAddr = https.parse().expect("an address");
    for (_, proxy) in namespace.proxies("shop") {
        for at in [proxy, service] {
            for (hostname, version) in [(SHOP, Version::Tls12WithoutTickets), (BANK, Version::Tls13)] {
                full(s_client(at, hostname, version, None, None), "while Redis is gone");
            }
        }
    }

    redis.start_again(PASSWORD);
    due.everywhere(&when_linked(&namespace, 3));

    redis.stop();
    redis.start_again(OTHER_PASSWORD);
    wait_unreachable(&namespace, "WRONGPASS");
    for (place, text) in [
        (
            "the farm",
            namespace.kubectl(&["get", "tlsfarm", "shop", "--output=json"]),
        ),
        ("an event", namespace.kubectl(&["get", "events", "--output=json"])),
        ("a log", logs(&namespace)),
    ] {
        for password in [PASSWORD, OTHER_PASSWORD] {
            assert!(!text.contains(password), "{place} shows a password");
        }
    }
    put_login(&namespace, OTHER_PASSWORD);
    hurry_kubelets(&namespace, "new-password");
    namespace.wait_condition_for("shop", "SessionCacheReady", "True", "CacheReachable", PATIENCE);
    namespace.wait_ready("shop");
    assert_eq!(status(&namespace)["reachable"], "3/3");
    due.everywhere(&when_linked(&namespace, 3));
    namespace.delete();
}

/// Waits until SessionCacheReady is False with `problem` said of every proxy in its message, which it returns.
fn wait_unreachable(namespace: &Namespace, problem: &str) -> String {
    let mut last = String::new();
    wait_for(
        &format!("the condition to say {problem:?} of every proxy"),
        PATIENCE,
        || {
            let (status, reason, message) = namespace.condition("shop", "SessionCacheReady");
            let of_all = message.matches(problem).count() == 3;
            if last != message {
                println!("{reason}: {message}");
                last.clone_from(&message);
            }
            (status == "False" && reason == "CacheUnreachable" && of_all).then_some(message)
        },
    )
}

fn put_login(namespace: &Namespace, password: &str) {
    put_secret(
        namespace,
        "redis-login",
        json!({"username": USER, "password": password}),
    );
}

fn put_secret(namespace: &Namespace, name: &str, data: Value) {
    namespace.apply(&json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "stringData": data,
    }));
}

fn logs(namespace: &Namespace) -> String {
    let ours = "app.kubernetes.io/name=tlsfarm";
    namespace.kubectl(&["logs", "--all-containers", "--tail=-1", "--selector", ours])
}
