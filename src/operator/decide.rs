//! What is to be done about a farm, computed from arguments alone.

pub(crate) mod peer_certificates;
pub(crate) mod rotation;
pub(crate) mod schedule;
pub(crate) mod status;
pub(crate) mod validate;
