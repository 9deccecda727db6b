//! The other caches of a farm: which there are, who owns a key, and TLS between them.

pub(crate) mod forward;
pub(crate) mod listener;
pub(crate) mod members;
pub(crate) mod metrics;
pub(crate) mod owner;
pub(crate) mod router;
pub(crate) mod tls;
