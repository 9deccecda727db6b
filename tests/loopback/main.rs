//! The proxy on the loopback interface: real processes, real TLS clients (OpenSSL and rustls), a real backend.

mod apache;
mod certificates;
mod client;
mod drain;
mod files;
mod harness;
mod hostile;
mod limits;
mod metrics;
mod resumption;
