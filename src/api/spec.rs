//! `spec`: what a user asks of a farm. Bounds, defaults and CEL rules live here, so the API server refuses what the
//! operator could not carry out, also while the operator is down.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, SessionCacheSpec, TLSFarmStatus};

/// A farm of TLS ingress proxies that resume each other's sessions.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "tlsfarm.dev",
    version = "v1alpha1",
    kind = "TLSFarm",
    plural = "tlsfarms",
    shortname = "farm",
    category = "all",
    namespaced,
    status = "TLSFarmStatus",
    derive = "PartialEq",
    doc = "A farm of TLS ingress proxies that share rotated session-ticket keys: a client that comes back resumes its TLS session on any replica.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Proxies", type_ = "string", json_path = ".status.proxies"),
    printcolumn(name = "Ring", type_ = "integer", json_path = ".status.ring.generation"),
    printcolumn(name = "Acked", type_ = "string", json_path = ".status.ring.acked"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Primary", type_ = "string", json_path = ".status.ring.primary", priority = 1),
    printcolumn(name = "Next Rotation", type_ = "string", json_path = ".status.ring.nextRotation", priority = 1),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0]", priority = 1),
    validation = Rule::new("self.metadata.name.size() <= 48 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name must be a DNS label of at most 48 characters that starts with a letter: Services are named after it"),
    validation = Rule::new("self.spec.resumption.sessionCache.mode != 'Disabled' || self.spec.hosts.all(host, host.tls.tickets.kind != 'SingleUse')")
        .message("tickets of kind SingleUse name entries of the session cache: resumption.sessionCache.mode must be Sidecar or Redis"),
)]
#[serde(rename_all = "camelCase")]
pub struct TLSFarmSpec {
    /// Number of proxies.
    #[serde(default = "defaults::replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,

    /// The hosts that the farm serves. A host is the unit of scope: sessions of one host never resume at another.
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub hosts: Vec<HostSpec>,

    /// What the farm does with plain HTTP.
    #[serde(default)]
    pub http: Http,

    /// How sessions are resumed.
    #[serde(default)]
    pub resumption: Resumption,

    /// The Service in front of the proxies.
    #[serde(default)]
    pub service: Service,

    /// How the proxies run.
    #[serde(default)]
    pub proxy: Proxy,
}

/// Host names with one TLS policy and its routes.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostSpec {
    /// Name of the host within the farm. Sessions are bound to it: renaming a host ends its sessions.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// DNS names that clients ask for (SNI). `*.example.com` stands for exactly one more label; an exact name wins
    /// over a wildcard.
    #[schemars(
        length(min = 1, max = 64),
        inner(
            length(min = 1, max = 253),
            regex(
                pattern = "^(\\*\\.)?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$"
            )
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub hostnames: Vec<String>,

    /// TLS policy of the host.
    pub tls: HostTls,

    /// Which backend serves which path. The longest path prefix wins, compared by path segment.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    pub routes: Vec<RouteSpec>,
}

/// TLS policy of one host.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostTls {
    /// Secrets of type kubernetes.io/tls in the farm's namespace. Give an ECDSA and an RSA certificate side by side to
    /// serve old clients; each client gets the first that it can verify.
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub certificate_refs: Vec<CertificateRef>,

    /// Lowest TLS version that clients may use.
    #[serde(default)]
    pub min_version: MinVersion,

    /// Tickets of the host.
    #[serde(default)]
    pub tickets: HostTickets,
}

/// Tickets of one host.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostTickets {
    /// What TLS 1.3 tickets are: Stateless tickets carry the session and may be used again until they expire;
    /// SingleUse tickets name an entry of the session cache, which the first use takes away.
    #[serde(default)]
    pub kind: TicketKind,
}

/// What TLS 1.3 tickets of a host are.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum TicketKind {
    /// The ticket carries the session, sealed by the ring.
    #[default]
    Stateless,
    /// The ticket names an entry of the session cache, which the first use takes away.
    SingleUse,
}

/// Reference to a Secret that holds a certificate chain and its key.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateRef {
    /// Name of a Secret of type kubernetes.io/tls in the farm's namespace.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// Lowest TLS version of a host.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum MinVersion {
    /// TLS 1.2 and TLS 1.3.
    #[default]
    TLS12,
    /// TLS 1.3 only.
    TLS13,
}

