//! The committed CRD, the chart's copy and the API reference are what the types say, and fit for `kubectl explain`.

mod reference;

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[test]
fn the_committed_crd_is_what_the_binary_prints() {
    let output = Command::new(env!("CARGO_BIN_EXE_tlsfarm"))
        .arg("crd")
        .output()
        .expect("the binary runs");
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    for copy in ["crds/tlsfarm.yaml", "charts/tlsfarm-crds/files/tlsfarm.yaml"] {
        assert!(read(copy) == printed, "{copy} is out of date: run `make crds`");
    }
}

#[test]
fn every_property_is_described() {
    let crd: Value = serde_saphyr::from_str(&read("crds/tlsfarm.yaml")).expect("YAML");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    for part in ["spec", "status"] {
        check(part, &schema[part]);
    }
}

#[test]
fn every_reason_of_a_condition_is_explained() {
    let crd: Value = serde_saphyr::from_str(&read("crds/tlsfarm.yaml")).expect("YAML");
    let status = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
    let reasons = &status["properties"]["conditions"]["items"]["properties"]["reason"]["enum"];
    let page = read("docs/conditions.md");
    for reason in reasons.as_array().expect("the reasons are listed") {
        let reason = reason.as_str().expect("a word");
        assert!(
            page.contains(&format!("| {reason} |")),
            "docs/conditions.md does not explain {reason}"
        );
    }
}

/// `make crds` sets TLSFARM_UPDATE_DOCS, and the page is written.
#[test]
fn the_api_reference_is_what_the_crd_says() {
    let crd: Value = serde_saphyr::from_str(&read("crds/tlsfarm.yaml")).expect("YAML");
    let (page, file) = (reference::page(&crd), "docs/api.md");
    if std::env::var_os("TLSFARM_UPDATE_DOCS").is_some() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(file), page).expect("written");
        return;
    }
    assert!(read(file) == page, "{file} is out of date: run `make crds`");
}

fn check(path: &str, schema: &Value) {
    let description = schema["description"].as_str().unwrap_or_default();
    assert!(!description.is_empty(), "{path} has no description");
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        check(&format!("{path}.{name}"), property);
    }
    // The entries of a list are described by the list, but their own properties are not.
    for (name, property) in schema["items"]["properties"].as_object().into_iter().flatten() {
        check(&format!("{path}[].{name}"), property);
    }
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
