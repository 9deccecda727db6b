//! Compiles a farm's spec into the configuration files of proxies and caches.

pub mod farm;
pub mod mounts;
