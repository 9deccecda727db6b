//! Installing and removing, as the README says.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Namespace, farm, image, only_operator, repository, run, shares};

#[test]
fn the_chart_is_tested_by_its_own_probe_and_leaves_nothing_behind() {
    let namespace = Namespace::with_operator("test-install");
    namespace.create_certificate("shop-tls", &["shop.example.com"]);
    namespace.create_certificate("blog-tls", &["blog.example.com"]);
    let hosts = [("shop", "shop.example.com"), ("blog", "blog.example.com")];
    let mut shop = farm("shop", 2, &hosts);
    shop["spec"]["hosts"][1]["tls"]["minVersion"] = json!("TLS13");
    namespace.apply(&shop);
    namespace.wait_ready("shop");
    let tested = run(
        "helm",
        &["test", "tlsfarm", "--namespace", namespace.name, "--logs"],
        None,
    );
    let tested = tested.unwrap_or_else(|error| panic!("{error}"));
    let expected = [
        "blog.example.com  TLS 1.3 ticket  4/4  100 %",
        "shop.example.com  TLS 1.2 ticket  4/4  100 %",
        "shop.example.com  TLS 1.3 ticket  4/4  100 %",
    ];
    assert_eq!(shares(&tested), BTreeSet::from(expected), "{tested}");

    namespace.kubectl(&["delete", "tlsfarm", "shop"]);
    namespace.uninstall();
    assert!(
        namespace.get("crd", "tlsfarms.tlsfarm.dev").is_some(),
        "the CRD went, and everyone's farms with it"
    );
    namespace.delete();
}

#[test]
fn the_chart_grants_nothing_that_leads_further() {
    for settings in SETTINGS {
        let objects = render(settings);
        let rules: Vec<_> = objects
            .iter()
            .flat_map(|object| list(&object["rules"]).iter().map(move |rule| (object, rule)))
            .collect();
        assert!(!rules.is_empty());
        for (role, rule) in rules {
            let of = format!("{} {}: {rule}", role["kind"], role["metadata"]["name"]);
            let verbs = words(&rule["verbs"]);
            let resources = words(&rule["resources"]);
            let everything = [words(&rule["apiGroups"]), verbs.clone(), resources.clone()].concat();
            assert!(!everything.contains(&"*"), "a wildcard in {of}");
            assert_eq!(rule["nonResourceURLs"], Value::Null, "{of}");
            for verb in ["escalate", "bind", "impersonate", "approve", "sign"] {
                assert!(!verbs.contains(&verb), "{verb} in {of}");
            }
            let forbidden = resources.iter().find(|resource| {
                resource.starts_with("pods/")
                    || resource.starts_with("nodes")
                    || resource.starts_with("clusterrole")
                    || **resource == "serviceaccounts/token"
            });
            assert_eq!(forbidden, None, "{of}");
            if resources.contains(&"secrets") {
                let beyond = verbs
                    .iter()
                    .find(|verb| !["get", "create", "update", "delete"].contains(verb));
                assert_eq!(beyond, None, "{of}");
            }
        }
    }
}

#[test]
fn the_operator_has_permissions_in_its_namespaces_only_unless_it_serves_all() {
    let bindings = |settings: &str, kind: &str| -> Vec<Value> {
        render(settings)
            .iter()
            .filter(|object| object["kind"] == kind && object["metadata"]["name"] == "tlsfarm")
            .map(|object| object["metadata"]["namespace"].clone())
            .collect()
    };
    assert_eq!(bindings(DEFAULT, "RoleBinding"), [json!("web")]);
    assert_eq!(bindings(DEFAULT, "ClusterRoleBinding"), [] as [Value; 0]);
    assert_eq!(
        bindings(TWO_NAMESPACES, "RoleBinding"),
        [json!("one"), json!("two")]
    );
    assert_eq!(bindings(TWO_NAMESPACES, "ClusterRoleBinding"), [] as [Value; 0]);
    assert_eq!(bindings(CLUSTER_WIDE, "RoleBinding"), [] as [Value; 0]);
    assert_eq!(bindings(CLUSTER_WIDE, "ClusterRoleBinding").len(), 1);
}

