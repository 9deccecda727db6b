//! `status`: what the operator answers.

use jiff::Timestamp;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, SessionCacheMode};

/// State of a farm as the operator last saw it.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TLSFarmStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Number of proxies that exist.
    #[serde(default)]
    pub replicas: i32,

    /// Number of proxies that serve.
    #[serde(default)]
    pub ready_replicas: i32,

    /// Serving and wanted proxies, for people: `3/3`.
    #[serde(default)]
    pub proxies: String,

    /// Label selector of the proxies, as the scale subresource wants it.
    #[serde(default)]
    pub selector: String,

    /// Where clients reach the farm: addresses and host names of the load balancer, else the cluster IP.
    #[serde(default)]
    pub addresses: Vec<String>,

    /// The ring of ticket keys; never any key itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<RingStatus>,

    /// The session cache; absent while it is Disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_cache: Option<SessionCacheStatus>,

    /// What holds of the farm. The types are Accepted, CertificatesReady, BackendsReady, Available, KeysSynced,
    /// SessionCacheReady and Ready, which sums them up.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The ring of ticket keys and how far it has spread.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RingStatus {
    /// Grows by one with every change of the ring, and never falls.
    #[schemars(schema_with = "generation_schema")]
    pub generation: u64,

    /// Id of the key that seals tickets.
    pub primary: String,

    /// The keys in the ring, newest first.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub keys: Vec<KeyStatus>,

    /// Number of ready proxies that have acknowledged this generation.
    pub acknowledged: i32,

    /// Ready proxies that have acknowledged this generation out of all ready proxies, for people: `3/3`.
    pub acked: String,

    /// When the current primary began to seal.
    #[schemars(schema_with = "time_schema")]
    pub last_rotation: Timestamp,

    /// When the next scheduled rotation is due.
    #[schemars(schema_with = "time_schema")]
    pub next_rotation: Timestamp,
}

/// The session cache as the proxies see it.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionCacheStatus {
    /// Where sessions are kept.
    pub mode: SessionCacheMode,

    /// Ready proxies that reach the cache out of all ready proxies, for people: `3/3`.
    pub reachable: String,

    /// When the certificates of the sidecars are next renewed; only of mode Sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub certificate_renewal: Option<Timestamp>,
}

/// One ticket key, without its secret.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyStatus {
    /// Random id of the key, as tickets carry it in the clear.
    pub id: String,

    /// What proxies may do with the key.
    pub role: KeyRole,

    /// When the key was made.
    #[schemars(schema_with = "time_schema")]
    pub created_at: Timestamp,

    /// When proxies forget the key.
    #[schemars(schema_with = "time_schema")]
    pub open_until: Timestamp,
}

/// What proxies may do with a key.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyRole {
    /// Opens tickets; will seal after the next rotation.
    Next,
    /// Seals and opens tickets.
    Primary,
    /// Opens tickets that it sealed before the last rotation.
    Previous,
}

pub(super) fn time_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "format": "date-time"})
}

fn generation_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "integer", "format": "int64", "minimum": 0})
}
