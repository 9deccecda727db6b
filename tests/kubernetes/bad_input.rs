//! What bad input gets: the rest goes on, the status says what is wrong, and it recovers by itself.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Namespace, Version, authority_file, certificate, farm, run, s_client, wait_for};

/// The kubelet looks at mounted Secrets about once a minute.
const KUBELET_PATIENCE: Duration = Duration::from_secs(150);

#[test]
fn a_bad_certificate_takes_down_only_its_own_host_and_heals() {
    let namespace = Namespace::with_operator("test-certificates");
    namespace.create_certificate("good-tls", &["good.example.com"]);
    namespace.apply(&farm(
        "shop",
        2,
        &[("good", "good.example.com"), ("bad", "bad.example.com")],
    ));

    let bad = |reason: &str| {
        namespace.wait_condition_for("shop", "CertificatesReady", "False", reason, KUBELET_PATIENCE);
        let message = namespace.condition("shop", "CertificatesReady").2;
        assert!(
            message.contains("bad") && message.contains("bad-tls"),
            "{message}"
        );
        for (proxy, address) in namespace.proxies("shop") {
            let good = s_client(address, "good.example.com", Version::Tls13, None, None);
            assert!(
                good.served,
                "{proxy} does not serve the other host while {reason}"
            );
            let bad = s_client(address, "bad.example.com", Version::Tls13, None, None);
            assert!(
                !bad.complete,
                "{proxy} has a good certificate for the bad host while {reason}"
            );
        }
    };
    bad("CertificateMissing");
    assert_eq!(namespace.condition("shop", "Ready").1, "CertificateMissing");

    let (certificate_of_one, _) = certificate(&["bad.example.com"], 2000..2100);
    let (_, key_of_another) = certificate(&["bad.example.com"], 2000..2100);
    namespace.apply_certificate("bad-tls", &certificate_of_one, &key_of_another);
    bad("KeyMismatch");
    namespace.create_certificate("bad-tls", &["else.example.com"]);
    bad("NameMismatch");
    let (expired, key) = certificate(&["bad.example.com"], 2000..2001);
    namespace.apply_certificate("bad-tls", &expired, &key);
    bad("CertificateExpired");

    namespace.create_certificate("bad-tls", &["bad.example.com"]);
    namespace.wait_condition_for(
        "shop",
        "CertificatesReady",
        "True",
        "CertificatesLoaded",
        KUBELET_PATIENCE,
    );
    namespace.wait_ready("shop");
    for (proxy, address) in namespace.proxies("shop") {
        let healed = s_client(address, "bad.example.com", Version::Tls13, None, None);
        assert!(healed.served, "{proxy} does not serve the healed host");
    }
    namespace.delete();
}

#[test]
fn a_host_name_belongs_to_one_host_of_one_farm() {
    let namespace = Namespace::with_operator("test-hostnames");
    namespace.create_certificate("shop-tls", &["shop.example.com"]);
    namespace.apply(&farm("first", 1, &[("shop", "shop.example.com")]));
    namespace.wait_ready("first");

    namespace.apply(&farm("second", 1, &[("shop", "shop.example.com")]));
    let message = namespace.wait_condition("second", "Accepted", "False", "HostnameConflict");
    assert!(
        message.contains("shop.example.com") && message.contains("first"),
        "{message}"
    );
    assert!(
        namespace.get("deployment", "second-proxy").is_none(),
        "a farm that is not accepted was built"
    );
    namespace.wait_condition("first", "Ready", "True", "FarmReady");

    namespace.apply(&farm(
        "twice",
        1,
        &[("a", "twice.example.com"), ("b", "twice.example.com")],
    ));
    let message = namespace.wait_condition("twice", "Accepted", "False", "HostnameConflict");
    assert!(message.contains("twice.example.com"), "{message}");

    namespace.kubectl(&["delete", "tlsfarm", "first"]);
    namespace.wait_condition("second", "Accepted", "True", "Valid");
    namespace.wait_ready("second");
    namespace.delete();
}

#[test]
fn a_missing_backend_is_503_and_a_condition_until_it_exists() {
    let namespace = Namespace::with_operator("test-backends");
    namespace.create_certificate("shop-tls", &["shop.example.com"]);
    let mut shop = farm("shop", 1, &[("shop", "shop.example.com")]);
    shop["spec"]["hosts"][0]["routes"] = json!([
        {"path": "/", "backend": {"service": "web", "port": 8080}},
        {"path": "/late", "backend": {"service": "late", "port": 80}},
    ]);
    namespace.apply(&shop);
    let message = namespace.wait_condition("shop", "BackendsReady", "False", "BackendNotFound");
    assert!(message.contains("late"), "{message}");
    let (_, address) = wait_for("a proxy", Duration::from_secs(60), || {
        namespace.proxies("shop").into_iter().next()
    });
    let code = |path: &str| {
        let url = format!("https://shop.example.com:8443{path}");
        let route = format!("shop.example.com:8443:{}", address.ip());
        let args = [
            "-s",
            "--cacert",
            authority_file().to_str().expect("UTF-8"),
            "--resolve",
            &route,
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--max-time",
            "5",
            &url,
        ];
        run("curl", &args, None).unwrap_or_else(|error| panic!("{error}"))
    };
    assert_eq!(code("/late/page"), "503");
    assert_eq!(code("/latecomer"), "200");

    namespace.apply(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "late"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }));
    namespace.wait_condition("shop", "BackendsReady", "True", "BackendsResolved");
    wait_for("the late backend to serve", Duration::from_secs(30), || {
        (code("/late/page") == "200").then_some(())
    });
    namespace.delete();
}

