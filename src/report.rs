//! What a proxy tells the operator: the body of `GET /status`. It holds ids and generations, never a key.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::Reason;

/// State of one proxy.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyReport {
    /// Whether it takes new clients.
    pub ready: bool,
    /// Whether it was told to stop.
    pub draining: bool,
    /// The ring that it has loaded. Its generation is the acknowledgement.
    pub ring: RingReport,
    /// The configuration that it has loaded.
    pub config: ConfigReport,
    /// One entry for each certificate of each host, and one more for each host with an uncovered name.
    pub certificates: Vec<CertificateReport>,
    /// One entry for each backend of a route.
    pub backends: Vec<BackendReport>,
    /// The session cache; none when the proxy has none.
    #[serde(default)]
    pub session_cache: Option<SessionCacheReport>,
}

/// The ring that a proxy has loaded.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RingReport {
    /// Generation that it opens tickets of; none before the first good ring.
    pub generation: Option<u64>,
    /// Id of the key that it seals with; none when no key may seal.
    pub primary: Option<String>,
    /// Why the mounted ring is not the one in use.
    pub problem: Option<String>,
}

/// The configuration that a proxy has loaded.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigReport {
    /// Fingerprint of the file in use ([`crate::config::fingerprint`]).
    pub fingerprint: String,
    /// Why the mounted file is not the one in use.
    pub problem: Option<String>,
}

/// A certificate as a proxy sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateReport {
    /// Host that uses it.
    pub host: String,
    /// Name of its Secret.
    pub certificate: String,
    /// When the certificate in use expires; none when there is none in use.
    pub not_after: Option<Timestamp>,
    /// What is wrong; none when it is loaded and valid.
    pub problem: Option<Problem>,
}

/// Something that is wrong, in the words that conditions use.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// For programs.
    pub reason: Reason,
    /// For people; it names the host and the cause.
    pub message: String,
}

/// A backend as a proxy sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendReport {
    /// `service:port`, or the addresses of a static backend.
    pub backend: String,
    /// Number of endpoints that take requests.
    pub endpoints: usize,
}

/// The session cache as a proxy sees it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionCacheReport {
    /// Whether it answers.
    pub reachable: bool,
    /// Why it does not.
    pub problem: Option<String>,
}
