//! Builds the desired objects of a farm from its spec and the Services of its backends. Pure.
//!
//! The pod template contains only settings that require a restart. Certificates, routes and the ring are mounted files
//! that proxies reload.

mod access;
mod cache;
mod config_map;
mod containers;
mod deployment;
mod network;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt;
use serde::Serialize;
use serde_json::Value;

use super::cluster::kind::Kind;
use super::names::FarmId;
use crate::api::TLSFarm;
use crate::compile::farm::{self, ResolvedPorts};

pub use containers::LogSettings;
pub(super) use deployment::{CONTAINER, PodDefaults};

/// The desired objects of a farm, except the Secrets.
#[derive(Clone, Debug)]
pub(super) struct Desired {
    service_account: ServiceAccount,
    role: Role,
    role_binding: RoleBinding,
    config_map: ConfigMap,
    service: Service,
    metrics_service: Service,
    /// Of sidecars only.
    cache_service: Option<Service>,
    deployment: Deployment,
    disruption_budget: PodDisruptionBudget,
    /// Fingerprint that proxies report once they have loaded the configuration.
    pub(super) config_fingerprint: String,
}

/// One object to apply.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) body: Value,
}

/// Builds the desired objects of `farm`, except the Secrets.
pub(super) fn build(farm: &TLSFarm, id: &FarmId, ports: &ResolvedPorts, defaults: &PodDefaults) -> Desired {
    let name = format!("{}/{}", id.namespace(), id.name());
    let file = config_map::file(&farm::proxy_config(&name, &farm.spec, ports));
    let cache_config = farm::cache_config(&farm.spec, &id.cache_name(), &id.cache_server_name());
    let cache_file = cache_config.map(|config| config_map::file(&config));
    Desired {
        service_account: access::service_account(id),
        role: access::role(id),
        role_binding: access::role_binding(id),
        service: network::service(farm, id),
        metrics_service: network::metrics_service(farm, id),
        cache_service: cache::service(farm, id),
        deployment: deployment::deployment(farm, id, defaults, cache_file.as_deref()),
        disruption_budget: deployment::disruption_budget(id),
        config_fingerprint: crate::config::fingerprint(file.as_bytes()),
        config_map: config_map::config_map(id, file, cache_file),
    }
}

impl Desired {
    /// The objects in the order in which to apply them.
    pub(super) fn objects(&self) -> Vec<Object> {
        let mut objects = vec![
            object(Kind::ServiceAccount, &self.service_account),
            object(Kind::Role, &self.role),
            object(Kind::RoleBinding, &self.role_binding),
            object(Kind::ConfigMap, &self.config_map),
            object(Kind::Service, &self.service),
            object(Kind::Service, &self.metrics_service),
        ];
        objects.extend(
            self.cache_service
                .as_ref()
                .map(|service| object(Kind::Service, service)),
        );
        objects.push(object(Kind::Deployment, &self.deployment));
        objects.push(object(Kind::PodDisruptionBudget, &self.disruption_budget));
        objects
    }
}

fn object<K: kube::Resource + Serialize>(kind: Kind, object: &K) -> Object {
    Object {
        kind,
        name: object.name_any(),
        body: serde_json::to_value(object).expect("objects of the API have string keys only"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    mod restarts;

    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::api::{BackendRef, LogFormat};
    use crate::operator::names::id;

    pub(super) fn farm(spec: Value) -> TLSFarm {
        serde_json::from_value(json!({
            "apiVersion": "tlsfarm.dev/v1alpha1",
            "kind": "TLSFarm",
            "metadata": {"name": "shop", "namespace": "web", "uid": "uid-of-shop"},
            "spec": spec,
        }))
        .expect("a farm")
    }

    pub(in crate::operator) fn spec() -> Value {
        json!({
            "hosts": [{
                "name": "shop",
                "hostnames": ["shop.example.com"],
                "tls": {"certificateRefs": [{"name": "shop-tls"}]},
                "routes": [{"path": "/", "backend": {"service": "web", "port": 8080}}],
            }],
        })
    }

    pub(in crate::operator) fn desired(spec: Value) -> Desired {
        let defaults = PodDefaults {
            image: "tlsfarm:1".into(),
            pull_policy: "IfNotPresent".into(),
            log: LogSettings {
                filter: "info".into(),
                format: LogFormat::Json,
            },
        };
        let ports = ResolvedPorts::from([(
            BackendRef {
                service: "web".into(),
                port: 8080,
            },
            "http".into(),
        )]);
        build(&farm(spec), &id("shop"), &ports, &defaults)
    }

    pub(super) fn built(spec: Value) -> BTreeMap<(String, String), Value> {
        desired(spec)
            .objects()
            .into_iter()
            .map(|object| ((object.kind.to_string(), object.name), object.body))
            .collect()
    }

    #[test]
    fn every_object_has_its_name_labels_and_owner_reference() {
        let mut with_sidecars = spec();
        with_sidecars["resumption"] = json!({"sessionCache": {"mode": "Sidecar"}});
        let objects = built(with_sidecars);
        assert_eq!(objects.len(), 9);
        for ((kind, name), object) in objects {
            assert_eq!(object["kind"], json!(kind));
            assert_eq!(object["metadata"]["name"], json!(name));
            assert_eq!(object["metadata"]["namespace"], "web");
            assert_eq!(object["metadata"]["labels"]["tlsfarm.dev/farm"], "shop");
            let owner = &object["metadata"]["ownerReferences"][0];
            assert_eq!(
                (&owner["uid"], &owner["controller"]),
                (&json!("uid-of-shop"), &json!(true)),
                "{kind} {name}"
            );
        }
    }

    #[test]
    fn reloadable_settings_do_not_restart_proxies() {
        let template = |spec: Value| {
            built(spec)[&("Deployment".into(), "shop-proxy".into())]["spec"]["template"].clone()
        };
        let before = template(spec());
        let changes = [
            ("/hosts/0/hostnames", json!(["other.example.com"])),
            ("/hosts/0/routes/0/path", json!("/a")),
            (
                "/hosts/0/routes/0/backend",
                json!({"service": "other", "port": 1}),
            ),
            ("/hosts/0/tls/minVersion", json!("TLS13")),
            ("/http", json!({"mode": "Serve"})),
            ("/resumption", json!({"tickets": {"rotationInterval": "5m"}})),
            (
                "/resumption",
                json!({"sessionCache": {"mode": "Redis", "redis": {"address": "redis.web.svc:6379"}}}),
            ),
            ("/service", json!({"type": "ClusterIP"})),
            ("/replicas", json!(7)),
        ];
        for (pointer, value) in changes {
            let mut changed = spec();
            let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
            changed.pointer_mut(parent).expect("exists")[field] = value;
            assert_eq!(template(changed), before, "{pointer} restarts the proxies");
        }
        for (field, value) in [
            ("proxy", json!({"image": "other:2"})),
            ("http", json!({"mode": "Disabled"})),
        ] {
            let mut changed = spec();
            changed[field] = value;
            assert_ne!(template(changed), before, "{field} needs a restart");
        }
    }
}
