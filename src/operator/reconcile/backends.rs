//! Resolves the backends of a farm to the port names that EndpointSlices use.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};

use crate::api::{BackendRef, TLSFarm};
use crate::compile::farm::ResolvedPorts;
use crate::operator::decide::backend::{BackendFault, port_name};
use crate::operator::error::ReconcileError;
use crate::operator::names::FarmId;

/// The distinct backends of the farm's routes.
pub(crate) fn backends(farm: &TLSFarm) -> BTreeSet<&BackendRef> {
    let hosts = farm.spec.hosts.iter();
    hosts
        .flat_map(|host| host.routes.iter().map(|route| &route.backend))
        .collect()
}

/// The backends of a farm.
pub(crate) struct ResolvedBackends {
    /// Port names of those that exist.
    pub(crate) ports: ResolvedPorts,
    /// What is wrong with the others.
    pub(crate) faults: Vec<BackendFault>,
}

/// Reads the Services of the farm's backends and resolves their ports. Fails if a request to the API server fails.
pub(crate) async fn resolve(
    client: &Client,
    id: &FarmId,
    farm: &TLSFarm,
) -> Result<ResolvedBackends, ReconcileError> {
    let api: Api<Service> = Api::namespaced(client.clone(), id.namespace());
    let mut services: BTreeMap<&str, Option<Service>> = BTreeMap::new();
    let mut resolved = ResolvedBackends {
        ports: ResolvedPorts::new(),
        faults: Vec::new(),
    };
    for backend in backends(farm) {
        let name = backend.service.as_str();
        if !services.contains_key(name) {
            let found = api.get_opt(name).await;
            let found = found.map_err(ReconcileError::api("get", format!("Service {name}")))?;
            services.insert(name, found);
        }
        let service = services.get(name).and_then(Option::as_ref);
        match port_name(backend, service) {
            Ok(port) => {
                resolved.ports.insert(backend.clone(), port);
            }
            Err(fault) => resolved.faults.push(fault),
        }
    }
    // Two ports of a Service that does not exist are one mistake, and adjacent, because the backends are sorted.
    resolved.faults.dedup();
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_backend_of_several_routes_is_looked_up_once() {
        let route = |path: &str, service: &str, port: u16| json!({"path": path, "backend": {"service": service, "port": port}});
        let host = |name: &str, routes: serde_json::Value| {
            json!({
                "name": name,
                "hostnames": [format!("{name}.example.com")],
                "tls": {"certificateRefs": [{"name": "tls"}]},
                "routes": routes,
            })
        };
        let farm: TLSFarm = serde_json::from_value(json!({
            "apiVersion": "tlsfarm.dev/v1alpha1",
            "kind": "TLSFarm",
            "metadata": {"name": "shop"},
            "spec": {"hosts": [
                host("a", json!([route("/", "web", 80), route("/x", "web", 81)])),
                host("b", json!([route("/", "web", 80), route("/y", "api", 80)])),
            ]},
        }))
        .expect("a farm");
        let named: Vec<_> = backends(&farm)
            .into_iter()
            .map(|backend| (backend.service.as_str(), backend.port))
            .collect();
        assert_eq!(named, [("api", 80), ("web", 80), ("web", 81)]);
    }
}
