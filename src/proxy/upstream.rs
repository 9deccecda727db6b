//! Backends: their endpoints, the pools of connections to them, and retries.

pub(crate) mod endpoints;
pub(crate) mod request_body;
pub(crate) mod retry;
