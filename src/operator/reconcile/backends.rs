//! Resolves the backends of a farm to the port names that EndpointSlices use.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};

use crate::api::{BackendRef, TLSFarm};
use crate::compile::farm::ResolvedPorts;
use crate::operator::error::ReconcileError;
use crate::operator::names::FarmId;

/// The distinct backends of the farm's routes.
pub(crate) fn backends(farm: &TLSFarm) -> BTreeSet<&BackendRef> {
    let hosts = farm.spec.hosts.iter();
    hosts
        .flat_map(|host| host.routes.iter().map(|route| &route.backend))
        .collect()
}

/// Reads the Services of the farm's backends and resolves their ports. Fails if a request to the API server fails.
pub(crate) async fn resolve(
    client: &Client,
    id: &FarmId,
    farm: &TLSFarm,
) -> Result<ResolvedPorts, ReconcileError> {
    let api: Api<Service> = Api::namespaced(client.clone(), id.namespace());
    let mut services: BTreeMap<&str, Option<Service>> = BTreeMap::new();
    let mut resolved = ResolvedPorts::new();
    for backend in backends(farm) {
        let name = backend.service.as_str();
        if !services.contains_key(name) {
            let found = api.get_opt(name).await;
            let found = found.map_err(ReconcileError::api("get", format!("Service {name}")))?;
            services.insert(name, found);
        }
        let service = services.get(name).and_then(Option::as_ref);
        resolved.insert(
            backend.clone(),
            service.and_then(|service| port_name(service, backend.port)),
        );
    }
    Ok(resolved)
}

/// Name of a Service's TCP port, empty for an unnamed port; None if the port does not exist.
fn port_name(service: &Service, number: u16) -> Option<String> {
    let ports = service.spec.as_ref()?.ports.as_deref().unwrap_or_default();
    let port = ports.iter().find(|port| {
        port.port == i32::from(number) && port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    })?;
    Some(port.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_found_by_number_among_tcp_ports() {
        let service: Service = serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "web", "port": 80, "protocol": "TCP"},
                {"port": 81},
            ]},
        }))
        .expect("a Service");
        assert_eq!(port_name(&service, 80), Some("web".into()));
        assert_eq!(port_name(&service, 81), Some(String::new()));
        assert_eq!(port_name(&service, 53), None);
        assert_eq!(port_name(&service, 443), None);
    }

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
