//! `spec` of a TLSFarm. Bounds, defaults and CEL rules are defined here, so that the API server rejects an invalid spec
//! even while the operator is down.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::{between, rule};
use super::{Duration, LogSpec, SessionCacheSpec, TLSFarmStatus};

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
    doc = "A farm of TLS ingress proxies that share rotated session-ticket keys: a returning client can resume its TLS session on any replica.",
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
        .message("the name must be a DNS label of at most 48 characters that starts with a letter, because Services are named after it"),
    validation = Rule::new("self.spec.resumption.sessionCache.mode != 'Disabled' || self.spec.hosts.all(host, host.tls.tickets.kind != 'SingleUse')")
        .message("tickets of kind SingleUse require a session cache: resumption.sessionCache.mode must be Sidecar or Redis"),
)]
#[serde(rename_all = "camelCase")]
pub struct TLSFarmSpec {
    /// Number of proxies.
    #[serde(default = "defaults::replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,

    /// Hosts that the farm serves. Sessions are scoped to a host: a session of one host is never resumed on another.
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub hosts: Vec<HostSpec>,

    /// Handling of plain HTTP requests.
    #[serde(default)]
    pub http: Http,

    /// Session resumption: tickets and the session cache.
    #[serde(default)]
    pub resumption: Resumption,

    /// The Service in front of the proxies.
    #[serde(default)]
    pub service: Service,

    /// Settings of the proxy pods.
    #[serde(default)]
    pub proxy: Proxy,
}

/// Host names with one TLS policy and its routes.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostSpec {
    /// Name of the host within the farm. Sessions are bound to it: after a rename, its sessions can no longer be resumed.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// DNS names that clients send (SNI). `*.example.com` matches exactly one more label; an exact name takes
    /// precedence over a wildcard.
    #[schemars(
        length(min = 1, max = 64),
        inner(
            length(min = 1, max = 253),
            regex(
                pattern = "^(\\*\\.)?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$"
            )
        )
    )]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(name, !name.matches('(^|[.])([0-9]+|0x[0-9a-f]*)$'))")
            .message("every entry must be a DNS name, and no IP address"),
    )]
    pub hostnames: Vec<String>,

    /// TLS policy of the host.
    pub tls: HostTls,

    /// Routes from paths to backends. The longest matching path prefix wins, compared segment by segment.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    pub routes: Vec<RouteSpec>,
}

/// TLS policy of one host.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostTls {
    /// Secrets of type kubernetes.io/tls in the farm's namespace. List an ECDSA and an RSA certificate to support old
    /// clients; each client gets the first certificate that it can verify. A change restarts the proxies. Add a new Secret
    /// beside the old one, and remove the old one when the farm is Ready: running proxies cannot load a Secret that they
    /// have not mounted.
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub certificate_refs: Vec<CertificateRef>,

    /// Minimum TLS version.
    #[serde(default)]
    pub min_version: MinVersion,

    /// Session ticket settings of the host.
    #[serde(default)]
    pub tickets: HostTickets,
}

/// Session ticket settings of one host.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostTickets {
    /// Kind of TLS 1.3 tickets: Stateless tickets contain the encrypted session and can be used repeatedly until they
    /// expire; SingleUse tickets refer to an entry in the session cache, which the first use removes.
    #[serde(default)]
    pub kind: TicketKind,
}

/// Kind of TLS 1.3 tickets that a host issues.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum TicketKind {
    /// The ticket contains the session, encrypted with the ring's primary key.
    #[default]
    Stateless,
    /// The ticket refers to an entry in the session cache, which the first use removes.
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

/// Minimum TLS version of a host.
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
    /// Path prefix, compared segment by segment: `/a` covers `/a` and `/a/b` but not `/ab`. It has no wildcards.
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = "^[A-Za-z0-9/_.~!$&'()*+,;=:@-]*$")
    )]
    #[x_kube(
        validation = Rule::new("self.startsWith('/')").message("a path must begin with /"),
        validation = Rule::new("!self.contains('*')")
            .message("a path is a prefix and has no wildcards: write / for /*, and /shop for /shop/*"),
    )]
    pub path: String,

    /// Backend that requests are forwarded to.
    pub backend: BackendRef,
}

/// A Service whose ready endpoints receive the requests of a route.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// Name of a Service in the farm's namespace. Proxies connect to its ready endpoints directly, not to its cluster IP.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub service: String,

    /// Port of the Service.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: u16,
}

/// Handling of plain HTTP requests.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    /// Redirect answers every request with a 308 redirect to https, Serve forwards requests as on the TLS port, and
    /// Disabled does not listen for plain HTTP. A change to or from Disabled restarts the proxies.
    #[serde(default)]
    pub mode: HttpMode,
}

/// Handling of plain HTTP requests.
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

/// Session resumption: tickets and the session cache.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Resumption {
    /// Session tickets, encrypted with keys that all proxies share.
    #[serde(default)]
    pub tickets: TicketsSpec,

    /// Session cache shared by all proxies. TLS 1.2 clients without ticket support and single-use tickets require it.
    #[serde(default)]
    pub session_cache: SessionCacheSpec,
}

