//! Interprets the farm's pods. Pure.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus};

use crate::api::REFRESH_ANNOTATION;
use crate::operator::build::CONTAINER;
use crate::operator::names::FarmId;

/// One proxy: a pod of the farm that is not terminating.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ProxyPod {
    pub(crate) name: String,
    pub(crate) uid: String,
    /// IP address of the pod.
    pub(crate) address: Option<IpAddr>,
    /// IP addresses of the pod, of both families.
    pub(crate) addresses: Vec<IpAddr>,
    /// IP addresses of its node.
    pub(crate) node_addresses: Vec<IpAddr>,
    /// Time at which it became ready; None while it is not ready.
    pub(crate) ready_since: Option<Timestamp>,
    /// Whether it serves clients, or may soon do so with the ring that it has already mounted.
    pub(crate) may_serve: bool,
    /// What prevents it from running, as reported by the scheduler or the kubelet.
    pub(crate) obstacle: Option<String>,
    /// Value of the refresh annotation.
    pub(crate) refreshed_for: Option<String>,
}

impl ProxyPod {
    pub(crate) fn is_ready(&self) -> bool {
        self.ready_since.is_some()
    }
}

/// Returns the proxies among the pods with the farm's labels, sorted by name.
///
/// Anyone can set labels, so a pod counts only if a ReplicaSet of the farm's Deployment controls it, and if it is not
/// older than the farm: an older pod belonged to an earlier farm of the same name.
pub(crate) fn proxies(pods: &[Pod], id: &FarmId, farm_created: Option<Timestamp>) -> Vec<ProxyPod> {
    let mut proxies: Vec<ProxyPod> = pods
        .iter()
        .filter(|pod| is_of_farm(pod, id, farm_created))
        .filter_map(proxy)
        .collect();
    proxies.sort_by(|a, b| a.name.cmp(&b.name));
    proxies
}

fn is_of_farm(pod: &Pod, id: &FarmId, farm_created: Option<Timestamp>) -> bool {
    let prefix = format!("{}-", id.proxy_name());
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let controlled = owners.iter().any(|owner| {
        owner.controller == Some(true) && owner.kind == "ReplicaSet" && owner.name.starts_with(&prefix)
    });
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    controlled && created >= farm_created
}

fn proxy(pod: &Pod) -> Option<ProxyPod> {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    if pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Failed" | "Succeeded")) {
        return None;
    }
    let ready = status
        .and_then(|status| status.conditions.as_ref())
        .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "Ready"))
        .filter(|condition| condition.status == "True");
    let ready_since = ready.map(|condition| {
        condition
            .last_transition_time
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
    });
    Some(ProxyPod {
        name: pod.metadata.name.clone()?,
        uid: pod.metadata.uid.clone()?,
        address: status
            .and_then(|status| status.pod_ip.as_deref())
            .and_then(|address| address.parse().ok()),
        addresses: status.map(pod_addresses).unwrap_or_default(),
        node_addresses: status.map(node_addresses).unwrap_or_default(),
        ready_since,
        may_serve: ready_since.is_some() || may_become_ready(pod),
        obstacle: obstacle(pod),
        refreshed_for: pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(REFRESH_ANNOTATION).cloned()),
    })
}

fn node_addresses(status: &PodStatus) -> Vec<IpAddr> {
    let of_both_families = status.host_ips.iter().flatten().map(|host| host.ip.as_str());
    parsed(of_both_families.chain(status.host_ip.as_deref()))
}

fn pod_addresses(status: &PodStatus) -> Vec<IpAddr> {
    let of_both_families = status.pod_ips.iter().flatten().map(|pod| pod.ip.as_str());
    parsed(of_both_families.chain(status.pod_ip.as_deref()))
}

