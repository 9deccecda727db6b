//! The configuration file of a session cache, read at the start.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::backend::Backend;
use super::file::{ConfigError, VERSION, from_yaml};
use crate::api::Duration;

/// Configuration of one `tlsfarm cache` process.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheConfig {
    /// Format of this file: 1.
    pub version: u32,
    /// Listen addresses.
    pub listen: CacheListen,
    /// Memory limit of the entries, in MiB.
    #[serde(rename = "sizeMiB")]
    pub size_mib: u32,
    /// Lifetime of entries stored without one.
    #[serde(default = "default_lifetime")]
    pub default_lifetime: Duration,
    /// Whether values are encrypted in memory, with a key that never leaves the process. Proxies of a farm encrypt
    /// sessions before they store them, so sidecars need not; other servers store sessions in plain text.
    #[serde(default = "yes")]
    pub encrypt_values: bool,
    /// File with the password that clients must send (`AUTH`); no authentication if absent. Peers send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PathBuf>,
    /// The peer group; without one, this cache owns every key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Peers>,
}

/// Listen addresses. At least one of `unix` and `tcp` is required.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheListen {
    /// Unix socket for clients. A stale socket is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix: Option<PathBuf>,
    /// TCP address for clients, without TLS: use a loopback address, or one that a network policy protects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<SocketAddr>,
    /// Listen address for `/healthz`, `/readyz` and `/metrics`.
    pub admin: SocketAddr,
}

/// The peer group: caches that distribute the entries among each other, over mutual TLS.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peers {
    /// Listen address for peers. It identifies this cache in a static list of members; otherwise `--pod-ip` and the
    /// port do.
    pub listen: SocketAddr,
    /// All caches, including this one.
    pub members: Backend,
    /// DNS name that every peer's certificate must be valid for.
    pub server_name: String,
    /// File with this cache's certificate chain, leaf certificate first. It is presented in both directions. This file
    /// and the two below are reloaded when they change.
    pub certificate: PathBuf,
    /// File with its private key.
    pub key: PathBuf,
    /// File with the CA certificates to verify peers against.
    pub authority: PathBuf,
    /// Time limit for a request to the owner of a key.
    #[serde(default = "default_peer_timeout")]
    pub timeout: Duration,
}

impl CacheConfig {
    /// Parses and validates a configuration file. Fails if any value is invalid.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = from_yaml(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |field, why| {
            let of = "cache".into();
            Err(ConfigError::Value { field, of, why })
        };
        if self.version != VERSION {
            return Err(ConfigError::Version(self.version));
        }
        if self.listen.unix.is_none() && self.listen.tcp.is_none() {
            return value("listen", "unix or tcp must be set");
        }
        if self.size_mib == 0 {
            return value("sizeMiB", "must be at least 1");
        }
        if self.default_lifetime.as_std().is_zero() {
            return value("defaultLifetime", "must not be zero");
        }
        if self
            .peers
            .as_ref()
            .is_some_and(|peers| peers.timeout.as_std().is_zero())
        {
            return value("timeout", "must not be zero");
        }
        Ok(())
    }
}

fn default_lifetime() -> Duration {
    Duration::from_secs(3600)
}

fn default_peer_timeout() -> Duration {
    Duration::from_millis(20)
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "
version: 1
listen: {unix: /run/tlsfarm/cache.sock, tcp: '127.0.0.1:6379', admin: '127.0.0.1:9091'}
sizeMiB: 64
peers:
  listen: '[::]:7443'
  members: {service: {name: shop-cache, port: 7443, portName: peers}}
  serverName: cache.shop.web.tlsfarm
  certificate: tls.crt
  key: tls.key
  authority: ca.crt
";

    #[test]
    fn a_hand_written_file_is_read_and_survives_json() {
        let config = CacheConfig::parse(EXAMPLE).expect("valid");
        assert!(config.encrypt_values, "the safe choice is the default");
        let json = serde_json::to_string(&config).expect("serializes");
        assert_eq!(CacheConfig::parse(&json).expect("valid"), config);
    }

    #[test]
    fn faults_are_named() {
        let refused = |from: &str, to: &str| {
            CacheConfig::parse(&EXAMPLE.replacen(from, to, 1))
                .expect_err("refused")
                .to_string()
        };
        assert!(refused("version: 1", "version: 9").contains("version 9"));
        assert!(refused("sizeMiB: 64", "sizeMiB: 0").contains("sizeMiB"));
        assert!(
            refused("unix: /run/tlsfarm/cache.sock, tcp: '127.0.0.1:6379', ", "").contains("unix or tcp")
        );
        assert!(refused("sizeMiB", "size").contains("size"));
    }

    #[test]
    fn one_listen_address_is_enough_and_limits_must_not_be_zero() {
        let changed = |from: &str, to: &str| {
            assert!(EXAMPLE.contains(from), "{from}");
            CacheConfig::parse(&EXAMPLE.replacen(from, to, 1)).map_err(|error| error.to_string())
        };
        assert!(changed("unix: /run/tlsfarm/cache.sock, ", "").is_ok());
        assert!(changed("tcp: '127.0.0.1:6379', ", "").is_ok());
        assert!(changed("sizeMiB: 64", "sizeMiB: 1").is_ok());
        let refusal = changed("sizeMiB: 64", "sizeMiB: 64\ndefaultLifetime: 0s").expect_err("refused");
        assert!(refusal.contains("defaultLifetime"), "{refusal}");
        let refusal = changed("serverName:", "timeout: 0s\n  serverName:").expect_err("refused");
        assert!(refusal.contains("must not be zero"), "{refusal}");
    }

    #[test]
    fn omitted_fields_have_safe_defaults() {
        let config = CacheConfig::parse(EXAMPLE).expect("valid");
        assert_eq!(config.default_lifetime, Duration::from_secs(3600));
        assert_eq!(
            config.peers.map(|peers| peers.timeout),
            Some(Duration::from_millis(20))
        );
    }
}
