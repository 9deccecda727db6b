//! HTTP: reads requests from client connections and forwards them to backends.
//!
//! [`serve`] handles one connection. A strict guard (`guard`, `framing`) checks the bytes before hyper parses them;
//! `request` determines host and route; `forwarder` sends the request over a connection of `upstream`; `headers`
//! decides which header fields are forwarded. Everything on one connection runs on one thread, so state is shared
//! without locks.

pub(crate) mod body;
mod connection;
mod forwarder;
pub mod h1;
mod h2;
mod headers;
// Public for the fuzz targets.
pub mod refusal;
mod request;
pub(crate) mod route;
mod service;
mod state;
pub(crate) mod timer;

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::{ProtocolVersion, ServerConnection};

use super::host::Host;
pub use super::metrics::http::HttpMetrics;
pub use connection::serve;
pub use forwarder::Forwarder;

/// The client of a connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// The client's address.
    pub peer: SocketAddr,
    /// Result of the TLS handshake; None for plain HTTP.
    pub tls: Option<ClientTls>,
}

/// Result of a TLS handshake.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// The host selected by the client's server name, as of the handshake.
    pub host: Arc<Host>,
    /// The version of TLS.
    pub version: ProtocolVersion,
    /// Whether HTTP/2 was chosen (ALPN `h2`).
    pub http2: bool,
}

impl ClientTls {
    /// Returns the result of a completed handshake.
    pub(crate) fn of(connection: &ServerConnection, host: Arc<Host>) -> Self {
        Self {
            host,
            // Always known after the handshake; the fallback is a version that a TLS 1.3-only host does not accept.
            version: connection.protocol_version().unwrap_or(ProtocolVersion::TLSv1_2),
            http2: connection.alpn_protocol() == Some(b"h2"),
        }
    }
}

#[cfg(test)]
mod tests;
