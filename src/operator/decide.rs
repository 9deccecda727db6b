//! Decisions about a farm, as pure functions.

pub(crate) mod backend;
mod listing;
pub(crate) mod peer_certificates;
pub(crate) mod rotation;
pub(crate) mod schedule;
pub(crate) mod status;
pub(crate) mod validate;
