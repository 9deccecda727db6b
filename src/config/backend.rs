//! Backends of routes.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Backend that requests are forwarded to.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Backend {
    /// Fixed addresses, for a proxy outside a cluster.
    Addresses(Vec<SocketAddr>),
    /// The ready endpoints of a Service in the proxy's namespace.
    Service(ServicePort),
}

/// One port of a Service.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Name of the Service.
    pub name: String,
    /// Port number from the spec, for messages.
    pub port: u16,
    /// Name of the port in EndpointSlices: the name of the Service's port, empty if it has none. Absent if the Service
    /// or the port does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
}
