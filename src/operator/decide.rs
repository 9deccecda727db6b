//! Decisions about a farm, as pure functions.

pub(crate) mod backend;
pub(crate) mod peer_certificates;
pub(crate) mod rotation;
pub(crate) mod schedule;
pub(crate) mod status;
pub(crate) mod validate;
