//! The session cache: sidecars that speak Redis's protocol and share their entries.
//!
//! ```text
//! proxy ──unix──► connection ─► router ─► shard (own keys)
//!                                  └────► client ──TLS──► connection of the owner ─► its shard
//! ```
//!
//! An entry has one owner, found by rendezvous hashing over the ready caches, and lives in its shard only. A cache that
//! comes or goes moves some entries' owners, and a moved entry is a miss: a full handshake, never an error.

mod command;
pub mod shard;
mod breaker;
mod client;
mod members;
mod owner;
mod peer_listener;
mod peer_metrics;
mod peer_tls;
mod router;
pub mod wire;

pub use self::breaker::BreakerState;
pub use self::client::{CacheError, Client, ClientMetrics};
