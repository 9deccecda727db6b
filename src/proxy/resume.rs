//! Session resumption: tickets, the session cache, and per-client budgets of stored sessions.

pub(crate) mod session_cache;
pub(crate) mod store_budget;
pub(crate) mod tickets;
