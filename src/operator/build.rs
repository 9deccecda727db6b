//! What a farm's objects should be, from its spec and the Services of its backends. Pure.
//!
//! The pod template holds only what needs a restart. Certificates, routes and the ring change in mounted files.

mod access;
mod config;
mod deployment;
mod network;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde::Serialize;
use serde_json::Value;

use super::kind::Kind;
use super::names::FarmId;
use crate::api::{Backend, TLSFarm};

pub(super) use config::{CONFIG_KEY, RING_KEY};
pub(super) use deployment::CONTAINER;

/// The name of the port in EndpointSlices for every backend of a spec; none where the Service or its port is missing.
pub(super) type ResolvedPorts = BTreeMap<Backend, Option<String>>;

/// What the operator's command line says about proxies.
#[derive(Clone, Debug)]
pub(super) struct ProxyImage {
    /// Image of the proxies whose farm names none.
    pub(super) image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub(super) pull_policy: String,
}

/// Everything that a farm consists of, but its ring.
#[derive(Clone, Debug)]
pub(super) struct Desired {
    service_account: ServiceAccount,
    role: Role,
    role_binding: RoleBinding,
    config_map: ConfigMap,
    service: Service,
    metrics_service: Service,
    deployment: Deployment,
    disruption_budget: PodDisruptionBudget,
    /// What proxies report once they run the configuration.
    pub(super) config_fingerprint: String,
}

/// One object as it should be applied.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) body: Value,
}

/// Builds everything that `farm` consists of, but its ring.
pub(super) fn build(farm: &TLSFarm, id: &FarmId, ports: &ResolvedPorts, image: &ProxyImage) -> Desired {
    let file = config::file(&config::compile(farm, id, ports));
    Desired {
        service_account: access::service_account(id),
        role: access::role(id),
        role_binding: access::role_binding(id),
        service: network::service(farm, id),
        metrics_service: network::metrics_service(id),
        deployment: deployment::deployment(farm, id, image),
        disruption_budget: deployment::disruption_budget(id),
        config_fingerprint: crate::config::fingerprint(file.as_bytes()),
        config_map: config::config_map(id, file),
    }
}

/// The names of everything that a farm consists of, but its ring. They do not depend on the spec.
pub(super) fn object_names(id: &FarmId) -> [(Kind, String); 8] {
    [
        (Kind::ServiceAccount, id.proxy_name()),
        (Kind::Role, id.proxy_name()),
        (Kind::RoleBinding, id.proxy_name()),
        (Kind::ConfigMap, id.proxy_name()),
        (Kind::Service, id.proxy_name()),
        (Kind::Service, id.metrics_name()),
        (Kind::Deployment, id.proxy_name()),
        (Kind::PodDisruptionBudget, id.proxy_name()),
    ]
}

impl Desired {
    /// The objects in the order in which they should be applied.
    pub(super) fn objects(&self, id: &FarmId) -> Vec<Object> {
        let bodies = [
            body(&self.service_account),
            body(&self.role),
            body(&self.role_binding),
            body(&self.config_map),
            body(&self.service),
            body(&self.metrics_service),
            body(&self.deployment),
            body(&self.disruption_budget),
        ];
        object_names(id)
            .into_iter()
            .zip(bodies)
            .map(|((kind, name), body)| Object { kind, name, body })
            .collect()
    }
}

fn body(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("objects of the API have string keys only")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
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

    pub(super) fn spec() -> Value {
        json!({
            "hosts": [{
                "name": "shop",
                "hostnames": ["shop.example.com"],
                "tls": {"certificateRefs": [{"name": "shop-tls"}]},
                "routes": [{"path": "/", "backend": {"service": "web", "port": 8080}}],
            }],
        })
    }

    pub(super) fn built(spec: Value) -> BTreeMap<(String, String), Value> {
        let image = ProxyImage {
            image: "tlsfarm:1".into(),
            pull_policy: "IfNotPresent".into(),
        };
        let ports = ResolvedPorts::from([(
            Backend {
                service: "web".into(),
                port: 8080,
            },
            Some("http".into()),
        )]);
        build(&farm(spec), &id("shop"), &ports, &image)
            .objects(&id("shop"))
            .into_iter()
            .map(|object| ((object.kind.to_string(), object.name), object.body))
            .collect()
    }

    #[test]
    fn every_object_is_named_labelled_and_owned_so_that_deletion_leaves_nothing() {
        let objects = built(spec());
        assert_eq!(objects.len(), object_names(&id("shop")).len());
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
    fn objects_are_applied_in_the_order_of_their_kinds() {
        let kinds: Vec<_> = object_names(&id("shop"))
            .into_iter()
            .map(|(kind, _)| kind)
            .collect();
        assert!(kinds.is_sorted());
    }

    #[test]
    fn what_proxies_reload_never_restarts_them() {
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
