//! What the operator tells a proxy: the compiled configuration, one file.
//!
//! In a cluster it is a ConfigMap key that the operator writes and the kubelet mounts; without one it is a file written
//! by hand (YAML, of which JSON is a part). Proxies read it again whenever it changes and keep the last good one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use rustls::pki_types::DnsName;
use serde::{Deserialize, Serialize};

use crate::api::{Duration, HttpMode, MinVersion, TicketKind};

mod backend;
mod cache;
mod file;

pub use self::backend::{Backend, ServicePort};
pub use self::cache::{CacheConfig, CacheListen, Peers};
use self::file::from_yaml;
pub use self::file::{ConfigError, VERSION, fingerprint};

/// Configuration of one proxy process.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyConfig {
    /// Format of this file: 1.
    pub version: u32,
    /// The farm as `namespace/name`. Tickets are bound to it.
    pub farm: String,
    /// Addresses to listen on. A change takes effect at the next start.
    pub listen: Listen,
    /// File with the ring document.
    pub ring: PathBuf,
    /// How long tickets may be used.
    pub tickets: TicketConfig,
    /// The session cache; without one there are neither session ids nor single-use tickets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_cache: Option<SessionCacheConfig>,
    /// What to do with plain HTTP, where `listen.http` is set.
    #[serde(default)]
    pub http: HttpMode,
    /// The hosts to serve.
    pub hosts: Vec<HostConfig>,
    /// Networks of proxies in front whose forwarding headers are believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<IpNet>,
    /// How long to go on serving after SIGTERM.
    pub drain_period: Duration,
    /// Limits on every phase of a connection.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// Addresses to listen on.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listen {
    /// TLS.
    pub https: SocketAddr,
    /// Plain HTTP; not listened on when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<SocketAddr>,
    /// `/healthz`, `/readyz`, `/status`, `/metrics`.
    pub admin: SocketAddr,
}

/// How long tickets may be used.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TicketConfig {
    /// How long one ticket may be used.
    pub lifetime: Duration,
    /// How long after its last full handshake a client may go on resuming.
    pub max_age: Duration,
    /// Upper bound on `lifetime` for TLS 1.2; no tickets below TLS 1.3 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls12_lifetime: Option<Duration>,
}

/// The session cache that the proxy uses.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionCacheConfig {
    /// Where it is.
    pub server: CacheServer,
    /// How long a TLS 1.2 session may be resumed by its session id. TLS 1.3 tickets go by `tickets.lifetime`.
    pub session_id_lifetime: Duration,
    /// How long a handshake may wait for the cache, at most 50ms.
    #[serde(default = "default_lookup_timeout")]
    pub lookup_timeout: Duration,
}

/// Where the session cache is. Both kinds speak Redis's protocol.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum CacheServer {
    /// A `tlsfarm cache` beside the proxy, on this Unix socket.
    Unix(PathBuf),
    /// A Redis or Valkey server.
    Redis(RedisConfig),
}

/// A Redis or Valkey server.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisConfig {
    /// `host:port`.
    pub address: String,
    /// TLS to it; plain TCP when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTlsConfig>,
    /// File with the name of the ACL user; the default user is meant when the file is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<PathBuf>,
    /// File with the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PathBuf>,
}

/// TLS to a Redis or Valkey server. The files are read again when they change.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisTlsConfig {
    /// File with the certificates that may have signed the server's.
    pub authority: PathBuf,
    /// Name that the server's certificate must bear; the host of `address` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// File with the certificate to present, where the server wants one. When the file is missing none is presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// File with its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// Host names with one TLS policy and its routes.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostConfig {
    /// Name within the farm. Tickets are bound to it.
    pub name: String,
    /// Lower-case DNS names; `*.` in front stands for exactly one label.
    pub hostnames: Vec<String>,
    /// Lowest TLS version.
    #[serde(default)]
    pub min_version: MinVersion,
    /// What TLS 1.3 tickets of the host are.
    #[serde(default)]
    pub ticket_kind: TicketKind,
    /// Certificates in order of preference.
    pub certificates: Vec<CertificateConfig>,
    /// Routes in any order; the longest path prefix wins.
    pub routes: Vec<RouteConfig>,
}

/// A certificate chain and its key, as PEM files.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateConfig {
    /// What messages call it: the Secret's name.
    pub name: String,
    /// File with the chain, leaf first.
    pub certificate: PathBuf,
    /// File with the private key.
    pub key: PathBuf,
}