fn parsed<'a>(addresses: impl Iterator<Item = &'a str>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = addresses.filter_map(|address| address.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Whether the pod may become ready with the files that it has mounted already.
///
/// A container that crashed or whose image is missing does not count: its files are refreshed before it is restarted.
fn may_become_ready(pod: &Pod) -> bool {
    if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
        return false;
    }
    let Some(container) = container(pod) else {
        // Scheduled, but the kubelet has not reported a status yet.
        return true;
    };
    match &container.state {
        Some(ContainerState { running: Some(_), .. }) => true,
        Some(ContainerState {
            waiting: Some(waiting),
            ..
        }) => container.restart_count == 0 && waiting.reason.as_deref().is_some_and(is_starting),
        _ => false,
    }
}

/// What the scheduler or the kubelet reports about a pod that does not run. The text must be stable, so the kubelet's
/// messages, which contain counters, are omitted.
fn obstacle(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    let unscheduled = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        return condition.message.clone().or_else(|| condition.reason.clone());
    }
    let container = container(pod)?;
    let reason = container.state.as_ref()?.waiting.as_ref()?.reason.as_deref()?;
    if is_starting(reason) {
        return None;
    }
    let ended = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    Some(match (reason, ended) {
        // The kubelet alternates between these two reasons.
        ("ErrImagePull" | "ImagePullBackOff", _) => format!("failed to pull image {}", container.image),
        ("InvalidImageName" | "ErrImageNeverPull", _) => format!("{reason} {}", container.image),
        (_, Some(ended)) => match ended.reason.as_deref() {
            Some("Error") | None => format!("{reason}, exit code {}", ended.exit_code),
            Some(end) => format!("{reason}, {end}"),
        },
        (_, None) => reason.to_owned(),
    })
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_deref()?;
    statuses.iter().find(|status| status.name == CONTAINER)
}

