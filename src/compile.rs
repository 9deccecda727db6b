//! From a source of truth to what proxies and caches are told.

pub mod farm;
pub mod mounts;
