//! HTTP: from the bytes of a client's connection to a backend and back.
//!
//! [`serve`] drives one connection. Bytes pass a strict guard (`guard`, `framing`) before hyper parses them; `request`
//! finds out whom a request is for; `forwarder` sends it on through a connection of `upstream`; `headers` says which
//! fields cross the proxy. Everything on one connection runs on one thread, so state is shared without locks.

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

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// The client's address.
    pub peer: SocketAddr,
    /// What the TLS handshake agreed on; none for plain HTTP.
    pub tls: Option<ClientTls>,
}

/// What a TLS handshake agreed on.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// The host that the client's server name belongs to, as it was at the time.
    pub host: Arc<Host>,
    /// The version of TLS.
    pub version: ProtocolVersion,
    /// Whether HTTP/2 was chosen (ALPN `h2`).
    pub http2: bool,
}

impl ClientTls {
    /// What a handshake agreed on that is complete.
    pub(crate) fn of(connection: &ServerConnection, host: Arc<Host>) -> Self {
        Self {
            host,
            // There is one once the handshake is complete; the strictest host accepts no other.
            version: connection.protocol_version().unwrap_or(ProtocolVersion::TLSv1_2),
            http2: connection.alpn_protocol() == Some(b"h2"),
        }
    }
}

#[cfg(test)]
mod tests;
