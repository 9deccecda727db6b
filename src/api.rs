//! The `TLSFarm` custom resource: `spec`, `status`, and the names of labels, annotations and ports.
//!
//! Nothing here performs I/O. The CRD in `crds/tlsfarm.yaml` is generated from these types by `tlsfarm crd`.

mod condition;
mod duration;
mod log;
mod resources;
mod session_cache;
mod spec;
mod status;

pub use condition::{Condition, ConditionStatus, ConditionType, Reason, merge_conditions};
pub use duration::{Duration, DurationError};
pub use log::{LogFormat, LogSpec};
pub use session_cache::{RedisSpec, RedisTlsSpec, SecretRef, SessionCacheMode, SessionCacheSpec};
pub use spec::{
    BackendRef, CertificateRef, ExternalTrafficPolicy, HostSpec, HostTickets, HostTls, Http, HttpMode,
    IpFamilyPolicy, MinVersion, Proxy, Resumption, RouteSpec, Scheduling, Service, ServiceType, TLSFarm,
    TLSFarmSpec, TicketKind, TicketsSpec, Tls12Tickets,
};
pub use status::{KeyRole, KeyStatus, RingStatus, SessionCacheStatus, TLSFarmStatus};

/// API group of the resource; also the prefix of its labels and annotations.
pub const GROUP: &str = "tlsfarm.dev";

/// Label on every object that belongs to a farm; its value is the farm's name.
pub const FARM_LABEL: &str = "tlsfarm.dev/farm";

/// Annotation on a farm: a new value requests one rotation of the ring, which waits for acknowledgements like any other.
pub const ROTATE_ANNOTATION: &str = "tlsfarm.dev/rotate";

/// Annotation that the operator patches on pods when a mounted object changes, so that the kubelet refreshes
/// the mounts at once instead of after its sync period.
pub const REFRESH_ANNOTATION: &str = "tlsfarm.dev/refresh";

/// `type` of the Secret that holds a farm's ring.
pub const RING_SECRET_TYPE: &str = "tlsfarm.dev/ring";

/// `type` of the Secret that holds the CA certificate and key that sign a farm's cache certificates.
pub const CACHE_AUTHORITY_SECRET_TYPE: &str = "tlsfarm.dev/cache-ca";

/// Container ports of a proxy pod. Scripts and dashboards rely on the names.
pub mod ports {
    /// Name and number of the port that terminates TLS.
    pub const HTTPS: (&str, u16) = ("https", 8443);
    /// Name and number of the plain HTTP port.
    pub const HTTP: (&str, u16) = ("http", 8080);
    /// Name and number of the port with `/healthz`, `/readyz`, `/status` and `/metrics`.
    pub const ADMIN: (&str, u16) = ("admin", 9090);
    /// Name and number of the sidecar's port for connections from peers.
    pub const CACHE_PEERS: (&str, u16) = ("cache-peers", 7443);
    /// Name and number of the sidecar's port with `/healthz`, `/readyz` and `/metrics`.
    pub const CACHE_ADMIN: (&str, u16) = ("cache-admin", 9091);
}
