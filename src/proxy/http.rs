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
mod route;
mod service;
mod state;
pub(crate) mod timer;

use std::net::SocketAddr;

pub use crate::proxy::metrics::http::HttpMetrics;
pub use connection::serve;
pub use forwarder::Forwarder;
pub use route::Routing;

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
    /// Name of the host in the configuration that the client's server name belongs to.
    pub host: String,
    /// Whether HTTP/2 was chosen (ALPN `h2`).
    pub http2: bool,
}

#[cfg(test)]
mod tests;
