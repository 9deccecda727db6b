//! `spec.resumption.sessionCache`: the sessions that proxies share through memory instead of tickets.

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;

/// The session cache: TLS 1.2 session ids and single-use TLS 1.3 tickets, which need state that all proxies share.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.mode == 'Redis') == has(self.redis)")
        .message("mode Redis needs redis, and redis needs mode Redis"),
    validation = Rule::new("duration(self.lookupTimeout) >= duration('1ms') && duration(self.lookupTimeout) <= duration('50ms')")
        .message("lookupTimeout must lie between 1ms and 50ms: a handshake waits for it"),
)]
pub struct SessionCacheSpec {
    /// Sidecar runs a cache beside every proxy, Redis uses a Redis or Valkey of your own, and Disabled keeps no state.
    #[serde(default)]
    pub mode: SessionCacheMode,

    /// Memory for the entries of one sidecar, in MiB. An entry takes some 600 bytes; the oldest go first.
    #[serde(default = "default_size_mib", rename = "sizeMiB")]
    #[schemars(range(min = 1, max = 65536))]
    pub size_mib: i32,

    /// Resources of the sidecar. When not set it asks for 50m CPU and 32Mi of memory, and may use twice sizeMiB and 64Mi
    /// more: entries, what the allocator holds around them, and connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::resources::schema")]
    pub resources: Option<ResourceRequirements>,

    /// How long a handshake may wait for the cache, between 1ms and 50ms. What has not been found by then is a full
    /// handshake.
    #[serde(default = "default_lookup_timeout")]
    pub lookup_timeout: Duration,

    /// The server of mode Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisSpec>,
}

/// Where sessions are kept.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum SessionCacheMode {
    /// In a sidecar of each proxy; together they are one cache.
    Sidecar,
    /// In a Redis or Valkey of your own.
    Redis,
    /// Nowhere.
    #[default]
    Disabled,
}

/// A Redis or Valkey server, version 6.2 or later.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisSpec {
    /// Host and port of the primary, such as `redis.web.svc:6379`.
    #[schemars(
        length(min = 3, max = 320),
        regex(pattern = "^([^\\s:/@]+|\\[[0-9a-fA-F:]+\\]):[0-9]{1,5}$")
    )]
    pub address: String,

    /// TLS to the server; plain TCP when not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTlsSpec>,

    /// Secret in the farm's namespace with the keys `password` and, for an ACL user, `username`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
}

/// TLS to a Redis or Valkey server.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisTlsSpec {
    /// Secret in the farm's namespace with the key `ca.crt`: who may have signed the server's certificate. When the
    /// Secret has `tls.crt` and `tls.key` too, proxies present them.
    pub secret_ref: SecretRef,

    /// Name that the server's certificate must bear; the host of `address` when not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,
}

/// Reference to a Secret in the farm's namespace.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
}

impl Default for SessionCacheSpec {
    fn default() -> Self {
        Self {
            mode: SessionCacheMode::default(),
            size_mib: default_size_mib(),
            resources: None,
            lookup_timeout: default_lookup_timeout(),
            redis: None,
        }
    }
}

fn default_size_mib() -> i32 {
    64
}

fn default_lookup_timeout() -> Duration {
    Duration::from_millis(5)
}
