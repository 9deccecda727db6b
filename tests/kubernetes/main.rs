//! What the README promises, on a real Kubernetes.

mod bad_input;
mod cache_chart;
mod cached_farm;
mod harness;
mod install;
mod operator;
mod redis_server;
mod session_cache;
mod session_cache_certificates;
mod session_cache_redis;
mod traffic;