#[test]
fn the_api_server_refuses_what_the_schema_forbids() {
    let namespace = Namespace::create("test-schema");
    let good = farm("shop", 1, &[("shop", "shop.example.com")]);
    let dry_run = |farm: &serde_json::Value| {
        let args = [
            "--namespace",
            namespace.name,
            "apply",
            "--dry-run=server",
            "-f",
            "-",
        ];
        run("kubectl", &args, Some(&farm.to_string()))
    };
    dry_run(&good).unwrap_or_else(|error| panic!("{error}"));
    let cases = [
        ("/spec/surprise", "unknown field", json!(1)),
        ("/spec/replicas", "greater than or equal to 0", json!(-1)),
        ("/spec/hosts", "at least 1", json!([])),
        ("/spec/hosts/0/hostnames", "should match", json!(["Not A Name"])),
        ("/spec/hosts/0/hostnames", "no IP address", json!(["10.0.0.1"])),
        (
            "/spec/hosts/0/hostnames",
            "Duplicate",
            json!(["a.example.com", "a.example.com"]),
        ),
        (
            "/spec/hosts/0/routes/0/path",
            "must begin with /",
            json!("no-slash"),
        ),
        (
            "/spec/hosts/0/tls/minVersion",
            "Unsupported value",
            json!("TLS11"),
        ),
        ("/spec/hosts/0/routes/0/path", "write / for /*", json!("/shop/*")),
        (
            "/spec/proxy",
            "must be a level",
            json!({"log": {"filter": "tlsfarm=loud"}}),
        ),
        (
            "/spec/resumption",
            "between 5m and 24h",
            json!({"tickets": {"rotationInterval": "1m"}}),
        ),
        (
            "/spec/resumption",
            "between 5m and 24h",
            json!({"tickets": {"rotationInterval": "25h"}}),
        ),
        (
            "/spec/resumption",
            "between 1m and 168h",
            json!({"tickets": {"lifetime": "169h"}}),
        ),
        (
            "/spec/resumption",
            "maxAge must be between",
            json!({"tickets": {"lifetime": "4h", "maxAge": "3h"}}),
        ),
        (
            "/spec/resumption",
            "24 times rotationInterval",
            json!({"tickets": {"rotationInterval": "5m"}}),
        ),
        (
            "/spec/proxy",
            "must be a CIDR network",
            json!({"trustedProxies": ["10.0.0.0/33"]}),
        ),
        ("/spec/proxy", "between 1s and 1h", json!({"drainPeriod": "2h"})),
        (
            "/spec/proxy",
            "should match",
            json!({"resources": {"limits": {"memory": "lots"}}}),
        ),
        (
            "/spec/service",
            "requires type LoadBalancer",
            json!({"type": "ClusterIP", "loadBalancerClass": "x/y"}),
        ),
    ];
    for (pointer, expected, value) in cases {
        let mut bad = good.clone();
        let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
        bad.pointer_mut(parent).expect("exists")[field] = value;
        let error = dry_run(&bad).expect_err(pointer);
        assert!(error.contains(expected), "{pointer}: {error}");
    }
    for malformed in [
        json!({"tickets": {"rotationInterval": "1 hour"}}),
        json!({"tickets": {"lifetime": "1d"}}),
        json!({"sessionCache": {"lookupTimeout": "5"}}),
    ] {
        let mut bad = good.clone();
        bad["spec"]["resumption"] = malformed;
        let error = dry_run(&bad).expect_err("malformed");
        let complaints = error.matches("Invalid value").count();
        let explained = error.contains("must be a duration such as");
        assert!(complaints == 1 && explained, "one mistake, one sentence: {error}");
    }
    for (expected, cache) in [
        ("redis is required in mode Redis", json!({"mode": "Redis"})),
        (
            "must not be set in other modes",
            json!({"mode": "Sidecar", "redis": {"address": "redis:6379"}}),
        ),
        (
            "between 1ms and 50ms",
            json!({"mode": "Sidecar", "lookupTimeout": "51ms"}),
        ),
        (
            "between 1ms and 50ms",
            json!({"mode": "Sidecar", "lookupTimeout": "0s"}),
        ),
        (
            "should match",
            json!({"mode": "Redis", "redis": {"address": "redis://redis:6379"}}),
        ),
    ] {
        let mut bad = good.clone();
        bad["spec"]["resumption"] = json!({"sessionCache": cache});
        let error = dry_run(&bad).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
    let mut single_use = good.clone();
    single_use["spec"]["hosts"][0]["tls"]["tickets"] = json!({"kind": "SingleUse"});
    let error = dry_run(&single_use).expect_err("single-use tickets need a cache");
    assert!(error.contains("must be Sidecar or Redis"), "{error}");
    single_use["spec"]["resumption"] = json!({"sessionCache": {"mode": "Sidecar"}});
    dry_run(&single_use).unwrap_or_else(|error| panic!("{error}"));

    let mut long = good.clone();
    long["metadata"]["name"] = json!("x".repeat(49));
    assert!(dry_run(&long).expect_err("too long").contains("at most 48"));
    namespace.delete();
}
