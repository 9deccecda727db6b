//! The configuration file of a proxy.
//!
//! In a cluster the operator writes it to a ConfigMap that the kubelet mounts; elsewhere it is written by hand, in YAML
//! or JSON. Proxies reload it when it changes, and keep the loaded configuration if the new one is invalid.

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
    /// Farm as `namespace/name`. Tickets are bound to it.
    pub farm: String,
    /// Listen addresses. A change requires a restart.
    pub listen: Listen,
    /// Path of the ring document.
    pub ring: PathBuf,
    /// Lifetimes of tickets.
    pub tickets: TicketConfig,
    /// The session cache. Without one, the proxy issues neither session ids nor single-use tickets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_cache: Option<SessionCacheConfig>,
    /// Handling of plain HTTP requests, if `listen.http` is set.
    #[serde(default)]
    pub http: HttpMode,
    /// Hosts to serve.
    pub hosts: Vec<HostConfig>,
    /// Networks of the proxies in front whose forwarding headers are trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<IpNet>,
    /// How long to keep serving after SIGTERM.
    pub drain_period: Duration,
    /// Time limits on every phase of a connection.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// Listen addresses.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listen {
    /// Listen address for TLS.
    pub https: SocketAddr,
    /// Listen address for plain HTTP; disabled if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<SocketAddr>,
    /// Listen address for `/healthz`, `/readyz`, `/status` and `/metrics`.
    pub admin: SocketAddr,
}

impl Listen {
    /// Whether two addresses are the same. Both sockets would be bound, and each would get half of the connections.
    fn has_duplicate(&self) -> bool {
        let addresses = [Some(self.https), self.http, Some(self.admin)];
        let mut fixed: Vec<SocketAddr> = addresses
            .into_iter()
            .flatten()
            .filter(|one| one.port() != 0)
            .collect();
        let all = fixed.len();
        fixed.sort_unstable();
        fixed.dedup();
        fixed.len() < all
    }
}

/// Lifetimes of tickets.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TicketConfig {
    /// Lifetime of one ticket.
    pub lifetime: Duration,
    /// Maximum time since the last full handshake for which a client can resume.
    pub max_age: Duration,
    /// Maximum lifetime of TLS 1.2 tickets; no TLS 1.2 tickets are issued if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls12_lifetime: Option<Duration>,
    /// Interval between rotations of the ring. Only a metric, from which an alert knows that a rotation is overdue: the
    /// proxy does not rotate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_interval: Option<Duration>,
}

/// Settings of the session cache that the proxy uses.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionCacheConfig {
    /// Address of the cache.
    pub server: CacheServer,
    /// Lifetime of TLS 1.2 session ids. The lifetime of TLS 1.3 tickets is `tickets.lifetime`.
    pub session_id_lifetime: Duration,
    /// Time limit for a lookup during a handshake, at most 50ms.
    #[serde(default = "default_lookup_timeout")]
    pub lookup_timeout: Duration,
}

/// Address of the session cache. Both kinds speak the Redis protocol.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum CacheServer {
    /// A `tlsfarm cache` sidecar, on this Unix socket.
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
    /// TLS settings; plain TCP if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTlsConfig>,
    /// File with the name of the ACL user. If the file is missing, the default user is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<PathBuf>,
    /// File with the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PathBuf>,
}

impl RedisConfig {
    fn has_port(&self) -> bool {
        let port = self.address.rsplit_once(':').map(|(_, port)| port);
        port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
    }
}

/// TLS settings for a Redis or Valkey server. The files are reloaded when they change.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisTlsConfig {
    /// File with the CA certificates to verify the server against.
    pub authority: PathBuf,
    /// DNS name that the server's certificate must be valid for. Default: the host of `address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// File with the client certificate, if the server requests one. If the file is missing, none is presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// File with its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// Host names that share one TLS policy and one set of routes.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostConfig {
    /// Name within the farm. Tickets are bound to it.
    pub name: String,
    /// Lower-case DNS names; a leading `*.` matches exactly one label.
    pub hostnames: Vec<String>,
    /// Minimum TLS version.
    #[serde(default)]
    pub min_version: MinVersion,
    /// Kind of TLS 1.3 tickets that the host issues.
    #[serde(default)]
    pub ticket_kind: TicketKind,
    /// Certificates in order of preference.
    pub certificates: Vec<CertificateConfig>,
    /// Routes in any order; the longest path prefix wins.
    pub routes: Vec<RouteConfig>,
}

/// A certificate chain and its private key, as PEM files.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateConfig {
    /// Name used in messages: that of the Secret.
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
    /// Backend that requests are forwarded to.
    pub backend: Backend,
}

/// Time limits on every phase of a connection (G1 of the requirements). None can be disabled.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// From accept to the end of the TLS handshake.
    pub handshake: Duration,
    /// From the first to the last byte of a request head.
    pub request_head: Duration,
    /// Between two reads of a request body.
    pub body_idle: Duration,
    /// Idle time of an HTTP/1 connection between requests.
    pub keep_alive: Duration,
    /// Idle time of an HTTP/2 connection without streams.
    pub http2_idle: Duration,
    /// How long a write to a client may be blocked.
    pub write_stall: Duration,
    /// Time limit for connecting to a backend.
    pub connect: Duration,
    /// From sending a request to a backend to the response head.
    pub response_head: Duration,
    /// Between two reads of a response body.
    pub response_idle: Duration,
}

impl ProxyConfig {
    /// Parses and validates a configuration file. Fails if any value is invalid.
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
        if let Some(SessionCacheConfig {
            server: CacheServer::Redis(redis),
            ..
        }) = &self.session_cache
            && !redis.has_port()
        {
            return value(
                "address",
                &redis.address,
                "must be a host and a port, such as redis.example.com:6379",
            );
        }
        if self.listen.has_duplicate() {
            return value(
                "listen",
                &self.farm,
                "https, http and admin must be different addresses",
            );
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
                if !is_hostname(hostname) {
                    return value("hostnames", hostname, HOSTNAME_RULE);
                }
                if !seen.insert(hostname.clone()) {
                    return Err(ConfigError::Conflict(hostname.clone()));
                }
            }
            if let Some(route) = host.routes.iter().find(|route| !route.path.starts_with('/')) {
                return value("path", &route.path, "must begin with /");
            }
            if let Some(route) = host.routes.iter().find(|route| route.path.contains('*')) {
                return value(
                    "path",
                    &route.path,
                    "must be a prefix without wildcards: write / for /*",
                );
            }
        }
        Ok(())
    }
}

/// What a host name must be.
pub const HOSTNAME_RULE: &str = "must be a lower-case DNS name, such as shop.example.com or *.example.com";

/// Whether a host can have this name: a lower-case DNS name, whose first label may be an asterisk.
pub fn is_hostname(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let usable = DnsName::try_from(name).is_ok() && !name.ends_with('.');
    usable && !name.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Maximum time for which a handshake may wait for the session cache (E6 of the requirements).
const LONGEST_LOOKUP: Duration = Duration::from_millis(50);

fn default_lookup_timeout() -> Duration {
    Duration::from_millis(5)
}

impl Timeouts {
    /// Returns the name of a time limit that is zero, if any.
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
