//! Session resumption: tickets, sessions in the session cache, and how many sessions a client may have stored there.

pub(crate) mod session_cache;
pub(crate) mod store_budget;
pub(crate) mod tickets;
