//! Installing and removing, as the README says.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    crd(&namespace);
    namespace.delete();
}

#[test]
fn releases_installed_as_the_readme_says_come_and_go_one_by_one() {
    let [crds, release] = readme_installs();
    let first = Namespace::for_operator("test-first-release");
    let _turn = release_of_the_crd();
    let second = Namespace::create("test-second-release");
    let before = crd(&first);
    helm(&uninstall("tlsfarm-crds", "default")).unwrap_or_else(|error| panic!("{error}"));
    assert!(first.get("clusterrole", "tlsfarm-edit").is_none());
    assert_eq!(
        crd(&first),
        before,
        "to uninstall the CRD's release removes the CRD"
    );
    helm(&crds).unwrap_or_else(|error| panic!("{error}"));
    assert!(first.get("clusterrole", "tlsfarm-edit").is_some());

    for namespace in [&first, &second] {
        let mut release: Vec<_> = release
            .iter()
            .map(|word| if *word == "web" { namespace.name } else { word })
            .collect();
        let image = image();
        let (name, tag) = image.rsplit_once(':').expect("the image has a tag");
        let settings = format!("image.repository={name},image.tag={tag}");
        release.extend(["--set", &settings]);
        helm(&release).unwrap_or_else(|error| panic!("{error}"));
        namespace.deploy_backend();
        namespace.create_certificate("shop-tls", &["shop.example.com"]);
        namespace.apply(&farm("shop", 1, &[("shop", "shop.example.com")]));
    }
    for namespace in [&first, &second] {
        namespace.wait_ready("shop");
    }

    let mut remove_first = uninstall("tlsfarm", first.name);
    remove_first.push("--wait");
    helm(&remove_first).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(crd(&first), before);
    assert!(first.get("deployment", "tlsfarm").is_none());
    assert_eq!(first.proxies("shop").len(), 1, "the farm went with its operator");
    second.rotate("shop", "without-the-first");

    for namespace in [&first, &second] {
        namespace.kubectl(&["delete", "tlsfarm", "shop"]);
    }
    second.uninstall();
    first.delete();
    second.delete();
}