/// A path prefix and the backend that serves it.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec {
    /// Path prefix, compared segment by segment: `/a` covers `/a` and `/a/b` but not `/ab`.
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = "^/[A-Za-z0-9/_.~!$&'()*+,;=:@-]*$")
    )]
    pub path: String,

    /// Where requests go.
    pub backend: BackendRef,
}

/// A Service whose ready endpoints serve a route.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// Name of a Service in the farm's namespace. Its ready endpoints are balanced directly, without its cluster IP.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub service: String,

    /// Port of the Service.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: u16,
}

/// What the farm does with plain HTTP.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    /// Redirect answers every request with the same URL under https, Serve forwards requests as on the TLS port, and
    /// Disabled does not listen.
    #[serde(default)]
    pub mode: HttpMode,
}

/// What the farm does with plain HTTP.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum HttpMode {
    /// Answer with a permanent redirect (308) to https.
    #[default]
    Redirect,
    /// Forward to the backends without TLS.
    Serve,
    /// Do not listen for plain HTTP.
    Disabled,
}

/// How sessions are resumed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Resumption {
    /// Session tickets, sealed by keys that all proxies share.
    #[serde(default)]
    pub tickets: TicketsSpec,

    /// Sessions that all proxies share: what TLS 1.2 clients without tickets and single-use tickets need.
    #[serde(default)]
    pub session_cache: SessionCacheSpec,
}

/// Session tickets and the rotation of the keys that seal them.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("duration(self.rotationInterval) >= duration('5m') && duration(self.rotationInterval) <= duration('24h')")
        .message("rotationInterval must lie between 5m and 24h (RFC 9325 section 3.4: ticket keys change regularly)"),
    validation = Rule::new("duration(self.lifetime) >= duration('1m') && duration(self.lifetime) <= duration('168h')")
        .message("lifetime must lie between 1m and 168h (RFC 9846 section 4.7.1: at most 604800 seconds)"),
    validation = Rule::new("duration(self.maxAge) >= duration(self.lifetime) && duration(self.maxAge) <= duration('168h')")
        .message("maxAge must lie between lifetime and 168h"),
    validation = Rule::new("duration(self.maxUnackedWait) >= duration('30s') && duration(self.maxUnackedWait) <= duration('24h')")
        .message("maxUnackedWait must lie between 30s and 24h"),
    validation = Rule::new("duration(self.lifetime).getSeconds() + duration(self.maxUnackedWait).getSeconds() <= 24 * duration(self.rotationInterval).getSeconds()")
        .message("lifetime plus maxUnackedWait must be at most 24 times rotationInterval: the ring holds every key that can still open a ticket, and at most 32"),
)]
pub struct TicketsSpec {
    /// How often a new key begins to seal tickets, between 5m and 24h.
    #[serde(default = "defaults::rotation_interval")]
    pub rotation_interval: Duration,

    /// How long a client may resume with one ticket, between 1m and 168h.
    #[serde(default = "defaults::lifetime")]
    pub lifetime: Duration,

    /// How long after its last full handshake a client may go on resuming with ever new tickets, up to 168h.
    #[serde(default = "defaults::max_age")]
    pub max_age: Duration,

    /// How long a proxy that does not acknowledge the ring may hold up a rotation, between 30s and 24h. After that the
    /// rotation goes on without it and the condition KeysSynced names it.
    #[serde(default = "defaults::max_unacked_wait")]
    pub max_unacked_wait: Duration,

    /// Whether TLS 1.2 clients get tickets. In TLS 1.2 the ticket carries the keys of the session itself, so tickets of
    /// that version are never older than two rotation intervals.
    #[serde(default)]
    pub tls12: Tls12Tickets,
}

/// Whether TLS 1.2 clients get tickets.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Tls12Tickets {
    /// Tickets for clients that support the extended master secret (RFC 7627).
    #[default]
    Enabled,
    /// No tickets below TLS 1.3.
    Disabled,
}