#[test]
fn every_pod_of_the_chart_gives_up_what_it_does_not_need() {
    for settings in SETTINGS {
        let objects = render(settings);
        let pods: Vec<_> = objects
            .iter()
            .filter_map(|object| match object["kind"].as_str() {
                Some("Pod") => Some(&object["spec"]),
                Some("Deployment") => Some(&object["spec"]["template"]["spec"]),
                _ => None,
            })
            .collect();
        assert_eq!(pods.len(), 2, "the operator and the test");
        for pod in pods {
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{pod}");
            assert_eq!(
                pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
                "{pod}"
            );
            for shared in ["hostNetwork", "hostPID", "hostIPC", "volumes", "initContainers"] {
                assert_eq!(pod[shared], Value::Null, "{shared} in {pod}");
            }
            for container in list(&pod["containers"]) {
                let expected = json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                });
                assert_eq!(container["securityContext"], expected, "{container}");
                let resources = &container["resources"];
                for amount in [&resources["limits"]["memory"], &resources["requests"]["cpu"]] {
                    assert!(amount.is_string(), "{container}");
                }
            }
        }
    }
}

const DEFAULT: &str = "log.filter=info";
const TWO_NAMESPACES: &str = "watchNamespaces={one,two}";
const CLUSTER_WIDE: &str = "clusterWide=true";
const SETTINGS: [&str; 3] = [DEFAULT, TWO_NAMESPACES, CLUSTER_WIDE];

/// The objects of a release in namespace `web`, its test among them.
fn render(settings: &str) -> Vec<Value> {
    let chart = repository().join("charts/tlsfarm");
    let chart = chart.to_str().expect("UTF-8");
    let template = [
        "template",
        "tlsfarm",
        chart,
        "--namespace=web",
        "--kube-version=1.33",
        "--set",
        settings,
    ];
    let rendered = run("helm", &template, None).unwrap_or_else(|error| panic!("{error}"));
    rendered
        .split("\n---\n")
        .map(|document| serde_saphyr::from_str::<Value>(document).expect("helm prints YAML"))
        .filter(|object| !object.is_null())
        .collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn words(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
}

#[test]
fn every_sample_is_accepted_by_the_api_server() {
    let namespace = Namespace::create("test-samples");
    let samples = std::fs::read_dir(repository().join("deploy/samples")).expect("there are samples");
    let mut count = 0;
    for sample in samples {
        let path = sample.expect("readable").path();
        if path.file_name().is_some_and(|name| name == "kustomization.yaml") {
            continue;
        }
        let path = path.to_str().expect("UTF-8");
        namespace.kubectl(&["apply", "--dry-run=server", "-f", path]);
        count += 1;
    }
    assert!(count >= 3, "only {count} samples");
    namespace.delete();
}

#[test]
fn plain_kubectl_installs_an_operator_that_serves_every_namespace() {
    let _only = only_operator();
    let kustomization = scratch_overlay();
    let apply = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "-k",
        &kustomization,
    ];
    run("kubectl", &apply, None).unwrap_or_else(|error| panic!("{error}"));
    let rollout = [
        "--namespace",
        "tlsfarm-system",
        "rollout",
        "status",
        "deployment/tlsfarm",
        "--timeout=90s",
    ];
    run("kubectl", &rollout, None).unwrap_or_else(|error| panic!("{error}"));

    let namespace = Namespace::create("test-kustomize");
    namespace.deploy_backend();
    namespace.create_certificate("shop-tls", &["shop.example.com"]);
    namespace.apply(&farm("shop", 1, &[("shop", "shop.example.com")]));
    namespace.wait_ready("shop");
    namespace.kubectl(&["delete", "tlsfarm", "shop"]);
    namespace.delete();

    // All but the CRD, which other tests use.
    for (kind, name) in [
        ("namespace", "tlsfarm-system"),
        ("clusterrole", "tlsfarm"),
        ("clusterrole", "tlsfarm-view"),
        ("clusterrole", "tlsfarm-edit"),
        ("clusterrolebinding", "tlsfarm"),
    ] {
        run("kubectl", &["delete", kind, name, "--ignore-not-found"], None)
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

/// An overlay of `deploy/` with the image under test, as a user would write one to pin an image.
fn scratch_overlay() -> String {
    let image = image();
    let (name, tag) = image.rsplit_once(':').expect("the image has a tag");
    let dir = repository().join("target/kustomize");
    std::fs::create_dir_all(&dir).expect("created");
    let overlay = format!(
        "resources: [../../deploy]
images: [{{name: ghcr.io/tlsfarm/tlsfarm, newName: {name}, newTag: {tag}}}]
replacements:
- source: {{kind: Deployment, name: tlsfarm, fieldPath: 'spec.template.spec.containers.[name=operator].image'}}
  targets:
  - select: {{kind: Deployment, name: tlsfarm}}
    fieldPaths: ['spec.template.spec.containers.[name=operator].env.[name=TLSFARM_PROXY_IMAGE].value']
"
    );
    std::fs::write(dir.join("kustomization.yaml"), overlay).expect("written");
    dir.to_str().expect("UTF-8").to_owned()
}