/// The release of an older chart, with CRD and operator in one, is played by a release of the CRD's chart alone.
#[test]
fn the_crd_moves_between_releases_without_losing_farms() {
    let [crds, _] = readme_installs();
    let namespace = Namespace::for_operator("test-take-over");
    let _turn = release_of_the_crd();
    let before = crd(&namespace);
    namespace.apply(&farm("shop", 1, &[("shop", "shop.example.com")]));
    let uid = || namespace.get("tlsfarm", "shop").expect("the farm is there")["metadata"]["uid"].clone();
    let farm_before = uid();
    helm(&uninstall("tlsfarm-crds", "default")).unwrap_or_else(|error| panic!("{error}"));
    let take = |release: &[&'static str]| [release, &["--take-ownership"]].concat();
    let old = [
        "install",
        "tlsfarm",
        "charts/tlsfarm-crds",
        "--namespace",
        namespace.name,
    ];
    helm(&take(&old)).unwrap_or_else(|error| panic!("{error}"));

    let refusal = helm(&crds).expect_err("the CRD of another release is taken over");
    assert!(refusal.contains("cannot be imported"), "{refusal}");
    helm(&take(&crds)).unwrap_or_else(|error| panic!("{error}"));
    namespace.helm("upgrade", "");
    assert_eq!(crd(&namespace), before);
    assert_eq!(uid(), farm_before);
    assert!(namespace.get("clusterrole", "tlsfarm-edit").is_none());
    let upgrade = [&["upgrade"], &crds[1..]].concat();
    helm(&upgrade).unwrap_or_else(|error| panic!("{error}"));
    assert!(namespace.get("clusterrole", "tlsfarm-edit").is_some());

    namespace.kubectl(&["delete", "tlsfarm", "shop"]);
    namespace.uninstall();
    assert_eq!(crd(&namespace), before);
    namespace.delete();
}

/// Held by tests that uninstall the release `tlsfarm-crds` or give the CRD to another. The CRD itself always stays.
pub fn release_of_the_crd() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The identity of the CRD: if it changes, the CRD was deleted in between, and every farm with it.
fn crd(namespace: &Namespace) -> Value {
    let crd = namespace.get("crd", "tlsfarms.tlsfarm.dev");
    crd.expect("the CRD went, and everyone's farms with it")["metadata"]["uid"].clone()
}

/// The arguments of the README's two commands `helm install`: of the CRD, and of an operator for namespace `web`.
fn readme_installs() -> [Vec<&'static str>; 2] {
    let readme = include_str!("../../README.md");
    let installs: Vec<_> = readme
        .lines()
        .filter(|line| line.starts_with("helm install "))
        .map(|line| {
            let command = line.split('#').next().expect("a line has a beginning");
            command.split_whitespace().skip(1).collect::<Vec<_>>()
        })
        .collect();
    installs.try_into().expect("two commands")
}

fn uninstall<'a>(release: &'a str, namespace: &'a str) -> Vec<&'a str> {
    vec![
        "uninstall",
        release,
        "--namespace",
        namespace,
        "--ignore-not-found",
    ]
}

/// Runs Helm in the project's root, as the README's paths require.
fn helm(args: &[&str]) -> Result<String, String> {
    let root = repository().to_str().expect("UTF-8");
    let shell = ["-c", "cd \"$1\" && shift && exec helm \"$@\"", "helm", root];
    run("sh", &[&shell, args].concat(), None)
}

#[test]
fn installing_without_the_crd_fails_with_the_command_to_run() {
    let [crds, _] = readme_installs();
    // What Helm knows of a real cluster is more than versions.
    let known = |apis: &str| {
        let apis = format!("--api-versions={apis}");
        helm(&["template", "tlsfarm", "charts/tlsfarm", &apis])
    };
    let refusal = known("apps/v1/Deployment").expect_err("the CRD is not missed");
    let command = format!("helm {}", crds.join(" "));
    assert!(refusal.contains(&command), "{refusal}");
    known("apps/v1/Deployment,tlsfarm.dev/v1alpha1").unwrap_or_else(|error| panic!("{error}"));
    known("apps/v1").unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn whoever_installs_a_release_needs_no_permission_on_crds() {
    let namespace = Namespace::create("test-installer");
    namespace.kubectl(&[
        "create",
        "rolebinding",
        "ann",
        "--clusterrole=admin",
        "--user=ann",
    ]);
    let rendered = helm(&[
        "template",
        "tlsfarm",
        "charts/tlsfarm",
        "--dry-run=server",
        "--kube-as-user=ann",
        "--namespace",
        namespace.name,
    ]);
    rendered.unwrap_or_else(|error| panic!("{error}"));
    namespace.delete();
}

#[test]
fn what_is_cluster_wide_is_not_in_the_operators_chart_unless_it_serves_all() {
    for settings in [DEFAULT, TWO_NAMESPACES] {
        for object in render(OPERATOR, settings) {
            assert!(object["metadata"]["namespace"].is_string(), "{object}");
        }
    }
    let names: BTreeSet<_> = render(CRDS, "keep=true")
        .iter()
        .map(|object| object["metadata"]["name"].as_str().expect("named").to_owned())
        .collect();
    let expected = ["tlsfarm-edit", "tlsfarm-view", "tlsfarms.tlsfarm.dev"].map(String::from);
    assert_eq!(names, BTreeSet::from(expected));
    for settings in ["crds.enabled=false", "rbac.userRoles=false"] {
        let refusal = helm(&["template", "tlsfarm", OPERATOR, "--set", settings]);
        let refusal = refusal.expect_err("an old value is accepted");
        assert!(refusal.contains("not allowed"), "{refusal}");
    }
}

#[test]
fn the_charts_grant_nothing_that_leads_further() {
    let operator = SETTINGS.map(|settings| (OPERATOR, settings));
    for (chart, settings) in operator.into_iter().chain([(CRDS, "userRoles=true")]) {
        let objects = render(chart, settings);
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
        render(OPERATOR, settings)
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
        let objects = render(OPERATOR, settings);
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

const OPERATOR: &str = "charts/tlsfarm";
const CRDS: &str = "charts/tlsfarm-crds";

const DEFAULT: &str = "log.filter=info";
const TWO_NAMESPACES: &str = "watchNamespaces={one,two}";
const CLUSTER_WIDE: &str = "clusterWide=true";
const SETTINGS: [&str; 3] = [DEFAULT, TWO_NAMESPACES, CLUSTER_WIDE];

/// The objects of a release in namespace `web`, its test among them.
fn render(chart: &str, settings: &str) -> Vec<Value> {
    let template = [
        "template",
        "tlsfarm",
        chart,
        "--namespace=web",
        "--kube-version=1.33",
        "--set",
        settings,
    ];
    let rendered = helm(&template).unwrap_or_else(|error| panic!("{error}"));
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
    let crds = repository().join("crds");
    let operator = scratch_overlay();
    for kustomization in [crds.to_str().expect("UTF-8"), &operator] {
        let apply = ["apply", "--server-side", "--force-conflicts", "-k", kustomization];
        run("kubectl", &apply, None).unwrap_or_else(|error| panic!("{error}"));
    }
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

    let before = crd(&namespace);
    run("kubectl", &["delete", "-k", &operator, "--wait"], None).unwrap_or_else(|error| panic!("{error}"));
    for (kind, name) in [
        ("namespace", "tlsfarm-system"),
        ("clusterrole", "tlsfarm"),
        ("clusterrolebinding", "tlsfarm"),
    ] {
        assert!(namespace.get(kind, name).is_none(), "{kind} {name} stayed");
    }
    assert_eq!(crd(&namespace), before);
    assert_eq!(
        namespace.proxies("shop").len(),
        1,
        "the farm went with its operator"
    );
    namespace.kubectl(&["delete", "tlsfarm", "shop"]);
    namespace.delete();
}

/// An overlay of `deploy/operator` with the image under test, as a user would write one to pin an image.
fn scratch_overlay() -> String {
    let image = image();
    let (name, tag) = image.rsplit_once(':').expect("the image has a tag");
    let dir = repository().join("target/kustomize");
    std::fs::create_dir_all(&dir).expect("created");
    let overlay = format!(
        "resources: [../../deploy/operator]
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