fn is_starting(reason: &str) -> bool {
    matches!(reason, "ContainerCreating" | "PodInitializing")
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::operator::names::id;

    pub(in crate::operator) fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "shop-proxy-6b5-x",
                "uid": "pod-1",
                "creationTimestamp": "2026-01-01T00:01:00Z",
                "ownerReferences": [{
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": "shop-proxy-6b5",
                    "uid": "rs-1",
                    "controller": true,
                }],
            },
            "spec": {"containers": [], "nodeName": "node1"},
            "status": {
                "phase": "Running",
                "podIP": "fd00::7",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:02:00Z"}],
                "containerStatuses": [waiting("ContainerCreating", 0)],
            },
        });
        change(&mut pod);
        serde_json::from_value(pod).expect("a pod")
    }

    pub(in crate::operator) fn waiting(reason: &str, restarts: i32) -> Value {
        json!({
            "name": "proxy", "ready": false, "restartCount": restarts, "image": "", "imageID": "",
            "state": {"waiting": {"reason": reason}},
        })
    }

    fn seen(pod: Pod) -> Vec<ProxyPod> {
        proxies(&[pod], &id("shop"), "2026-01-01T00:00:00Z".parse().ok())
    }

    #[test]
    fn addresses_of_both_families_are_known_of_a_pod_and_its_node() {
        let proxies = seen(pod(|pod| {
            pod["status"]["podIPs"] = json!([{"ip": "fd00::7"}, {"ip": "10.244.1.7"}]);
            pod["status"]["hostIP"] = json!("192.168.7.2");
            pod["status"]["hostIPs"] = json!([{"ip": "192.168.7.2"}, {"ip": "fd01::2"}]);
        }));
        let parsed = |text: [&str; 2]| text.map(|address| address.parse::<IpAddr>().expect("an address"));
        assert_eq!(proxies[0].addresses, parsed(["10.244.1.7", "fd00::7"]));
        assert_eq!(proxies[0].node_addresses, parsed(["192.168.7.2", "fd01::2"]));
    }

    #[test]
    fn a_ready_pod_is_a_proxy() {
        let proxies = seen(pod(|_| {}));
        assert!(proxies[0].is_ready() && proxies[0].may_serve);
        assert_eq!(proxies[0].address, "fd00::7".parse().ok());
    }

    #[test]
    fn terminating_and_foreign_pods_are_not_proxies() {
        let none = [
            pod(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:03:00Z")),
            pod(|pod| pod["status"]["phase"] = json!("Failed")),
            pod(|pod| pod["metadata"]["ownerReferences"] = json!([])),
            pod(|pod| pod["metadata"]["ownerReferences"][0]["name"] = json!("other-proxy-6b5")),
            pod(|pod| pod["metadata"]["ownerReferences"][0]["name"] = json!("shop-proxy2-6b5")),
            pod(|pod| pod["metadata"]["ownerReferences"][0]["kind"] = json!("StatefulSet")),
            pod(|pod| pod["metadata"]["ownerReferences"][0]["controller"] = json!(false)),
            pod(|pod| pod["metadata"]["creationTimestamp"] = json!("2025-12-31T23:59:59Z")),
            pod(|pod| pod["metadata"]["creationTimestamp"] = Value::Null),
            pod(|pod| pod["status"]["phase"] = json!("Succeeded")),
        ];
        for pod in none {
            assert_eq!(seen(pod.clone()), [], "{pod:?}");
        }
    }

    #[test]
    fn a_pod_created_in_the_same_second_as_the_farm_belongs_to_it() {
        let same_second = pod(|pod| pod["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z"));
        assert_eq!(seen(same_second).len(), 1);
    }

    #[test]
    fn proxies_are_sorted_by_name_so_that_messages_do_not_change() {
        let named = |name: &str| pod(|pod| pod["metadata"]["name"] = json!(name));
        let proxies = proxies(&[named("b"), named("c"), named("a")], &id("shop"), None);
        let names: Vec<_> = proxies.iter().map(|proxy| proxy.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn a_pod_is_ready_while_its_ready_condition_is_true_and_since_that_changed() {
        let conditions = |conditions: Value| {
            let proxies = seen(pod(|pod| pod["status"]["conditions"] = conditions));
            proxies[0].ready_since
        };
        let since = "2026-01-01T00:02:00Z";
        let condition =
            |type_: &str, status: &str| json!({"type": type_, "status": status, "lastTransitionTime": since});
        assert_eq!(
            conditions(json!([condition("Ready", "True")])),
            since.parse().ok()
        );
        let beside = json!([condition("ContainersReady", "True"), condition("Ready", "False")]);
        assert_eq!(conditions(beside), None);
        assert_eq!(conditions(json!([condition("Ready", "Unknown")])), None);
        assert_eq!(conditions(Value::Null), None);
        let without_a_time = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(conditions(without_a_time), Some(Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn a_ready_pod_may_serve_whatever_its_container_statuses_say() {
        let crashed = pod(|pod| pod["status"]["containerStatuses"] = json!([waiting("CrashLoopBackOff", 1)]));
        assert!(
            seen(crashed)[0].may_serve,
            "the kubelet's words are not all of one moment"
        );
    }

    #[test]
    fn the_refresh_annotation_is_read_from_the_pod() {
        assert_eq!(seen(pod(|_| ()))[0].refreshed_for, None);
        let annotated =
            pod(|pod| pod["metadata"]["annotations"] = json!({REFRESH_ANNOTATION: "ring=7", "other": "x"}));
        assert_eq!(seen(annotated)[0].refreshed_for.as_deref(), Some("ring=7"));
    }

    #[test]
    fn starting_pods_are_waited_for_and_failing_ones_are_not() {
        let may_serve = |change: &dyn Fn(&mut Value)| {
            let proxies = seen(pod(|pod| {
                pod["status"]["conditions"] = json!([]);
                change(pod);
            }));
            assert!(!proxies[0].is_ready());
            proxies[0].may_serve
        };
        let container =
            |status: Value| move |pod: &mut Value| pod["status"]["containerStatuses"] = json!([status]);
        let running = json!({
            "name": "proxy", "ready": false, "restartCount": 3, "image": "", "imageID": "",
            "state": {"running": {}},
        });
        assert!(may_serve(&container(running)));
        assert!(may_serve(&container(waiting("ContainerCreating", 0))));
        assert!(may_serve(&container(waiting("PodInitializing", 0))));
        assert!(may_serve(&|pod| pod["status"]["containerStatuses"] = json!([])));
        assert!(may_serve(&|pod| pod["status"] = Value::Null));
        let mut sidecar = waiting("CrashLoopBackOff", 1);
        sidecar["name"] = json!("cache");
        assert!(may_serve(&container(sidecar)), "the proxy's container counts");
        let mut ended = waiting("", 0);
        ended["state"] = json!({"terminated": {"exitCode": 1}});
        assert!(!may_serve(&container(ended.clone())));
        ended["state"] = Value::Null;
        assert!(!may_serve(&container(ended)));
        assert!(!may_serve(&container(waiting("CrashLoopBackOff", 1))));
        assert!(!may_serve(&container(waiting("ContainerCreating", 1))));
        assert!(!may_serve(&container(waiting("ErrImageNeverPull", 0))));
        assert!(!may_serve(&|pod| pod["spec"]["nodeName"] = Value::Null));
    }

    #[test]
    fn reasons_why_a_pod_does_not_run_have_stable_texts() {
        let obstacle = |change: &dyn Fn(&mut Value)| seen(pod(change))[0].obstacle.clone();
        let waits = |reason: &str, rest: Value| {
            let mut status = waiting(reason, 1);
            status["image"] = json!("example.com/proxy:1");
            status["lastState"] = rest;
            obstacle(&|pod| pod["status"]["containerStatuses"] = json!([status]))
        };
        assert_eq!(obstacle(&|_| ()), None, "the container is starting");
        let unscheduled = json!([{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/2 nodes are available: 2 Insufficient cpu.",
        }]);
        assert_eq!(
            obstacle(&|pod| pod["status"]["conditions"] = unscheduled.clone()).as_deref(),
            Some("0/2 nodes are available: 2 Insufficient cpu.")
        );
        let without_words = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]);
        assert_eq!(
            obstacle(&|pod| pod["status"]["conditions"] = without_words.clone()).as_deref(),
            Some("Unschedulable")
        );
        let scheduled = json!([{"type": "PodScheduled", "status": "True", "message": "no"}]);
        assert_eq!(
            obstacle(&|pod| pod["status"]["conditions"] = scheduled.clone()),
            None
        );
        let refused = json!([{"type": "Ready", "status": "False", "message": "no"}]);
        assert_eq!(
            obstacle(&|pod| pod["status"]["conditions"] = refused.clone()),
            None
        );
        assert_eq!(
            waits("PodInitializing", json!({})),
            None,
            "the container is starting"
        );
        let pulling = waits("ErrImagePull", json!({}));
        assert_eq!(
            pulling.as_deref(),
            Some("failed to pull image example.com/proxy:1")
        );
        assert_eq!(waits("ImagePullBackOff", json!({})), pulling);
        assert_eq!(
            waits("InvalidImageName", json!({})).as_deref(),
            Some("InvalidImageName example.com/proxy:1")
        );
        assert_eq!(
            waits("ErrImageNeverPull", json!({})).as_deref(),
            Some("ErrImageNeverPull example.com/proxy:1")
        );
        assert_eq!(
            waits("CreateContainerConfigError", json!({})).as_deref(),
            Some("CreateContainerConfigError")
        );
        assert_eq!(
            waits("CrashLoopBackOff", json!({"terminated": {"exitCode": 3}})).as_deref(),
            Some("CrashLoopBackOff, exit code 3")
        );
        let ended = |reason: &str| json!({"terminated": {"reason": reason, "exitCode": 2}});
        assert_eq!(
            waits("CrashLoopBackOff", ended("Error")).as_deref(),
            Some("CrashLoopBackOff, exit code 2")
        );
        assert_eq!(
            waits("CrashLoopBackOff", ended("OOMKilled")).as_deref(),
            Some("CrashLoopBackOff, OOMKilled")
        );
    }
}
