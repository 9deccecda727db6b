//! Proxies and caches on the loopback interface: real processes, real clients (OpenSSL, rustls, Redis's tools), a real
//! backend.

mod apache;
mod cache;
mod cache_client;
mod cache_hostile;
mod cache_peers;
mod cache_process;
mod certificates;
mod client;
mod command_line;
mod drain;
mod evil_cache;
mod files;
mod harness;
mod hostile;
mod limits;
mod logs;
mod metrics;
mod redis_server;
mod resumption;
mod session_cache;
mod session_cache_faults;
mod session_cache_hostile;
mod session_cache_puts;
mod session_offers;
