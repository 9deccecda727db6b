//! The process of a test's own operator.

use std::time::Duration;

use super::{Namespace, condition_of, process, run, wait_for};

/// Label of the operator's pod.
const OPERATOR: &str = "app.kubernetes.io/component=operator";

/// The process of the operator, once it is ready.
pub fn operator_process(namespace: &Namespace) -> u32 {
    wait_for("the operator to be ready", Duration::from_secs(150), || {
        let pods = namespace.list("pods", OPERATOR);
        let ready = pods.iter().find(|pod| {
            pod["metadata"]["deletionTimestamp"].is_null() && condition_of(pod, "Ready").0 == "True"
        })?;
        let name = ready["metadata"]["name"].as_str().expect("named");
        process("operator", &format!("HOSTNAME={name}"))
    })
}

/// Lets another operator start at once, rather than when the kubelet sees fit.
pub fn replace_operator(namespace: &Namespace) {
    namespace.kubectl(&[
        "delete",
        "pod",
        "--selector",
        OPERATOR,
        "--grace-period=0",
        "--force",
    ]);
}

/// Sends a signal, such as `KILL`, to a process.
pub fn signal(process: u32, signal: &str) {
    run("kill", &[&format!("-{signal}"), &process.to_string()], None)
        .unwrap_or_else(|error| panic!("{error}"));
}
