//! HTTP: from the bytes of a client's connection to a backend and back.
//!
//! [`serve`] drives one connection. Bytes pass a strict guard (`guard`, `framing`) before hyper parses them; `request`
//! finds out whom a request is for; `forwarder` sends it on through a connection of `upstream`; `headers` says which
//! fields cross the proxy. Everything on one connection runs on one thread, so state is shared without locks.

mod authority;
mod body;
mod connection;
mod forwarder;
// Public for the fuzz targets.
pub mod framing;
mod guard;
mod headers;
mod metrics;
mod request;
mod retry;
mod routing;
mod state;
mod timer;
mod tunnel;
mod upstream;

use std::net::SocketAddr;

pub use connection::serve;
pub use forwarder::Forwarder;
pub use metrics::HttpMetrics;
pub use routing::Routing;

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
