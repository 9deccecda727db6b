//! Computes the conditions of a farm from the observed state.

use std::collections::BTreeSet;

use super::facts::{StatusInputs, whole_second};
use crate::api::{
    Condition, ConditionStatus, ConditionType, ExternalTrafficPolicy, Reason, ServiceType, SessionCacheMode,
};
use crate::operator::decide::listing::first_of;
use crate::operator::fleet::observe::Observed;
use crate::report::Problem;
use crate::ring::Plan;

/// Maximum number of pods, hosts or Services listed in a message.
const MOST_NAMED: usize = 8;

/// Networks with a shorter prefix than this contain strangers, whatever is in front of the farm.
const WIDEST_TRUSTED: u8 = 4;

/// A condition without generation and transition time.
struct Finding {
    status: ConditionStatus,
    reason: Reason,
    message: String,
}

impl Finding {
    fn is_true(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            status: ConditionStatus::True,
            reason,
            message: message.into(),
        }
    }

    fn is_false(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            status: ConditionStatus::False,
            reason,
            message: message.into(),
        }
    }

    fn pending(message: impl Into<String>) -> Self {
        Self {
            status: ConditionStatus::Unknown,
            reason: Reason::Pending,
            message: message.into(),
        }
    }

    fn holds(&self) -> bool {
        self.status == ConditionStatus::True
    }
}

/// All conditions. `Ready` reports the first of those before TrustedProxiesSafe that is not True.
pub(super) fn conditions(facts: &StatusInputs<'_>) -> Vec<Condition> {
    let mut findings = vec![
        (ConditionType::Accepted, accepted(facts)),
        (ConditionType::CertificatesReady, certificates_ready(facts)),
        (ConditionType::BackendsReady, backends_ready(facts)),
        (ConditionType::Available, available(facts)),
        (ConditionType::KeysSynced, keys_synced(facts)),
        (ConditionType::SessionCacheReady, session_cache_ready(facts)),
    ];
    let trusted = trusted_proxies_safe(facts);
    let mut ready = ready(facts, &findings);
    if ready.holds() && trusted.status == ConditionStatus::False {
        ready.message += ", but see TrustedProxiesSafe";
    }
    // A warning: the farm serves as its spec says.
    findings.push((ConditionType::TrustedProxiesSafe, trusted));
    findings.push((ConditionType::Ready, ready));
    findings
        .into_iter()
        .map(|(type_, finding)| Condition {
            type_,
            status: finding.status,
            reason: finding.reason,
            message: finding.message,
            observed_generation: facts.farm.metadata.generation.unwrap_or_default(),
            last_transition_time: whole_second(facts.now),
        })
        .collect()
}

fn accepted(facts: &StatusInputs<'_>) -> Finding {
    match facts.refusal {
        None => Finding::is_true(Reason::Valid, "the spec is valid"),
        Some(refusal) => Finding::is_false(refusal.reason, refusal.message.clone()),
    }
}

fn certificates_ready(facts: &StatusInputs<'_>) -> Finding {
    let Some(config) = &facts.live.config else {
        return Finding::pending("the proxy configuration has not been written yet");
    };
    let mut reports = facts
        .proxies
        .iter()
        .filter(|one| one.memory.runs(config))
        .filter_map(|one| one.memory.report.as_ref())
        .peekable();
    if reports.peek().is_none() {
        return Finding::pending("no proxy has reported the current configuration yet");
    }
    let problems: BTreeSet<&Problem> = reports
        .flat_map(|report| {
            report
                .certificates
                .iter()
                .filter_map(|certificate| certificate.problem.as_ref())
        })
        .collect();
    let messages: Vec<String> = problems.iter().map(|problem| problem.message.clone()).collect();
    match problems.first() {
        None => Finding::is_true(
            Reason::CertificatesLoaded,
            "every host has a certificate that is valid for all its names",
        ),
        Some(first) => Finding::is_false(first.reason, first_of(&messages, MOST_NAMED, "; ")),
    }
}

fn backends_ready(facts: &StatusInputs<'_>) -> Finding {
    if facts.backend_faults.is_empty() {
        return Finding::is_true(
            Reason::BackendsResolved,
            "every backend refers to an existing Service and port",
        );
    }
    let faults: Vec<String> = facts.backend_faults.iter().map(ToString::to_string).collect();
    let named = first_of(&faults, MOST_NAMED, "; ");
    Finding::is_false(Reason::BackendNotFound, named)
}

fn available(facts: &StatusInputs<'_>) -> Finding {
    let wanted = facts.farm.spec.replicas;
    let ready = facts.ready_count();
    let mut message = format!("{ready} of {wanted} proxies are ready");
    if ready < wanted {
        message += &obstacles(facts);
    }
    if wanted == 0 {
        Finding::is_false(Reason::ScaledToZero, "spec.replicas is 0")
    } else if ready >= (wanted - 1).max(1) {
        Finding::is_true(Reason::ProxiesReady, message)
    } else {
        Finding::is_false(Reason::ProxiesUnavailable, message)
    }
}

