//! TLS with clients: ClientHello, certificates, handshake and stream.

// Public for the fuzz targets.
pub mod certificates;
pub mod client_hello;
pub(crate) mod handshake;
pub(crate) mod stream;
