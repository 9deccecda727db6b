//! Status report of a proxy to the operator: the body of `GET /status`. It contains ids and generations, never a key.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::Reason;

/// State of one proxy.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyReport {
    /// Whether the proxy is ready for new clients.
    pub ready: bool,
    /// Whether it has received SIGTERM.
    pub draining: bool,
    /// The ring that it has loaded.
    pub ring: RingReport,
    /// The configuration that it has loaded.
    pub config: ConfigReport,
    /// One entry per certificate of each host, and one more per host with an uncovered name.
    pub certificates: Vec<CertificateReport>,
    /// One entry per backend.
    pub backends: Vec<BackendReport>,
    /// The session cache; None if none is configured.
    #[serde(default)]
    pub session_cache: Option<SessionCacheReport>,
}

/// The ring that a proxy has loaded.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RingReport {
    /// Generation of the loaded ring; None before the first valid ring.
    pub generation: Option<u64>,
    /// Id of the key that encrypts tickets; None if no key may.
    pub primary: Option<String>,
    /// Ids of the keys that decrypt tickets. They are the acknowledgement. None in reports of earlier releases.
    #[serde(default)]
    pub opens: Option<Vec<String>>,
    /// Why the mounted ring is not loaded.
    pub problem: Option<String>,
}

/// The configuration that a proxy has loaded.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigReport {
    /// Fingerprint of the file in use ([`crate::config::fingerprint`]).
    pub fingerprint: String,
    /// Why the mounted file is not loaded.
    pub problem: Option<String>,
}

/// State of a certificate on a proxy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateReport {
    /// Host that uses it.
    pub host: String,
    /// Name of its Secret.
    pub certificate: String,
    /// Expiry of the certificate in use; None if there is none.
    pub not_after: Option<Timestamp>,
    /// Why it is not loaded or not valid; None if it is.
    pub problem: Option<Problem>,
}

/// A problem, with the reason used in conditions.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Machine-readable reason.
    pub reason: Reason,
    /// Human-readable message with the host and the cause.
    pub message: String,
}

/// State of a backend on a proxy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendReport {
    /// `service:port`, or the addresses of a static backend.
    pub backend: String,
    /// Number of ready endpoints.
    pub endpoints: usize,
}

/// State of the session cache on a proxy.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionCacheReport {
    /// Whether the cache is connected and responding.
    pub reachable: bool,
    /// Why it is unreachable.
    pub problem: Option<String>,
}
