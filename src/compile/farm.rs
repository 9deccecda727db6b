//! Compiles a [`TLSFarm`](crate::api::TLSFarm) into the configuration of its proxies and of their cache sidecars.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::mounts::{
    CACHE_CERTIFICATE_DIR, CACHE_SOCKET, REDIS_CREDENTIALS_DIR, REDIS_TLS_DIR, RING_DIR, RING_KEY,
    certificate_dir,
};
use crate::api::{self, Duration, HttpMode, SessionCacheMode, TLSFarmSpec, Tls12Tickets, ports};
use crate::config::{
    Backend, CacheConfig, CacheListen, CacheServer, CertificateConfig, HostConfig, Listen, Peers,
    ProxyConfig, RedisConfig, RedisTlsConfig, RouteConfig, ServicePort, SessionCacheConfig, TicketConfig,
    Timeouts, VERSION,
};

/// Lifetime of entries stored without one. Proxies always set one.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

/// EndpointSlice port names of the backends of a spec whose Service and port exist.
pub type ResolvedPorts = BTreeMap<api::BackendRef, String>;

/// Builds the configuration of the proxies of `farm`, given as `namespace/name`.
pub fn proxy_config(farm: &str, spec: &TLSFarmSpec, resolved: &ResolvedPorts) -> ProxyConfig {
    let tickets = &spec.resumption.tickets;
    let any = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    ProxyConfig {
        version: VERSION,
        farm: farm.to_owned(),
        listen: Listen {
            https: any(ports::HTTPS.1),
            http: (spec.http.mode != HttpMode::Disabled).then(|| any(ports::HTTP.1)),
            admin: any(ports::ADMIN.1),
        },
        ring: Path::new(RING_DIR).join(RING_KEY),
        tickets: TicketConfig {
            lifetime: tickets.lifetime,
            max_age: tickets.max_age,
            tls12_lifetime: match tickets.tls12 {
                Tls12Tickets::Enabled => Some(tls12_lifetime(tickets)),
                Tls12Tickets::Disabled => None,
            },
            rotation_interval: Some(tickets.rotation_interval),
        },
        session_cache: session_cache(spec),
        http: spec.http.mode,
        hosts: spec
            .hosts
            .iter()
            .map(|host| host_config(host, resolved))
            .collect(),
        trusted_proxies: spec.proxy.trusted_proxies.clone(),
        drain_period: spec.proxy.drain_period,
        timeouts: Timeouts::default(),
    }
}

/// Builds the configuration of the cache sidecars; None if the farm has none. The caches discover each other through
/// the Service `service`, and their certificate is issued for `server_name`.
pub fn cache_config(spec: &TLSFarmSpec, service: &str, server_name: &str) -> Option<CacheConfig> {
    let cache = sidecar(spec)?;
    let any = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    Some(CacheConfig {
        version: VERSION,
        listen: CacheListen {
            unix: Some(CACHE_SOCKET.into()),
            tcp: None,
            admin: any(ports::CACHE_ADMIN.1),
        },
        size_mib: u32::try_from(cache.size_mib).unwrap_or(1),
        default_lifetime: DEFAULT_LIFETIME,
        // Proxies seal what they store.
        encrypt_values: false,
        password: None,
        peers: Some(Peers {
            listen: any(ports::CACHE_PEERS.1),
            members: Backend::Service(ServicePort {
                name: service.to_owned(),
                port: ports::CACHE_PEERS.1,
                port_name: Some(ports::CACHE_PEERS.0.into()),
            }),
            server_name: server_name.to_owned(),
            certificate: file(CACHE_CERTIFICATE_DIR, "tls.crt"),
            key: file(CACHE_CERTIFICATE_DIR, "tls.key"),
            authority: file(CACHE_CERTIFICATE_DIR, "ca.crt"),
            timeout: peer_timeout(cache.lookup_timeout),
        }),
    })
}

/// The session cache settings of a farm in mode Sidecar; None in other modes.
pub fn sidecar(spec: &TLSFarmSpec) -> Option<&api::SessionCacheSpec> {
    let cache = &spec.resumption.session_cache;
    (cache.mode == SessionCacheMode::Sidecar).then_some(cache)
}

/// Lifetime of TLS 1.2 sessions: at most two rotation intervals, because tickets and entries contain the session's own
/// keys.
fn tls12_lifetime(tickets: &api::TicketsSpec) -> Duration {
    let two_intervals = Duration::from_secs(2 * tickets.rotation_interval.as_secs());
    tickets.lifetime.min(two_intervals)
}

