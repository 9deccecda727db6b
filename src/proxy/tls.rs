//! TLS with clients: the ClientHello, the certificates of a host, the handshake and the stream that comes of it.

// Public for the fuzz targets.
pub mod certificates;
pub mod client_hello;
pub(crate) mod handshake;
pub(crate) mod stream;
