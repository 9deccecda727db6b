//! What the README promises, on a real Kubernetes.

mod bad_input;
mod bad_ring;
mod cache_chart;
mod cached_farm;
mod due;
mod first_farm;
mod harness;
mod id_traffic;
mod install;
mod node_cut;
mod operator;
mod redis_server;
mod session_cache;
mod session_cache_certificates;
mod session_cache_redis;
mod traffic;