fn session_cache(spec: &TLSFarmSpec) -> Option<SessionCacheConfig> {
    let cache = &spec.resumption.session_cache;
    let server = match (cache.mode, &cache.redis) {
        (SessionCacheMode::Sidecar, _) => CacheServer::Unix(CACHE_SOCKET.into()),
        (SessionCacheMode::Redis, Some(redis)) => CacheServer::Redis(redis_server(redis)),
        // The schema refuses Redis without a server.
        (SessionCacheMode::Redis, None) | (SessionCacheMode::Disabled, _) => return None,
    };
    Some(SessionCacheConfig {
        server,
        session_id_lifetime: tls12_lifetime(&spec.resumption.tickets),
        lookup_timeout: cache.lookup_timeout,
    })
}

fn host_config(host: &api::HostSpec, resolved: &ResolvedPorts) -> HostConfig {
    HostConfig {
        name: host.name.clone(),
        hostnames: host.hostnames.clone(),
        min_version: host.tls.min_version,
        ticket_kind: host.tls.tickets.kind,
        certificates: host
            .tls
            .certificate_refs
            .iter()
            .map(|reference| CertificateConfig {
                name: reference.name.clone(),
                certificate: certificate_dir(&reference.name).join("tls.crt"),
                key: certificate_dir(&reference.name).join("tls.key"),
            })
            .collect(),
        routes: host
            .routes
            .iter()
            .map(|route| RouteConfig {
                path: route.path.clone(),
                backend: Backend::Service(ServicePort {
                    name: route.backend.service.clone(),
                    port: route.backend.port,
                    port_name: resolved.get(&route.backend).cloned(),
                }),
            })
            .collect(),
    }
}

fn redis_server(redis: &api::RedisSpec) -> RedisConfig {
    let credential = |key| {
        let set = redis.credentials_secret_ref.is_some();
        set.then(|| file(REDIS_CREDENTIALS_DIR, key))
    };
    RedisConfig {
        address: redis.address.clone(),
        tls: redis.tls.as_ref().map(|tls| RedisTlsConfig {
            authority: file(REDIS_TLS_DIR, "ca.crt"),
            server_name: tls.server_name.clone(),
            certificate: Some(file(REDIS_TLS_DIR, "tls.crt")),
            key: Some(file(REDIS_TLS_DIR, "tls.key")),
        }),
        username: credential("username"),
        password: credential("password"),
    }
}

/// Time limit for requests to peers: slightly shorter than that of the proxy, so that a slow owner does not make the
/// proxy's own cache time out.
fn peer_timeout(lookup: Duration) -> Duration {
    let micros = lookup.as_std().as_micros() * 4 / 5;
    Duration::from_millis(u64::try_from(micros / 1000).unwrap_or(u64::MAX).max(1))
}

fn file(dir: &str, name: &str) -> PathBuf {
    Path::new(dir).join(name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config_of(change: impl FnOnce(&mut Value)) -> ProxyConfig {
        let mut spec = json!({
            "hosts": [{
                "name": "shop",
                "hostnames": ["shop.example.com"],
                "tls": {"certificateRefs": [{"name": "shop-tls"}]},
                "routes": [{"path": "/", "backend": {"service": "web", "port": 8080}}],
            }],
        });
        change(&mut spec);
        let spec = serde_json::from_value(spec).expect("a spec");
        proxy_config("web/shop", &spec, &ResolvedPorts::new())
    }

    #[test]
    fn tickets_of_tls_1_2_live_for_two_rotations_at_most() {
        let lifetime = |tickets: Value| {
            let config = config_of(|spec| spec["resumption"] = json!({"tickets": tickets}));
            config.tickets.tls12_lifetime.map(Duration::as_secs)
        };
        assert_eq!(
            lifetime(json!({"rotationInterval": "1h", "lifetime": "4h"})),
            Some(7200)
        );
        assert_eq!(
            lifetime(json!({"rotationInterval": "24h", "lifetime": "4h"})),
            Some(4 * 3600)
        );
        assert_eq!(lifetime(json!({"tls12": "Disabled"})), None);
    }

    #[test]
    fn the_proxy_configuration_contains_the_rotation_interval() {
        let config = config_of(|spec| spec["resumption"] = json!({"tickets": {"rotationInterval": "6h"}}));
        assert_eq!(
            config.tickets.rotation_interval,
            Some(Duration::from_secs(6 * 3600))
        );
    }

    #[test]
    fn plain_http_is_not_listened_on_when_disabled() {
        let disabled = config_of(|spec| spec["http"] = json!({"mode": "Disabled"}));
        assert_eq!(disabled.listen.http, None);
        assert!(config_of(|_| {}).listen.http.is_some());
    }
}