/// What prevents proxies from starting or running, as reported by the operator, the ReplicaSet, the scheduler or the
/// kubelet. Empty, or begins with a separator.
fn obstacles(facts: &StatusInputs<'_>) -> String {
    let conditions = facts
        .live
        .deployment
        .as_ref()
        .and_then(|deployment| deployment.status.as_ref()?.conditions.as_deref());
    let refused = conditions
        .unwrap_or_default()
        .iter()
        .filter(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")
        .filter_map(|condition| condition.message.clone());
    let stuck = facts.proxies.iter().filter_map(|one| {
        let obstacle = one.proxy.obstacle.as_deref()?;
        Some(format!("{}: {obstacle}", one.proxy.name))
    });
    let problem = facts.problem.map(str::to_owned);
    let obstacles: Vec<String> = problem.into_iter().chain(refused).chain(stuck).collect();
    if obstacles.is_empty() {
        return String::new();
    }
    format!("; {}", first_of(&obstacles, MOST_NAMED, "; "))
}

fn keys_synced(facts: &StatusInputs<'_>) -> Finding {
    if let Some(version) = facts.unknown_format {
        let message = format!(
            "the ring Secret has format version {version}, which this operator does not support; it is left alone, and \
             keys do not rotate: run the operator that wrote it, or a later one"
        );
        return Finding::is_false(Reason::RingFormatUnknown, message);
    }
    let Some(ring) = facts.ring else {
        return Finding::pending("the ring has not been created yet");
    };
    let generation = ring.generation;
    let ready = facts.ready_count();
    if ready == 0 {
        return Finding::pending("no proxy is ready yet");
    }
    let behind: Vec<&Observed> = facts
        .ready()
        .filter(|one| !one.memory.has_acknowledged(ring.version()))
        .collect();
    if behind.is_empty() {
        let mut message = format!("every ready proxy has acknowledged ring generation {generation}");
        match facts.plan {
            Some(Plan::Wait { missing, .. }) => {
                let missing = first_of(missing, MOST_NAMED, ", ");
                message += &format!("; the next rotation is waiting for {missing}");
            }
            Some(Plan::Full { until }) => {
                message += &format!(
                    "; the ring is full, the next rotation waits until {}",
                    whole_second(*until)
                );
            }
            _ => {}
        }
        return Finding::is_true(Reason::Acknowledged, message);
    }
    let overdue: Vec<&Observed> = behind
        .iter()
        .copied()
        .filter(|one| is_overdue(one, facts))
        .collect();
    if !overdue.is_empty() {
        return Finding::is_false(
            Reason::AcknowledgementOverdue,
            format!("not acknowledged within maxUnackedWait: {}", told(&overdue)),
        );
    }
    if let Some(why) = facts.repaired {
        return Finding::is_false(Reason::RingRepaired, why);
    }
    Finding::is_false(
        Reason::Distributing,
        format!(
            "ring generation {generation} is not acknowledged yet by {}",
            told(&behind)
        ),
    )
}

fn is_overdue(one: &Observed, facts: &StatusInputs<'_>) -> bool {
    one.memory
        .behind_since
        .is_some_and(|since| facts.now >= since + facts.policy.max_unacked_wait)
}

/// The names of the pods, with the reason why they have not loaded the ring.
fn told(pods: &[&Observed]) -> String {
    let pods: Vec<String> = pods
        .iter()
        .map(|one| {
            let problem = one
                .memory
                .report
                .as_ref()
                .and_then(|report| report.ring.problem.as_deref());
            match problem {
                Some(problem) => format!("{} ({problem})", one.proxy.name),
                None => one.proxy.name.clone(),
            }
        })
        .collect();
    first_of(&pods, MOST_NAMED, ", ")
}

fn session_cache_ready(facts: &StatusInputs<'_>) -> Finding {
    if facts.farm.spec.resumption.session_cache.mode == SessionCacheMode::Disabled {
        return Finding::is_true(Reason::CacheDisabled, "the session cache is disabled");
    }
    if facts.ready_count() == 0 {
        return Finding::pending("no proxy is ready yet");
    }
    let (mut cut_off, mut silent) = (Vec::new(), Vec::new());
    for one in facts.ready() {
        let name = &one.proxy.name;
        match one.cache() {
            Some(cache) if cache.reachable => {}
            Some(cache) => cut_off.push(match &cache.problem {
                Some(problem) => format!("{name} ({problem})"),
                None => name.clone(),
            }),
            None => silent.push(name.clone()),
        }
    }
    if !cut_off.is_empty() {
        let named = first_of(&cut_off, MOST_NAMED, ", ");
        return Finding::is_false(
            Reason::CacheUnreachable,
            format!("the session cache is unreachable from {named}"),
        );
    }
    if !silent.is_empty() {
        let named = first_of(&silent, MOST_NAMED, ", ");
        return Finding::pending(format!("waiting for the first session cache report from {named}"));
    }
    Finding::is_true(
        Reason::CacheReachable,
        "every ready proxy can reach the session cache",
    )
}

fn trusted_proxies_safe(facts: &StatusInputs<'_>) -> Finding {
    let spec = &facts.farm.spec;
    let trusted = &spec.proxy.trusted_proxies;
    if trusted.is_empty() {
        return Finding::is_true(Reason::NodesNotTrusted, "no proxies are trusted");
    }
    if let Some(network) = trusted
        .iter()
        .find(|network| network.prefix_len() < WIDEST_TRUSTED)
    {
        let message = format!(
            "trustedProxies contains {network}, so that almost any client can forge X-Forwarded-For; list only the \
             addresses of the proxies in front"
        );
        return Finding::is_false(Reason::AnyoneTrusted, message);
    }
    // With the policy Cluster a node that forwards a connection replaces the client's address with its own.
    let replaced = spec.service.type_ != ServiceType::ClusterIP
        && spec.service.external_traffic_policy != Some(ExternalTrafficPolicy::Local);
    if !replaced {
        return Finding::is_true(
            Reason::ClientAddressesPreserved,
            "the Service does not replace the addresses of clients",
        );
    }
    // Pod addresses too: some CNIs SNAT to an address of the pod network.
    let mut of_nodes = facts.proxies.iter().flat_map(|one| {
        let proxy = &one.proxy;
        proxy.node_addresses.iter().chain(&proxy.addresses)
    });
    if of_nodes.clone().next().is_none() {
        return Finding::pending("no proxy has an address yet");
    }
    let covered = of_nodes.find_map(|address| {
        let network = trusted.iter().find(|network| network.contains(address))?;
        Some((network, address))
    });
    match covered {
        None => Finding::is_true(
            Reason::NodesNotTrusted,
            "trustedProxies covers no address of the farm's pods and their nodes",
        ),
        Some((network, address)) => Finding::is_false(
            Reason::NodesTrusted,
            format!(
                "trustedProxies contains {network}, which covers {address}, an address of a node or its pods: with \
                 externalTrafficPolicy Cluster clients arrive from such addresses, so that any client can forge \
                 X-Forwarded-For; list only the addresses of the proxies in front, or set \
                 service.externalTrafficPolicy to Local, which changes nothing for load balancers that connect to pods"
            ),
        ),
    }
}

fn ready(facts: &StatusInputs<'_>, findings: &[(ConditionType, Finding)]) -> Finding {
    // A ring on its way is ordinary work.
    let counts = |finding: &Finding| finding.reason != Reason::Distributing;
    let failing = findings
        .iter()
        .find(|(_, finding)| finding.status == ConditionStatus::False && counts(finding));
    if let Some((_, finding)) = failing {
        return Finding::is_false(finding.reason, finding.message.clone());
    }
    if let Some(why) = facts.problem {
        return Finding::is_false(Reason::Progressing, why);
    }
    if let Some(why) = unfinished(facts) {
        return Finding::is_false(Reason::Progressing, why);
    }
    match findings
        .iter()
        .find(|(_, finding)| !finding.holds() && counts(finding))
    {
        Some((_, finding)) => Finding::is_false(Reason::Progressing, finding.message.clone()),
        None => Finding::is_true(Reason::FarmReady, "all checks passed"),
    }
}

/// What is still missing for the rollout to be complete, if anything.
fn unfinished(facts: &StatusInputs<'_>) -> Option<String> {
    let wanted = facts.farm.spec.replicas;
    let Some(deployment) = &facts.live.deployment else {
        return Some("the Deployment has not been created yet".into());
    };
    let status = deployment.status.as_ref();
    let observed = status.and_then(|status| status.observed_generation);
    let updated = status
        .and_then(|status| status.updated_replicas)
        .unwrap_or_default();
    let all = status.and_then(|status| status.replicas).unwrap_or_default();
    if observed < deployment.metadata.generation {
        return Some("waiting for the Deployment rollout to start".into());
    }
    if updated != wanted || all != updated {
        return Some(format!(
            "{updated} of {wanted} proxies are updated, {all} exist{}",
            obstacles(facts)
        ));
    }
    let ready = facts.ready_count();
    if ready != wanted {
        return Some(format!(
            "{ready} of {wanted} proxies are ready{}",
            obstacles(facts)
        ));
    }
    let Some(config) = &facts.live.config else {
        return Some("the proxy configuration has not been written yet".into());
    };
    let behind: Vec<String> = facts
        .ready()
        .filter(|one| !one.memory.runs(config))
        .map(|one| {
            let problem = one
                .memory
                .report
                .as_ref()
                .and_then(|report| report.config.problem.as_deref());
            match problem {
                Some(problem) => format!("{} ({problem})", one.proxy.name),
                None => one.proxy.name.clone(),
            }
        })
        .collect();
    if behind.is_empty() {
        return None;
    }
    let named = first_of(&behind, MOST_NAMED, ", ");
    Some(format!("the current configuration is not loaded yet by {named}"))
}

#[cfg(test)]
mod tests;
