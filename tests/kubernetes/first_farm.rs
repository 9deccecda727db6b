//! docs/first-farm.md: every command of the page, in its order.

use std::fs;
use std::os::unix::fs::symlink;

use crate::harness::{Namespace, image, repository, run};
use crate::install::release_of_the_crd;

#[test]
fn every_command_of_the_first_farm_works_as_it_is_printed() {
    let namespace = Namespace::for_operator("test-first-farm");
    let _turn = release_of_the_crd();
    // As Helm creates it. The page's backend does not meet the restricted level.
    let unrestricted = "pod-security.kubernetes.io/enforce-";
    namespace.kubectl(&["label", "namespace", namespace.name, unrestricted]);
    let dir = std::env::temp_dir().join(format!("tlsfarm-first-farm-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("created");
    symlink(repository().join("charts"), dir.join("charts")).expect("linked");
    // The page selects a namespace in it.
    let kubeconfig = std::env::var("KUBECONFIG").expect("run these tests through `make test`");
    fs::copy(kubeconfig, dir.join("kubeconfig")).expect("copied");

    let script = dir.join("script");
    fs::write(&script, adapted(&page(), namespace.name)).expect("written");
    let command = "cd \"$1\"; export KUBECONFIG=\"$1/kubeconfig\"; exec bash -euxo pipefail ./script";
    let arguments = ["-c", command, "bash", dir.to_str().expect("UTF-8")];
    let printed = run("bash", &arguments, None).unwrap_or_else(|error| panic!("{error}"));
    println!("{printed}");

    let handshakes: Vec<_> = printed
        .lines()
        .filter(|line| line.starts_with("New, ") || line.starts_with("Reused, "))
        .filter_map(|line| line.split_once(','))
        .map(|(kind, _)| kind)
        .collect();
    assert_eq!(handshakes, ["New", "Reused"]);
    for mechanism in ["TLS 1.2 ticket", "TLS 1.3 ticket"] {
        let line = format!("shop.example.com  {mechanism}  4/4  100 %");
        assert!(printed.contains(&line), "{line:?} was not printed");
    }
    assert!(
        printed.contains(" 0 missed"),
        "the probe saw misses under a rotation"
    );
    let across = printed.lines().find(|line| line.contains("across a rotation"));
    assert!(across.is_some_and(|line| !line.contains(" 0/0")), "{across:?}");
    fs::remove_dir_all(&dir).expect("removed");
    assert!(
        namespace.get("namespace", namespace.name).is_none(),
        "it was deleted"
    );
}

/// The commands of the page.
fn page() -> String {
    let page = fs::read_to_string(repository().join("docs/first-farm.md")).expect("readable");
    let blocks = page.split("```sh\n").skip(1);
    let commands: Vec<_> = blocks
        .map(|block| block.split("```").next().unwrap_or_default())
        .collect();
    assert!(
        commands.len() >= 8,
        "the page has {} blocks of commands",
        commands.len()
    );
    commands.concat()
}

/// The same for the test's namespace, with images that no registry needs to have.
fn adapted(commands: &str, namespace: &str) -> String {
    let image = image();
    let (name, tag) = image.rsplit_once(':').expect("the image has a tag");
    let replacements = [
        ("--namespace web", format!("--namespace {namespace}")),
        ("delete namespace web", format!("delete namespace {namespace}")),
        (
            "tlsfarm charts/tlsfarm ",
            format!("tlsfarm charts/tlsfarm --set image.repository={name},image.tag={tag} "),
        ),
        (
            "registry.k8s.io/e2e-test-images/agnhost:2.53",
            "localhost/tlsfarm-backend:1".into(),
        ),
        (" \\\n  -- /agnhost netexec --http-port=8080", String::new()),
    ];
    replacements
        .iter()
        .fold(commands.to_owned(), |script, (from, to)| {
            assert!(script.contains(from), "the page does not say {from:?}");
            script.replace(from, to)
        })
}