/// The Service in front of the proxies.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.loadBalancerClass) || self.type == 'LoadBalancer'")
        .message("loadBalancerClass needs type LoadBalancer"),
    validation = Rule::new("!has(self.externalTrafficPolicy) || self.type != 'ClusterIP'")
        .message("externalTrafficPolicy needs type LoadBalancer or NodePort"),
)]
pub struct Service {
    /// Kind of Service.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,

    /// Annotations for the Service, as load balancer controllers read them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,

    /// Load balancer implementation, when the cluster has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub load_balancer_class: Option<String>,

    /// Cluster spreads over all proxies; Local keeps the client's address and stays on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<ExternalTrafficPolicy>,

    /// IP families of the Service; the cluster's default when not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_family_policy: Option<IpFamilyPolicy>,
}

/// Kind of Service in front of the proxies.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[allow(missing_docs)] // Kubernetes' own words
pub enum ServiceType {
    #[default]
    LoadBalancer,
    NodePort,
    ClusterIP,
}

/// Where traffic from outside the cluster may go.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[allow(missing_docs)] // Kubernetes' own words
pub enum ExternalTrafficPolicy {
    Cluster,
    Local,
}

/// IP families of the Service.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[allow(missing_docs)] // Kubernetes' own words
pub enum IpFamilyPolicy {
    SingleStack,
    PreferDualStack,
    RequireDualStack,
}

/// How the proxies run.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("duration(self.drainPeriod) >= duration('1s') && duration(self.drainPeriod) <= duration('1h')")
        .message("drainPeriod must lie between 1s and 1h"),
)]
pub struct Proxy {
    /// Container image of the proxies; the operator's own image when not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// Resources of the proxy container. The proxy runs one thread for each CPU of the limit.
    #[serde(default = "defaults::resources")]
    #[schemars(schema_with = "super::resources::schema")]
    pub resources: ResourceRequirements,

    /// Where proxies may run. They are always spread over nodes as far as the nodes allow.
    #[serde(default)]
    pub scheduling: Scheduling,

    /// Networks of proxies in front of the farm whose X-Forwarded-* and Forwarded headers are believed. From everyone
    /// else these headers are removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 64), inner(length(min = 3, max = 43)))]
    #[x_kube(merge_strategy = ListMerge::Set, validation = Rule::new("self.all(network, isCIDR(network))").message("every entry must be a network such as 10.0.0.0/8 or fd00::/8"))]
    pub trusted_proxies: Vec<IpNet>,

    /// How long a proxy that is told to stop goes on serving, at most 1h: it leaves the Service at once, tells clients
    /// to reconnect elsewhere, and lets running requests end.
    #[serde(default = "defaults::drain_period")]
    pub drain_period: Duration,
}

/// Where proxies may run.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: BTreeMap<String, String>,

    /// Taints of nodes that the proxies tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,

    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

impl Default for TicketsSpec {
    fn default() -> Self {
        Self {
            rotation_interval: defaults::rotation_interval(),
            lifetime: defaults::lifetime(),
            max_age: defaults::max_age(),
            max_unacked_wait: defaults::max_unacked_wait(),
            tls12: Tls12Tickets::default(),
        }
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            image: None,
            resources: defaults::resources(),
            scheduling: Scheduling::default(),
            trusted_proxies: Vec::new(),
            drain_period: defaults::drain_period(),
        }
    }
}

mod defaults {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::ResourceRequirements;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use crate::api::Duration;

    pub(super) fn replicas() -> i32 {
        3
    }

    pub(super) fn rotation_interval() -> Duration {
        Duration::from_secs(3600)
    }

    pub(super) fn lifetime() -> Duration {
        Duration::from_secs(4 * 3600)
    }

    pub(super) fn max_age() -> Duration {
        Duration::from_secs(24 * 3600)
    }

    pub(super) fn max_unacked_wait() -> Duration {
        Duration::from_secs(600)
    }

    pub(super) fn drain_period() -> Duration {
        Duration::from_secs(25)
    }

    pub(super) fn resources() -> ResourceRequirements {
        ResourceRequirements {
            requests: Some(BTreeMap::from([
                ("cpu".into(), Quantity("100m".into())),
                ("memory".into(), Quantity("64Mi".into())),
            ])),
            limits: Some(BTreeMap::from([("memory".into(), Quantity("256Mi".into()))])),
            ..ResourceRequirements::default()
        }
    }
}