/// Session tickets and the rotation of the keys that encrypt them.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(between("rotationInterval", "5m", "24h"))
        .message("rotationInterval must be between 5m and 24h (RFC 9325 section 3.4: ticket keys must be changed regularly)"),
    validation = Rule::new(between("lifetime", "1m", "168h"))
        .message("lifetime must be between 1m and 168h (RFC 9846 section 4.7.1: at most 604800 seconds)"),
    validation = Rule::new(rule(&["maxAge", "lifetime"], "duration(self.maxAge) >= duration(self.lifetime) && duration(self.maxAge) <= duration('168h')"))
        .message("maxAge must be between lifetime and 168h"),
    validation = Rule::new(between("maxUnackedWait", "30s", "24h"))
        .message("maxUnackedWait must be between 30s and 24h"),
    validation = Rule::new(rule(&["lifetime", "maxUnackedWait", "rotationInterval"], "duration(self.lifetime).getSeconds() + duration(self.maxUnackedWait).getSeconds() <= 24 * duration(self.rotationInterval).getSeconds()"))
        .message("lifetime plus maxUnackedWait must be at most 24 times rotationInterval: the ring must hold every key that can still decrypt a ticket, and holds at most 32"),
)]
pub struct TicketsSpec {
    /// Interval between key rotations, between 5m and 24h.
    #[serde(default = "defaults::rotation_interval")]
    pub rotation_interval: Duration,

    /// Lifetime of a ticket, between 1m and 168h.
    #[serde(default = "defaults::lifetime")]
    pub lifetime: Duration,

    /// Maximum time since the last full handshake for which a client can resume, even with newer tickets; at least
    /// lifetime and at most 168h.
    #[serde(default = "defaults::max_age")]
    pub max_age: Duration,

    /// How long a rotation waits for a proxy that does not acknowledge the ring, between 30s and 24h. After that the
    /// rotation continues without it, and the condition KeysSynced reports the proxy.
    #[serde(default = "defaults::max_unacked_wait")]
    pub max_unacked_wait: Duration,

    /// Whether TLS 1.2 clients get tickets. A TLS 1.2 ticket contains the session's own keys, so TLS 1.2 tickets expire
    /// after at most two rotation intervals.
    #[serde(default)]
    pub tls12: Tls12Tickets,
}

/// Whether TLS 1.2 clients get tickets.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Tls12Tickets {
    /// Tickets for clients that support the extended master secret (RFC 7627).
    #[default]
    Enabled,
    /// No tickets for TLS 1.2 clients.
    Disabled,
}

/// The Service in front of the proxies.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.loadBalancerClass) || self.type == 'LoadBalancer'")
        .message("loadBalancerClass requires type LoadBalancer"),
    validation = Rule::new("!has(self.externalTrafficPolicy) || self.type != 'ClusterIP'")
        .message("externalTrafficPolicy requires type LoadBalancer or NodePort"),
)]
pub struct Service {
    /// Type of the Service.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,

    /// Annotations of the Service, for example for a load balancer controller.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,

    /// Load balancer class, if the cluster has more than one load balancer implementation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub load_balancer_class: Option<String>,

    /// Cluster balances over all proxies; Local preserves the client's IP address and routes only to proxies on the same
    /// node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<ExternalTrafficPolicy>,

    /// IP families of the Service. Default: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_family_policy: Option<IpFamilyPolicy>,
}

/// Type of the Service in front of the proxies.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[allow(missing_docs)] // Kubernetes' own words
pub enum ServiceType {
    #[default]
    LoadBalancer,
    NodePort,
    ClusterIP,
}

/// Routing of traffic from outside the cluster.
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

/// Settings of the proxy pods.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(between("drainPeriod", "1s", "1h"))
        .message("drainPeriod must be between 1s and 1h"),
)]
pub struct Proxy {
    /// Container image of the proxies. Default: the image that the operator is configured with. A change restarts the
    /// proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// Resources of the proxy container. The proxy runs one thread per CPU of the limit. A change restarts the proxies.
    #[serde(default = "defaults::resources")]
    #[schemars(schema_with = "super::resources::schema")]
    pub resources: ResourceRequirements,

    /// Logs of the proxies and their cache sidecars. A change restarts the proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogSpec>,

    /// Scheduling constraints of the proxy pods. Pods are always spread over nodes where possible. A change restarts the
    /// proxies.
    #[serde(default)]
    pub scheduling: Scheduling,

    /// Networks of the proxies in front of the farm whose X-Forwarded-* and Forwarded headers are trusted. These headers
    /// are removed from requests of all other clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 64), inner(length(min = 3, max = 43)))]
    #[x_kube(merge_strategy = ListMerge::Set, validation = Rule::new("self.all(network, isCIDR(network))").message("every entry must be a CIDR network such as 10.0.0.0/8 or fd00::/8"))]
    pub trusted_proxies: Vec<IpNet>,

    /// How long a proxy keeps serving after SIGTERM, between 1s and 1h. It leaves the Service at once, tells clients to
    /// reconnect, and finishes running requests. A change restarts the proxies.
    #[serde(default = "defaults::drain_period")]
    pub drain_period: Duration,
}

/// Scheduling constraints of the proxy pods.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// Labels that a node must have to run proxies.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: BTreeMap<String, String>,

    /// Node taints that the proxies tolerate.
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
            log: None,
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
