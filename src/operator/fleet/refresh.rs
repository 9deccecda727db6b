//! Makes kubelets refresh the mounts of a farm's pods immediately.
//!
//! A kubelet syncs mounted objects about once a minute, and whenever their pod changes. So a pod that has not loaded
//! the current ring or configuration gets an annotation with their versions. This is best effort: without it the proxy
//! loads the change later, and the rotation waits for it.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tracing::debug;

use super::observe::{Observed, ProxyMemory};
use crate::api::REFRESH_ANNOTATION;
use crate::operator::metrics::OperatorMetrics;
use crate::operator::names::{FarmId, MANAGER};
use crate::ring::RingVersion;
use crate::runtime::kubernetes::describe;

/// Maximum number of concurrent patches per farm.
const CONCURRENCY: usize = 16;

/// Maximum number of refreshes per change. The kubelet may have read the object just before the change.
const MOST_REFRESHES: u32 = 3;

/// Wait after the first refresh; it doubles with each further one.
const FIRST_WAIT: SignedDuration = SignedDuration::from_secs(2);

/// The ring and configuration that proxies should have loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RefreshTarget<'a> {
    pub(crate) ring: Option<RingVersion>,
    pub(crate) config: Option<&'a str>,
}

/// Annotates the pods of all proxies that are behind.
pub(crate) async fn refresh(
    client: &Client,
    id: &FarmId,
    target: RefreshTarget<'_>,
    observed: &[Observed],
    memory: &mut BTreeMap<String, ProxyMemory>,
    metrics: &OperatorMetrics,
    now: Timestamp,
) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), id.namespace());
    let due: Vec<_> = observed
        .iter()
        .filter_map(|one| {
            let (value, count) = wanted(one, target, now)?;
            Some((one.proxy.name.clone(), one.proxy.uid.clone(), value, count))
        })
        .collect();
    let answers = stream::iter(due).map(|(name, uid, value, count)| {
        let pods = pods.clone();
        async move {
            let patch = json!({"metadata": {"uid": uid, "annotations": {REFRESH_ANNOTATION: value}}});
            let params = PatchParams {
                field_manager: Some(MANAGER.to_owned()),
                ..PatchParams::default()
            };
            let answer = pods.patch_metadata(&name, &params, &Patch::Merge(&patch)).await;
            (name, uid, count, answer)
        }
    });
    let answers: Vec<_> = answers.buffer_unordered(CONCURRENCY).collect().await;
    for (name, uid, count, answer) in answers {
        match answer {
            Ok(_) => metrics.wrote("Pod"),
            Err(error) => debug!(pod = name, error = describe(&error), "failed to annotate a pod"),
        }
        remember(memory, uid, count, now);
    }
}

/// Records number and time of refreshes, including failed ones, which are retried.
fn remember(memory: &mut BTreeMap<String, ProxyMemory>, uid: String, count: u32, now: Timestamp) {
    memory.entry(uid).or_default().refreshes = Some((count, now));
}

