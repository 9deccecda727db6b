//! Whom requests go to.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Where requests go.
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
    /// The port as the user gave it, for messages.
    pub port: u16,
    /// What EndpointSlices call the port: the name of the Service's port, empty when it has none. Absent when the
    /// Service or the port does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
}
