//! `spec.resumption.sessionCache`: where proxies store sessions that they share by lookup instead of by ticket.

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;
use super::duration::between;

/// The session cache: stores the sessions of TLS 1.2 session ids and single-use TLS 1.3 tickets, shared by all proxies.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.mode == 'Redis') == has(self.redis)")
        .message("redis is required in mode Redis and must not be set in other modes"),
    validation = Rule::new(between("lookupTimeout", "1ms", "50ms"))
        .message("lookupTimeout must be between 1ms and 50ms, because a handshake waits for it"),
)]
pub struct SessionCacheSpec {
    /// Sidecar runs a cache next to every proxy, Redis uses your own Redis or Valkey server, and Disabled stores no
    /// sessions. A change restarts the proxies.
    #[serde(default)]
    pub mode: SessionCacheMode,

    /// Memory limit for the entries of one sidecar, in MiB. An entry takes 350 to 600 bytes; the oldest are evicted first. A
    /// change restarts the proxies.
    #[serde(default = "default_size_mib", rename = "sizeMiB")]
    #[schemars(range(min = 1, max = 65536))]
    pub size_mib: i32,

    /// Resources of the sidecar. Default: requests of 50m CPU and 32Mi of memory, and a memory limit of twice sizeMiB
    /// plus 64Mi, for entries, allocator overhead and connections. A change restarts the proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::resources::schema")]
    pub resources: Option<ResourceRequirements>,

    /// How long a handshake may wait for the cache, between 1ms and 50ms. If the lookup times out, the client gets a
    /// full handshake. A change restarts the proxies.
    #[serde(default = "default_lookup_timeout")]
    pub lookup_timeout: Duration,

    /// The server to use in mode Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisSpec>,
}

/// Where sessions are stored.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum SessionCacheMode {
    /// In a sidecar of each proxy; the sidecars form one distributed cache.
    Sidecar,
    /// In your own Redis or Valkey server.
    Redis,
    /// Sessions are not stored.
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

    /// TLS settings for the connection; plain TCP if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTlsSpec>,

    /// Secret in the farm's namespace with the key `password` and, for an ACL user, `username`. A
    /// change restarts the proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
}

/// TLS settings for the connection to a Redis or Valkey server.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisTlsSpec {
    /// Secret in the farm's namespace with the key `ca.crt`: the CA certificates that the server's certificate is
    /// verified against. If the Secret also has `tls.crt` and `tls.key`, proxies present them as client certificate. A
    /// change restarts the proxies.
    pub secret_ref: SecretRef,

    /// DNS name that the server's certificate must be valid for. Default: the host of `address`.
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
