//! Finds the port of a backend among the ports of its Service. Pure.

use k8s_openapi::api::core::v1::{Service, ServicePort};

use super::listing::first_of;
use crate::api::BackendRef;

/// Maximum number of ports listed in a message.
const MOST_NAMED: usize = 8;

/// Why a backend has no endpoints to forward to.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum BackendFault {
    /// The Service does not exist.
    #[error("Service {service} not found")]
    NoService {
        /// Name of the Service.
        service: String,
    },
    /// The Service is an alias of a DNS name and has no endpoints.
    #[error("Service {service} is of type ExternalName, which has no endpoints")]
    ExternalName {
        /// Name of the Service.
        service: String,
    },
    /// The Service has other ports.
    #[error("Service {service} has no TCP port {port}; {}", listed(.available))]
    NoPort {
        /// Name of the Service.
        service: String,
        /// The port in the spec of the farm.
        port: u16,
        /// Its TCP ports, with their names.
        available: Vec<String>,
    },
}

/// Name of the backend's port in EndpointSlices, empty for an unnamed port.
pub(crate) fn port_name(backend: &BackendRef, service: Option<&Service>) -> Result<String, BackendFault> {
    let Some(service) = service else {
        return Err(BackendFault::NoService {
            service: backend.service.clone(),
        });
    };
    let spec = service.spec.as_ref();
    if spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
        return Err(BackendFault::ExternalName {
            service: backend.service.clone(),
        });
    }
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let tcp = || {
        let is_tcp = |port: &&ServicePort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        ports.iter().filter(is_tcp)
    };
    match tcp().find(|port| port.port == i32::from(backend.port)) {
        Some(port) => Ok(port.name.clone().unwrap_or_default()),
        None => Err(BackendFault::NoPort {
            service: backend.service.clone(),
            port: backend.port,
            available: tcp()
                .map(|port| match &port.name {
                    Some(name) => format!("{} ({name})", port.port),
                    None => port.port.to_string(),
                })
                .collect(),
        }),
    }
}

fn listed(ports: &[String]) -> String {
    match ports {
        [] => "it has none".into(),
        _ => format!("it has {}", first_of(ports, MOST_NAMED, ", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resolved(ports: Value, port: u16) -> Result<String, String> {
        let service: Service = serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"ports": ports},
        }))
        .expect("a Service");
        let backend = BackendRef {
            service: "web".into(),
            port,
        };
        port_name(&backend, Some(&service)).map_err(|fault| fault.to_string())
    }

    #[test]
    fn ports_are_found_by_number_among_tcp_ports() {
        let ports = json!([
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "http", "port": 80, "protocol": "TCP"},
            {"port": 81},
        ]);
        assert_eq!(resolved(ports.clone(), 80), Ok("http".into()));
        assert_eq!(resolved(ports.clone(), 81), Ok(String::new()));
        let other = resolved(ports.clone(), 443).expect_err("there is none");
        assert_eq!(other, "Service web has no TCP port 443; it has 80 (http), 81");
        let udp = resolved(ports, 53).expect_err("not TCP");
        assert_eq!(udp, "Service web has no TCP port 53; it has 80 (http), 81");
    }

    #[test]
    fn an_external_name_has_no_endpoints_whatever_its_ports() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {"type": "ExternalName", "externalName": "example.com", "ports": [{"port": 80}]},
        }))
        .expect("a Service");
        let backend = BackendRef {
            service: "web".into(),
            port: 80,
        };
        let fault = port_name(&backend, Some(&service))
            .expect_err("no endpoints")
            .to_string();
        assert!(fault.contains("ExternalName"), "{fault}");
    }

    #[test]
    fn a_missing_service_and_a_service_without_ports_are_told_apart() {
        let backend = BackendRef {
            service: "late".into(),
            port: 80,
        };
        let missing = port_name(&backend, None).expect_err("there is none");
        assert_eq!(missing.to_string(), "Service late not found");
        let none = resolved(json!([]), 80).expect_err("there is none");
        assert_eq!(none, "Service web has no TCP port 80; it has none");
    }

    #[test]
    fn a_message_lists_eight_ports_and_counts_the_rest() {
        let ports = |count: u16| (1..=count).map(|port| json!({"port": port})).collect::<Value>();
        let eight = resolved(ports(8), 443).expect_err("there is none");
        assert!(eight.ends_with("it has 1, 2, 3, 4, 5, 6, 7, 8"), "{eight}");
        let ten = resolved(ports(10), 443).expect_err("there is none");
        assert!(ten.ends_with("7, 8, and 2 more"), "{ten}");
    }
}
