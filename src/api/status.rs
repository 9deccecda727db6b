//! `status` of a TLSFarm: the state that the operator observed.

use jiff::Timestamp;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, SessionCacheMode};

/// Most recently observed state of a farm.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TLSFarmStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Number of proxies that exist.
    #[serde(default)]
    pub replicas: i32,

    /// Number of proxies that are ready.
    #[serde(default)]
    pub ready_replicas: i32,

    /// Ready and desired proxies, for display: `3/3`.
    #[serde(default)]
    pub proxies: String,

    /// Label selector of the proxies, for the scale subresource.
    #[serde(default)]
    pub selector: String,

    /// Addresses of the farm: IP addresses and host names of the load balancer, or else the cluster IP.
    #[serde(default)]
    pub addresses: Vec<String>,

    /// The ring of ticket keys, without the secret keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<RingStatus>,

    /// The session cache; absent if it is Disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_cache: Option<SessionCacheStatus>,

    /// Conditions of the farm. The types are Accepted, CertificatesReady, BackendsReady, Available, KeysSynced,
    /// SessionCacheReady, TrustedProxiesSafe, and Ready, which summarizes all but TrustedProxiesSafe.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The ring of ticket keys and which proxies have acknowledged it.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RingStatus {
    /// Generation of the ring: increases by one with every change, and never decreases.
    #[schemars(schema_with = "generation_schema")]
    pub generation: u64,

    /// Id of the key that encrypts new tickets.
    pub primary: String,

    /// The keys in the ring, newest first.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub keys: Vec<KeyStatus>,

    /// Number of ready proxies that have acknowledged this generation.
    pub acknowledged: i32,

    /// Ready proxies that have acknowledged this generation out of all ready proxies, for display: `3/3`.
    pub acked: String,

    /// Time at which the current primary key began to encrypt tickets.
    #[schemars(schema_with = "time_schema")]
    pub last_rotation: Timestamp,

    /// Time at which the next scheduled rotation is due.
    #[schemars(schema_with = "time_schema")]
    pub next_rotation: Timestamp,
}

/// State of the session cache as reported by the proxies.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionCacheStatus {
    /// Where sessions are stored.
    pub mode: SessionCacheMode,

    /// Ready proxies that can reach the cache out of all ready proxies, for display: `3/3`.
    pub reachable: String,

    /// Time of the next renewal of the sidecars' certificate; only in mode Sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub certificate_renewal: Option<Timestamp>,
}

/// One ticket key, without its secret.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyStatus {
    /// Random id of the key, which tickets contain in plain text.
    pub id: String,

    /// What proxies use the key for.
    pub role: KeyRole,

    /// Time at which the key was generated.
    #[schemars(schema_with = "time_schema")]
    pub created_at: Timestamp,

    /// Time at which proxies remove the key.
    #[schemars(schema_with = "time_schema")]
    pub open_until: Timestamp,
}

/// What proxies use a key for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyRole {
    /// Decrypts tickets; will encrypt them after the next rotation.
    Next,
    /// Encrypts and decrypts tickets.
    Primary,
    /// Decrypts tickets that it encrypted before the last rotation.
    Previous,
}

pub(super) fn time_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "format": "date-time"})
}

fn generation_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "integer", "format": "int64", "minimum": 0})
}
