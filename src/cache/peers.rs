//! Peers, the other caches of a farm: discovery, key ownership, and mutual TLS.

pub(crate) mod forward;
pub(crate) mod listener;
pub(crate) mod members;
pub(crate) mod metrics;
pub(crate) mod owner;
pub(crate) mod router;
pub(crate) mod tls;
