//! Conditions as defined by the Kubernetes API conventions, and the reasons that conditions, events and metric labels
//! share.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One aspect of a farm's state (Kubernetes API conventions, "typical status properties").
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type of the condition.
    #[serde(rename = "type")]
    pub type_: ConditionType,

    /// Status of the condition: True, False or Unknown.
    pub status: ConditionStatus,

    /// Machine-readable reason for the status, in CamelCase.
    pub reason: Reason,

    /// Human-readable explanation of the status; may be empty.
    #[schemars(length(max = 32768))]
    pub message: String,

    /// Generation of the spec that the condition describes.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,

    /// Time at which `status` last changed.
    #[schemars(schema_with = "super::status::time_schema")]
    pub last_transition_time: Timestamp,
}

/// The aspects of a farm that conditions describe.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum ConditionType {
    /// The spec is valid. While it is not, the operator does not change what is already running.
    Accepted,
    /// Every host has a certificate that is valid for all its names.
    CertificatesReady,
    /// Every backend refers to an existing Service and port.
    BackendsReady,
    /// Enough proxies are ready.
    Available,
    /// Every ready proxy has acknowledged the current ring.
    KeysSynced,
    /// Every ready proxy can reach the session cache, if the farm has one.
    SessionCacheReady,
    /// `proxy.trustedProxies` covers no address from which untrusted clients arrive. It does not affect Ready.
    TrustedProxiesSafe,
    /// All conditions above but TrustedProxiesSafe are True, and every proxy runs the current spec.
    Ready,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// Not determined yet.
    Unknown,
}

/// Why a condition has its status. Events and metric labels use the same values.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Reason {
    /// Accepted: the spec is valid.
    Valid,
    /// Accepted: the spec is invalid in a way that the schema cannot express.
    Invalid,
    /// Accepted: an older farm in the namespace, or another host of this farm, already uses a host name.
    HostnameConflict,
    /// Accepted: an object that the farm needs already exists and is not owned by the farm.
    NameConflict,
    /// CertificatesReady: every certificate is loaded and valid for its host.
    CertificatesLoaded,
    /// CertificatesReady: a Secret, or one of its two files, is missing.
    CertificateMissing,
    /// CertificatesReady: a certificate or key cannot be read or parsed.
    CertificateInvalid,
    /// CertificatesReady: a certificate does not match its private key.
    KeyMismatch,
    /// CertificatesReady: no certificate of the host is valid for one of its names.
    NameMismatch,
    /// CertificatesReady: a certificate has expired or is not valid yet.
    CertificateExpired,
    /// BackendsReady: every backend refers to an existing Service and port.
    BackendsResolved,
    /// BackendsReady: a Service does not exist, or has no such port.
    BackendNotFound,
    /// Available: enough proxies are ready.
    ProxiesReady,
    /// Available: too few proxies are ready.
    ProxiesUnavailable,
    /// Available: spec.replicas is 0.
    ScaledToZero,
    /// KeysSynced: every ready proxy has acknowledged the current ring.
    Acknowledged,
    /// KeysSynced: a ready proxy has not acknowledged a recent ring change yet.
    Distributing,
    /// KeysSynced: a proxy has not acknowledged the ring within maxUnackedWait.
    AcknowledgementOverdue,
    /// KeysSynced: the ring was missing, damaged or rolled back, and the operator is replacing it.
    RingRepaired,
    /// KeysSynced: the ring was written by a later release, in a format that this operator does not know.
    RingFormatUnknown,
    /// SessionCacheReady: every ready proxy can reach the session cache.
    CacheReachable,
    /// SessionCacheReady: a ready proxy cannot reach the session cache.
    CacheUnreachable,
    /// SessionCacheReady: the session cache is disabled.
    CacheDisabled,
    /// TrustedProxiesSafe: the Service does not replace the addresses of clients.
    ClientAddressesPreserved,
    /// TrustedProxiesSafe: trustedProxies covers no address of the farm's pods and their nodes.
    NodesNotTrusted,
    /// TrustedProxiesSafe: trustedProxies contains almost all addresses.
    AnyoneTrusted,
    /// TrustedProxiesSafe: trustedProxies covers a node of the farm, and clients arrive from the addresses of nodes.
    NodesTrusted,
    /// Ready: all checks passed.
    FarmReady,
    /// Ready: proxies are being started, replaced or reconfigured.
    Progressing,
    /// Any condition: not determined yet.
    Pending,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for ConditionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Gives each of `fresh` the transition time of its predecessor in `old` unless its status changed.
///
/// The result depends on `now` only where a status changed, so that writing it again changes nothing.
pub fn merge_conditions(old: &[Condition], fresh: Vec<Condition>) -> Vec<Condition> {
    fresh
        .into_iter()
        .map(|mut condition| {
            if let Some(before) = old
                .iter()
                .find(|c| c.type_ == condition.type_ && c.status == condition.status)
            {
                condition.last_transition_time = before.last_transition_time;
            }
            condition
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: ConditionStatus, reason: Reason, second: i64) -> Condition {
        Condition {
            type_: ConditionType::Ready,
            status,
            reason,
            message: String::new(),
            observed_generation: 1,
            last_transition_time: Timestamp::from_second(second).expect("in range"),
        }
    }

    #[test]
    fn transition_time_moves_only_with_status() {
        let old = [ready(ConditionStatus::False, Reason::Progressing, 10)];
        let same = merge_conditions(
            &old,
            vec![ready(ConditionStatus::False, Reason::ProxiesUnavailable, 20)],
        );
        assert_eq!(same[0].last_transition_time.as_second(), 10);
        let flipped = merge_conditions(&old, vec![ready(ConditionStatus::True, Reason::FarmReady, 20)]);
        assert_eq!(flipped[0].last_transition_time.as_second(), 20);
    }
}
