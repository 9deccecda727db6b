//! What the README promises, on a real Kubernetes.

#[path = "kubernetes/bad_input.rs"]
mod bad_input;
#[path = "kubernetes/harness.rs"]
mod harness;
#[path = "kubernetes/install.rs"]
mod install;
#[path = "kubernetes/operator.rs"]
mod operator;
#[path = "kubernetes/traffic.rs"]
mod traffic;
