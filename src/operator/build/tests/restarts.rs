//! Tests that the description of a field says so if a change restarts the proxies, that is, changes the pod template.

use std::collections::BTreeMap;

use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::{built, spec};
use crate::api::TLSFarm;

/// The words of a description by which tests/crd finds the fields, too.
const RESTARTS: &str = "restarts the proxies";

/// For every field of a spec a change: the pointer to what is set, and two values.
#[rustfmt::skip] // A table.
fn changes() -> Vec<(&'static str, &'static str, Value, Value)> {
    let sidecar = |field: &str, value: Value| {
        let mut cache = json!({"mode": "Sidecar"});
        cache[field] = value;
        cache
    };
    let redis = |redis: Value| json!({"mode": "Redis", "redis": redis});
    let address = "redis:6379";
    let credentials = |name: &str| redis(json!({"address": address, "credentialsSecretRef": {"name": name}}));
    let tls = |tls: Value| redis(json!({"address": address, "tls": tls}));
    let cache = "/resumption/sessionCache";
    let toleration = |field: &str, value: Value| {
        let mut toleration = json!({"key": "edge", "operator": "Exists"});
        toleration[field] = value;
        json!([toleration])
    };
    let tolerations = "/proxy/scheduling/tolerations";
    vec![
        ("replicas", "/replicas", json!(3), json!(4)),
        ("hosts[].name", "/hosts/0/name", json!("a"), json!("b")),
        ("hosts[].hostnames", "/hosts/0/hostnames", json!(["a.test"]), json!(["b.test"])),
        ("hosts[].tls.certificateRefs[].name", "/hosts/0/tls/certificateRefs/0/name", json!("a"), json!("b")),
        ("hosts[].tls.minVersion", "/hosts/0/tls/minVersion", json!("TLS12"), json!("TLS13")),
        ("hosts[].tls.tickets.kind", "/hosts/0/tls/tickets",
            json!({"kind": "Stateless"}), json!({"kind": "SingleUse"})),
        ("hosts[].routes[].path", "/hosts/0/routes/0/path", json!("/"), json!("/b")),
        ("hosts[].routes[].backend.service", "/hosts/0/routes/0/backend/service", json!("a"), json!("b")),
        ("hosts[].routes[].backend.port", "/hosts/0/routes/0/backend/port", json!(80), json!(81)),
        ("http.mode", "/http", json!({"mode": "Serve"}), json!({"mode": "Disabled"})),
        ("resumption.tickets.rotationInterval", "/resumption/tickets/rotationInterval", json!("1h"), json!("2h")),
        ("resumption.tickets.lifetime", "/resumption/tickets/lifetime", json!("1h"), json!("2h")),
        ("resumption.tickets.maxAge", "/resumption/tickets/maxAge", json!("24h"), json!("25h")),
        ("resumption.tickets.maxUnackedWait", "/resumption/tickets/maxUnackedWait", json!("1m"), json!("2m")),
        ("resumption.tickets.tls12", "/resumption/tickets/tls12", json!("Enabled"), json!("Disabled")),
        ("resumption.sessionCache.mode", cache, json!({"mode": "Disabled"}), json!({"mode": "Sidecar"})),
        ("resumption.sessionCache.sizeMiB", cache, sidecar("sizeMiB", json!(1)), sidecar("sizeMiB", json!(2))),
        ("resumption.sessionCache.resources.requests", cache,
            sidecar("resources", json!({"requests": {"cpu": "1"}})), sidecar("resources", json!({"requests": {"cpu": "2"}}))),
        ("resumption.sessionCache.resources.limits", cache,
            sidecar("resources", json!({"limits": {"cpu": "1"}})), sidecar("resources", json!({"limits": {"cpu": "2"}}))),
        ("resumption.sessionCache.lookupTimeout", cache,
            sidecar("lookupTimeout", json!("5ms")), sidecar("lookupTimeout", json!("50ms"))),
        ("resumption.sessionCache.redis.address", cache,
            redis(json!({"address": "a:6379"})), redis(json!({"address": "b:6379"}))),
        ("resumption.sessionCache.redis.tls.secretRef.name", cache,
            tls(json!({"secretRef": {"name": "a"}})), tls(json!({"secretRef": {"name": "b"}}))),
        ("resumption.sessionCache.redis.tls.serverName", cache,
            tls(json!({"secretRef": {"name": "a"}, "serverName": "a"})), tls(json!({"secretRef": {"name": "a"}, "serverName": "b"}))),
        ("resumption.sessionCache.redis.credentialsSecretRef.name", cache, credentials("a"), credentials("b")),
        ("service.type", "/service", json!({"type": "NodePort"}), json!({"type": "ClusterIP"})),
        ("service.annotations", "/service/annotations", json!({"a": "1"}), json!({"a": "2"})),
        ("service.loadBalancerClass", "/service/loadBalancerClass", json!("a.b/c"), json!("a.b/d")),
        ("service.externalTrafficPolicy", "/service/externalTrafficPolicy", json!("Local"), json!("Cluster")),
        ("service.ipFamilyPolicy", "/service/ipFamilyPolicy", json!("SingleStack"), json!("PreferDualStack")),
        ("proxy.image", "/proxy/image", json!("a:1"), json!("a:2")),
        ("proxy.resources.requests", "/proxy/resources",
            json!({"requests": {"cpu": "1"}}), json!({"requests": {"cpu": "2"}})),
        ("proxy.resources.limits", "/proxy/resources",
            json!({"limits": {"cpu": "1"}}), json!({"limits": {"cpu": "2"}})),
        ("proxy.log.filter", "/proxy/log", json!({"filter": "info"}), json!({"filter": "debug"})),
        ("proxy.log.format", "/proxy/log", json!({"format": "Text"}), json!({"format": "Json"})),
        ("proxy.scheduling.nodeSelector", "/proxy/scheduling/nodeSelector", json!({"a": "1"}), json!({"a": "2"})),
        ("proxy.scheduling.priorityClassName", "/proxy/scheduling/priorityClassName", json!("a"), json!("b")),
        ("proxy.scheduling.tolerations[].key", tolerations,
            toleration("key", json!("a")), toleration("key", json!("b"))),
        ("proxy.scheduling.tolerations[].operator", tolerations,
            toleration("operator", json!("Exists")), toleration("operator", json!("Equal"))),
        ("proxy.scheduling.tolerations[].value", tolerations,
            toleration("value", json!("a")), toleration("value", json!("b"))),
        ("proxy.scheduling.tolerations[].effect", tolerations,
            toleration("effect", json!("NoExecute")), toleration("effect", json!("NoSchedule"))),
        ("proxy.scheduling.tolerations[].tolerationSeconds", tolerations,
            toleration("tolerationSeconds", json!(1)), toleration("tolerationSeconds", json!(2))),
        ("proxy.trustedProxies", "/proxy/trustedProxies", json!(["10.0.0.0/8"]), json!(["11.0.0.0/8"])),
        ("proxy.drainPeriod", "/proxy/drainPeriod", json!("5s"), json!("6s")),
    ]
}

