//! Converts EndpointSlices to addresses, by the same rules as kube-proxy.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

/// Label of an EndpointSlice with the name of its Service.
pub(super) const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Addresses by the Service's name and the port's name, which is empty when the port has none.
pub(super) type Table = HashMap<String, HashMap<String, Arc<[SocketAddr]>>>;

/// The relevant fields of an EndpointSlice.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Slice {
    service: String,
    ports: Vec<(String, u16)>,
    ready: Vec<IpAddr>,
    /// Endpoints that are terminating but still serving.
    draining: Vec<IpAddr>,
}

impl From<EndpointSlice> for Slice {
    fn from(slice: EndpointSlice) -> Self {
        let Some(service) = slice
            .metadata
            .labels
            .and_then(|mut labels| labels.remove(SERVICE_LABEL))
        else {
            return Self::default();
        };
        let ports = slice.ports.into_iter().flatten().filter_map(tcp_port).collect();
        let (mut ready, mut draining) = (Vec::new(), Vec::new());
        for endpoint in slice.endpoints {
            // All addresses of one endpoint are the same pod; consumers use the first. Names (FQDN) are not addresses.
            let Some(address) = endpoint
                .addresses
                .first()
                .and_then(|address| address.parse().ok())
            else {
                continue;
            };
            match Condition::of(&endpoint) {
                Condition::Ready => ready.push(address),
                Condition::Draining => draining.push(address),
                Condition::Unready => {}
            }
        }
        Self {
            service,
            ports,
            ready,
            draining,
        }
    }
}

/// Collects the addresses of all ports. Terminating endpoints are used only if no ready one is left.
pub(super) fn table<'a>(slices: impl Iterator<Item = &'a Slice>) -> Table {
    #[derive(Default)]
    struct Port {
        ready: Vec<SocketAddr>,
        draining: Vec<SocketAddr>,
    }
    let mut services: HashMap<String, HashMap<String, Port>> = HashMap::new();
    for slice in slices.filter(|slice| !slice.service.is_empty()) {
        let ports = services.entry(slice.service.clone()).or_default();
        for (name, number) in &slice.ports {
            let port = ports.entry(name.clone()).or_default();
            let socket = |address: &IpAddr| SocketAddr::new(*address, *number);
            port.ready.extend(slice.ready.iter().map(socket));
            port.draining.extend(slice.draining.iter().map(socket));
        }
    }
    let addresses = |port: Port| {
        let mut addresses = if port.ready.is_empty() {
            port.draining
        } else {
            port.ready
        };
        // An endpoint may be in two slices for a moment.
        addresses.sort_unstable();
        addresses.dedup();
        Arc::from(addresses)
    };
    services
        .into_iter()
        .map(|(service, ports)| {
            let ports = ports.into_iter().map(|(name, port)| (name, addresses(port)));
            (service, ports.collect())
        })
        .collect()
}

enum Condition {
    Ready,
    Draining,
    Unready,
}

impl Condition {
    fn of(endpoint: &Endpoint) -> Self {
        let conditions = endpoint.conditions.as_ref();
        // Unknown counts as ready; ready endpoints also serve.
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let serving = conditions
            .and_then(|conditions| conditions.serving)
            .unwrap_or(ready);
        let terminating = conditions
            .and_then(|conditions| conditions.terminating)
            .unwrap_or(false);
        match (ready, serving, terminating) {
            (true, _, false) => Self::Ready,
            (true, _, true) | (false, true, true) => Self::Draining,
            (false, _, _) => Self::Unready,
        }
    }
}

fn tcp_port(port: EndpointPort) -> Option<(String, u16)> {
    let tcp = port.protocol.is_none_or(|protocol| protocol == "TCP");
    let number = u16::try_from(port.port?).ok()?;
    tcp.then(|| (port.name.unwrap_or_default(), number))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(service: &str, endpoints: Value, ports: Value) -> Slice {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "x", "labels": {SERVICE_LABEL: service}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        }))
        .expect("valid");
        slice.into()
    }

    fn addresses(slices: &[Slice], service: &str, port: &str) -> Vec<String> {
        table(slices.iter())
            .get(service)
            .and_then(|ports| ports.get(port))
            .map(|addresses| addresses.iter().map(ToString::to_string).collect())
            .unwrap_or_default()
    }

    #[test]
    fn ready_and_unknown_endpoints_are_used() {
        let endpoints = json!([
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": false}},
            {"addresses": ["10.0.0.3"]},
            {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.5"], "conditions": {"ready": true, "serving": true, "terminating": true}},
        ]);
        let slices = [slice(
            "web",
            endpoints,
            json!([{"name": "http", "port": 8080, "protocol": "TCP"}]),
        )];
        assert_eq!(
            addresses(&slices, "web", "http"),
            ["10.0.0.1:8080", "10.0.0.3:8080"]
        );
    }

    #[test]
    fn terminating_endpoints_serve_when_no_other_is_left() {
        let endpoints = json!([
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": false, "terminating": true}},
            {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        ]);
        let ports = json!([{"name": "http", "port": 8080}]);
        let ending = slice("web", endpoints, ports.clone());
        assert_eq!(
            addresses(std::slice::from_ref(&ending), "web", "http"),
            ["10.0.0.4:8080"]
        );
        let ready = slice("web", json!([{"addresses": ["10.0.0.9"]}]), ports);
        assert_eq!(addresses(&[ending, ready], "web", "http"), ["10.0.0.9:8080"]);
    }

    #[test]
    fn ports_are_found_by_name_and_may_have_none() {
        let one = json!([{"addresses": ["10.0.0.1"]}]);
        let slices = [
            slice(
                "web",
                one.clone(),
                json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}]),
            ),
            slice("unnamed", one.clone(), json!([{"port": 3}])),
            slice("empty", one.clone(), json!([{"name": "", "port": 4}])),
            slice(
                "dns",
                one,
                json!([{"name": "dns", "port": 53, "protocol": "UDP"}]),
            ),
        ];
        assert_eq!(addresses(&slices, "web", "b"), ["10.0.0.1:2"]);
        assert_eq!(addresses(&slices, "unnamed", ""), ["10.0.0.1:3"]);
        assert_eq!(addresses(&slices, "empty", ""), ["10.0.0.1:4"]);
        assert!(addresses(&slices, "dns", "dns").is_empty());
        assert!(addresses(&slices, "web", "").is_empty());
    }

    #[test]
    fn slices_of_one_service_are_merged_and_repeats_dropped() {
        let ports = json!([{"name": "http", "port": 80}]);
        let slices = [
            slice(
                "web",
                json!([{"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.1"]}]),
                ports.clone(),
            ),
            slice(
                "web",
                json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["fd00::1"]}]),
                ports.clone(),
            ),
            slice("web", json!([{"addresses": ["backend.example.com"]}]), ports),
        ];
        assert_eq!(
            addresses(&slices, "web", "http"),
            ["10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80"]
        );
    }
}