/// The new value of the pod's annotation and the number of refreshes; None if no refresh is due.
fn wanted(observed: &Observed, target: RefreshTarget<'_>, now: Timestamp) -> Option<(String, u32)> {
    let Observed { proxy, memory } = observed;
    let has_ring = target.ring.is_none_or(|ring| memory.has_acknowledged(ring));
    let has_config = target.config.is_none_or(|config| memory.runs(config));
    if has_ring && has_config {
        return None;
    }
    let mut value = Vec::new();
    value.extend(target.ring.map(|ring| format!("ring={}", ring.generation)));
    value.extend(target.config.map(|config| format!("config={config}")));
    let value = value.join(" ");
    let told = proxy.refreshed_for.as_deref().unwrap_or_default();
    if told
        .strip_prefix(&value)
        .is_none_or(|rest| !rest.is_empty() && !rest.starts_with(' '))
    {
        return Some((value, 1));
    }
    // Already annotated. A proxy that cannot load anything, such as one that does not start, is not annotated again.
    // An operator that was replaced annotated it, perhaps before the kubelet saw the change: that was the first attempt.
    let by_another = memory.behind_since.map(|since| (1, since));
    let (count, last) = memory.refreshes.or(by_another)?;
    let patience = FIRST_WAIT * (1 << count.min(MOST_REFRESHES));
    if !proxy.may_serve || count >= MOST_REFRESHES || now < last + patience / 2 {
        return None;
    }
    Some((format!("{value} again={count}"), count + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::fleet::pods::ProxyPod;
    use crate::report::ProxyReport;
    use crate::ring::KeyId;

    const fn version(generation: u64) -> RingVersion {
        RingVersion {
            generation,
            next: KeyId([1; 16]),
            primary: KeyId([2; 16]),
        }
    }

    const TARGET: RefreshTarget<'_> = RefreshTarget {
        ring: Some(version(7)),
        config: Some("abc"),
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn observed(
        acknowledged: u64,
        config: &str,
        annotated: Option<&str>,
        refreshes: Option<(u32, Timestamp)>,
    ) -> Observed {
        let mut report = ProxyReport::default();
        report.config.fingerprint = config.into();
        Observed {
            proxy: ProxyPod {
                name: "a".into(),
                uid: "1".into(),
                address: None,
                addresses: Vec::new(),
                node_addresses: Vec::new(),
                ready_since: Some(at(0)),
                may_serve: true,
                obstacle: None,
                refreshed_for: annotated.map(str::to_owned),
            },
            memory: ProxyMemory {
                generation: Some(acknowledged),
                report: Some(report),
                refreshes,
                ..ProxyMemory::default()
            },
        }
    }

    #[test]
    fn outdated_pods_are_annotated() {
        let annotated = |one: &Observed| wanted(one, TARGET, at(100)).map(|(value, _)| value);
        assert_eq!(annotated(&observed(7, "abc", None, None)), None);
        assert_eq!(
            annotated(&observed(6, "abc", None, None)),
            Some("ring=7 config=abc".into())
        );
        assert_eq!(
            annotated(&observed(7, "old", Some("ring=7 config=old"), None)),
            Some("ring=7 config=abc".into())
        );
        assert_eq!(
            annotated(&observed(6, "abc", Some("ring=70 config=abc"), None)),
            Some("ring=7 config=abc".into())
        );
        assert_eq!(
            annotated(&observed(6, "abc", Some("ring=7 config=abcd"), None)),
            Some("ring=7 config=abc".into())
        );
    }

    #[test]
    fn the_number_of_annotations_and_the_last_time_are_remembered() {
        let mut memory = BTreeMap::new();
        remember(&mut memory, "1".into(), 1, at(100));
        let annotated = |memory: &BTreeMap<String, ProxyMemory>| memory["1"].refreshes;
        let one = observed(6, "abc", Some("ring=7 config=abc"), annotated(&memory));
        assert_eq!(wanted(&one, TARGET, at(101)), None);
        let (_, count) = wanted(&one, TARGET, at(102)).expect("a repetition is due");
        remember(&mut memory, "1".into(), count, at(102));
        assert_eq!(annotated(&memory), Some((2, at(102))));
    }

    #[test]
    fn annotating_is_repeated_a_few_times_and_then_given_up() {
        let current = Some("ring=7 config=abc");
        let again =
            |annotated, refreshes, now| wanted(&observed(6, "abc", annotated, refreshes), TARGET, at(now));
        assert_eq!(again(current, Some((1, at(100))), 101), None);
        assert_eq!(
            again(current, Some((1, at(100))), 102),
            Some(("ring=7 config=abc again=1".into(), 2))
        );
        let second = Some("ring=7 config=abc again=1");
        assert_eq!(again(second, Some((2, at(102))), 105), None);
        assert_eq!(
            again(second, Some((2, at(102))), 106),
            Some(("ring=7 config=abc again=2".into(), 3))
        );
        assert_eq!(
            again(Some("ring=7 config=abc again=2"), Some((3, at(106))), 9999),
            None
        );
    }

    #[test]
    fn the_annotation_names_ring_and_config() {
        let behind = observed(6, "old", None, None);
        let annotated =
            |ring, config| wanted(&behind, RefreshTarget { ring, config }, at(100)).map(|(value, _)| value);
        assert_eq!(annotated(None, None), None);
        assert_eq!(annotated(Some(version(7)), None), Some("ring=7".into()));
        assert_eq!(annotated(None, Some("abc")), Some("config=abc".into()));
        assert_eq!(
            annotated(Some(version(6)), Some("abc")),
            Some("ring=6 config=abc".into())
        );
        assert_eq!(annotated(Some(version(6)), Some("old")), None);
    }

    #[test]
    fn a_new_change_restarts_the_retries() {
        let three_times = observed(6, "abc", Some("ring=6 config=abc again=2"), Some((3, at(99))));
        let annotated = wanted(&three_times, TARGET, at(100));
        assert_eq!(annotated, Some(("ring=7 config=abc".into(), 1)));
    }

    #[test]
    fn a_pod_that_cannot_load_anything_is_annotated_once() {
        let mut stuck = observed(6, "abc", Some("ring=7 config=abc"), Some((1, at(0))));
        stuck.proxy.may_serve = false;
        assert_eq!(wanted(&stuck, TARGET, at(100)), None);
        stuck.proxy.refreshed_for = None;
        let annotated = wanted(&stuck, TARGET, at(100));
        assert_eq!(
            annotated,
            Some(("ring=7 config=abc".into(), 1)),
            "its mounts are refreshed before it starts again"
        );
    }

    #[test]
    fn a_pod_annotated_by_another_operator_is_annotated_again_if_it_stays_behind() {
        let mut annotated = observed(6, "abc", Some("ring=7 config=abc"), None);
        annotated.memory.behind_since = Some(at(100));
        assert_eq!(
            wanted(&annotated, TARGET, at(101)),
            None,
            "the kubelet needs a moment"
        );
        let again = Some(("ring=7 config=abc again=1".to_owned(), 2));
        assert_eq!(wanted(&annotated, TARGET, at(102)), again);
        annotated.memory.behind_since = None;
        assert_eq!(wanted(&annotated, TARGET, at(102)), None, "it serves nobody");
    }
}
