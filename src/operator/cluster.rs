//! Reads and writes a farm's objects through the API server.

pub(crate) mod apply;
pub(crate) mod events;
pub(crate) mod kind;
pub(crate) mod ring_secret;
pub(crate) mod secret;
