//! How the operator treats the API and other people's objects.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Namespace, audit_logs, farm, run, wait_for, writes_of};

#[test]
fn at_rest_the_operator_writes_nothing() {
    let namespace = Namespace::with_operator("test-at-rest");
    namespace.create_certificate("shop-tls", &["shop.example.com"]);
    namespace.apply(&farm("shop", 2, &[("shop", "shop.example.com")]));
    namespace.wait_ready("shop");
    let user = format!("system:serviceaccount:{}:tlsfarm", namespace.name);

    // Events and the last status come shortly after Ready; after that, nothing may be written for longer than any
    // requeue.
    let settled = wait_for("the operator to settle", Duration::from_secs(60), || {
        let before = writes_of(&user).len();
        std::thread::sleep(Duration::from_secs(5));
        (writes_of(&user).len() == before).then_some(before)
    });
    assert!(settled > 0, "the audit log shows no write of the operator at all");
    std::thread::sleep(Duration::from_secs(45));
    let since = &writes_of(&user)[settled..];
    assert!(since.is_empty(), "the operator wrote at rest: {since:#?}");
    namespace.delete();
}

#[test]
fn drift_is_repaired_and_orphans_go() {
    let namespace = Namespace::with_operator("test-drift");
    namespace.create_certificate("shop-tls", &["shop.example.com"]);
    let mut shop = farm("shop", 2, &[("shop", "shop.example.com")]);
    namespace.apply(&shop);
    namespace.wait_ready("shop");

    let uid = |kind: &str, name: &str| Some(namespace.get(kind, name)?["metadata"]["uid"].clone());
    for (kind, name) in [
        ("deployment", "shop-proxy"),
        ("service", "shop-proxy"),
        ("service", "shop-proxy-metrics"),
        ("configmap", "shop-proxy"),
        ("role", "shop-proxy"),
        ("rolebinding", "shop-proxy"),
        ("poddisruptionbudget", "shop-proxy"),
    ] {
        let before = uid(kind, name).unwrap_or_else(|| panic!("{kind} {name} does not exist"));
        namespace.kubectl(&["delete", kind, name, "--wait=false"]);
        wait_for(
            &format!("{kind} {name} to come back"),
            Duration::from_secs(30),
            || uid(kind, name).filter(|now| *now != before),
        );
    }
    namespace.kubectl(&["set", "env", "deployment/shop-proxy", "MEDDLED=yes"]);
    namespace.kubectl(&[
        "patch",
        "service",
        "shop-proxy",
        "--type=json",
        "--patch",
        r#"[{"op":"replace","path":"/spec/ports/0/targetPort","value":"admin"}]"#,
    ]);
    wait_for(
        "the Service's port to be put back",
        Duration::from_secs(30),
        || {
            let service = namespace.get("service", "shop-proxy")?;
            (service["spec"]["ports"][0]["targetPort"] == "https").then_some(())
        },
    );
    namespace.wait_ready("shop");

    shop["spec"]["http"] = json!({"mode": "Disabled"});
    namespace.apply(&shop);
    wait_for("port 80 to go", Duration::from_secs(30), || {
        let service = namespace.get("service", "shop-proxy")?;
        (service["spec"]["ports"].as_array()?.len() == 1).then_some(())
    });
    namespace.delete();
}

#[test]
fn objects_of_others_are_never_taken_over() {
    let namespace = Namespace::with_operator("test-foreign");
    namespace.create_certificate("shop-tls", &["shop.example.com"]);
    let foreign = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "shop-proxy"},
        "data": {"mine": "yes"},
    });
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "blog-ring"},
        "stringData": {"mine": "yes"},
    });
    namespace.apply(&foreign);
    namespace.apply(&secret);
    namespace.apply(&farm("shop", 1, &[("shop", "shop.example.com")]));
    let message = namespace.wait_condition("shop", "Accepted", "False", "NameConflict");
    assert!(message.contains("shop-proxy"), "{message}");
    assert_eq!(
        namespace.get("configmap", "shop-proxy").expect("kept")["data"],
        json!({"mine": "yes"})
    );

    namespace.apply(&farm("blog", 1, &[("shop", "blog.example.com")]));
    let message = namespace.wait_condition("blog", "Accepted", "False", "NameConflict");
    assert!(message.contains("blog-ring"), "{message}");
    assert_eq!(
        namespace.get("secret", "blog-ring").expect("kept")["data"],
        json!({"mine": "eWVz"})
    );

    namespace.kubectl(&["delete", "configmap", "shop-proxy"]);
    namespace.wait_condition("shop", "Accepted", "True", "Valid");
    namespace.wait_ready("shop");
    namespace.delete();
}

#[test]
fn deletion_leaves_nothing_and_keys_are_nowhere_but_in_the_ring() {
    let namespace = Namespace::with_operator("test-deletion");
    namespace.create_certificate("shop-tls", &["shop.example.com"]);
    namespace.apply(&farm("shop", 2, &[("shop", "shop.example.com")]));
    namespace.wait_ready("shop");
    namespace.rotate("shop", "once");

    let secrets = ring_secrets(&namespace);
    assert!(secrets.len() >= 3, "the ring holds {} keys", secrets.len());
    let everything = namespace.kubectl(&[
        "get",
        "tlsfarms,deployments,replicasets,pods,services,configmaps,events,events.events.k8s.io,roles,serviceaccounts",
        "--output=json",
        "--show-managed-fields",
    ]);
    let logs = namespace.kubectl(&[
        "logs",
        "--all-containers",
        "--prefix",
        "--selector",
        "app.kubernetes.io/name=tlsfarm",
    ]);
    let audit: String = audit_logs()
        .iter()
        .map(|log| std::fs::read_to_string(log).expect("a log stays readable"))
        .collect();
    for secret in &secrets {
        for (place, text) in [
            ("the API", &everything),
            ("the logs", &logs),
            ("the audit log", &audit),
        ] {
            assert!(!text.contains(secret.as_str()), "a ticket key shows in {place}");
        }
    }

    let owned = "tlsfarm.dev/farm=shop";
    let kinds = "deployments,replicasets,pods,services,configmaps,secrets,serviceaccounts,roles,rolebindings,poddisruptionbudgets,endpointslices";
    assert!(
        namespace.list(kinds, owned).len() >= 10,
        "the farm's objects do not carry its label"
    );
    namespace.kubectl(&["delete", "tlsfarm", "shop"]);
    wait_for("every object of the farm to go", Duration::from_secs(90), || {
        let labelled = namespace.list(kinds, owned).len();
        let ring = namespace.get("secret", "shop-ring");
        (labelled == 0 && ring.is_none()).then_some(())
    });
    namespace.delete();
}

/// Every key's secret as the ring document spells it.
fn ring_secrets(namespace: &Namespace) -> BTreeSet<String> {
    let document = namespace.kubectl(&[
        "get",
        "secret",
        "shop-ring",
        "--output=jsonpath={.data.ring\\.json}",
    ]);
    let document = run("base64", &["--decode"], Some(&document)).expect("base64");
    let ring: Value = serde_json::from_str(&document).expect("JSON");
    let previous = ring["previous"].as_array().expect("a list");
    [&ring["next"], &ring["primary"]]
        .into_iter()
        .chain(previous)
        .map(|key| key["secret"].as_str().expect("a secret").to_owned())
        .collect()
}