/// Whether a field and those above it say that a change restarts the proxies, by the path of the field.
fn promises(path: &str, schema: &Value, restarts: bool, found: &mut BTreeMap<String, bool>) {
    let description = schema["description"].as_str().unwrap_or_default();
    let words: Vec<&str> = description.split_whitespace().collect();
    let restarts = restarts || words.join(" ").contains(RESTARTS);
    let (list, fields) = match schema["items"]["properties"].as_object() {
        Some(fields) => ("[]", Some(fields)),
        None => ("", schema["properties"].as_object()),
    };
    let Some(fields) = fields else {
        found.insert(path.to_owned(), restarts);
        return;
    };
    for (name, field) in fields {
        let separator = if path.is_empty() { "" } else { "." };
        promises(&format!("{path}{list}{separator}{name}"), field, restarts, found);
    }
}

fn set(spec: &mut Value, pointer: &str, value: &Value) {
    let mut place = spec;
    for step in pointer.split('/').skip(1) {
        place = match step.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[step],
        };
    }
    *place = value.clone();
}

fn template(pointer: &str, value: &Value) -> Value {
    let mut changed = spec();
    set(&mut changed, pointer, value);
    built(changed)[&("Deployment".into(), "shop-proxy".into())]["spec"]["template"].clone()
}

#[test]
fn a_change_restarts_the_proxies_where_the_description_of_the_field_says_so() {
    let crd = serde_json::to_value(TLSFarm::crd()).expect("serializes");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut said = BTreeMap::new();
    promises("", schema, false, &mut said);
    let mut seen = BTreeMap::new();
    for (field, pointer, one, other) in changes() {
        assert_ne!(one, other, "{field}");
        seen.insert(
            field.to_owned(),
            template(pointer, &one) != template(pointer, &other),
        );
    }
    assert_eq!(said, seen);
}