/// A path prefix and the backend that serves it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteConfig {
    /// Path prefix, compared segment by segment.
    pub path: String,
    /// Where requests go.
    pub backend: Backend,
}

/// Limits on every phase of a connection (G1 of the requirements). None can be switched off.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// From accepting a connection to the end of its TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a request's head to its last.
    pub request_head: Duration,
    /// Between two parts of a request's body.
    pub body_idle: Duration,
    /// How long an HTTP/1 connection may lie idle between requests.
    pub keep_alive: Duration,
    /// How long an HTTP/2 connection without streams may lie idle.
    pub http2_idle: Duration,
    /// How long a client may refuse to take bytes.
    pub write_stall: Duration,
    /// Connecting to a backend.
    pub connect: Duration,
    /// From sending a request to a backend to the head of its response.
    pub response_head: Duration,
    /// Between two parts of a response's body.
    pub response_idle: Duration,
}

impl ProxyConfig {
    /// Reads a configuration file, refusing it whole when anything is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = from_yaml(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |field, of: &str, why| {
            Err(ConfigError::Value {
                field,
                of: of.into(),
                why,
            })
        };
        if self.version != VERSION {
            return Err(ConfigError::Version(self.version));
        }
        let week = Duration::from_secs(7 * 86_400);
        if self.tickets.lifetime > week || self.tickets.max_age > week {
            return value("tickets", &self.farm, "lifetime and maxAge must be at most 168h");
        }
        if let Some(field) = self.timeouts.zero() {
            return value(field, &self.farm, "must not be zero");
        }
        if let Some(cache) = &self.session_cache
            && (cache.lookup_timeout.as_std().is_zero() || cache.lookup_timeout > LONGEST_LOOKUP)
        {
            return value("lookupTimeout", &self.farm, "must be between 1ms and 50ms");
        }
        if self.hosts.is_empty() {
            return value("hosts", &self.farm, "must have at least one entry");
        }
        let mut seen = BTreeSet::new();
        for host in &self.hosts {
            if !seen.insert(format!("host {}", host.name)) {
                return Err(ConfigError::Conflict(host.name.clone()));
            }
            if host.hostnames.is_empty() || host.certificates.is_empty() || host.routes.is_empty() {
                return value(
                    "host",
                    &host.name,
                    "hostnames, certificates and routes must not be empty",
                );
            }
            if host.ticket_kind == TicketKind::SingleUse && self.session_cache.is_none() {
                return value("ticketKind", &host.name, "SingleUse requires sessionCache");
            }
            for hostname in &host.hostnames {
                let name = hostname.strip_prefix("*.").unwrap_or(hostname);
                let usable = DnsName::try_from(name).is_ok() && !name.ends_with('.');
                if !usable || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    return value(
                        "hostnames",
                        hostname,
                        "must be a lower-case DNS name, optionally prefixed with *.",
                    );
                }
                if !seen.insert(hostname.clone()) {
                    return Err(ConfigError::Conflict(hostname.clone()));
                }
            }
            if let Some(route) = host.routes.iter().find(|route| !route.path.starts_with('/')) {
                return value("path", &route.path, "must begin with /");
            }
        }
        Ok(())
    }
}

/// Longest time for which a handshake may wait for the session cache (E6 of the requirements).
const LONGEST_LOOKUP: Duration = Duration::from_millis(50);

fn default_lookup_timeout() -> Duration {
    Duration::from_millis(5)
}

impl Timeouts {
    /// A limit that is zero, if any is: nothing could ever be in time.
    fn zero(&self) -> Option<&'static str> {
        let limits = [
            ("handshake", self.handshake),
            ("requestHead", self.request_head),
            ("bodyIdle", self.body_idle),
            ("keepAlive", self.keep_alive),
            ("http2Idle", self.http2_idle),
            ("writeStall", self.write_stall),
            ("connect", self.connect),
            ("responseHead", self.response_head),
            ("responseIdle", self.response_idle),
        ];
        let zero = limits.into_iter().find(|(_, limit)| limit.as_std().is_zero());
        zero.map(|(name, _)| name)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            request_head: Duration::from_secs(10),
            body_idle: Duration::from_secs(30),
            keep_alive: Duration::from_secs(60),
            http2_idle: Duration::from_secs(120),
            write_stall: Duration::from_secs(30),
            connect: Duration::from_secs(2),
            response_head: Duration::from_secs(60),
            response_idle: Duration::from_secs(300),
        }
    }
}

#[cfg(test)]
mod tests;
