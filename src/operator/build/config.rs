//! The compiled configuration of the proxies and the ConfigMap that carries it.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::ConfigMap;

use serde::Serialize;

use super::{ResolvedPorts, cache};
use crate::api::{self, Duration, HttpMode, TLSFarm, Tls12Tickets, ports};
use crate::config::{
    Backend, Certificate, Host, Listen, ProxyConfig, Route, ServicePort, Tickets, Timeouts, VERSION,
};
use crate::operator::names::FarmId;

/// Key of the ConfigMap, and name of the file in the proxies.
pub(in crate::operator) const CONFIG_KEY: &str = "config.json";

/// Key of the ConfigMap, and name of the file in the sidecars.
pub(super) const CACHE_CONFIG_KEY: &str = "cache.json";

/// Key of the ring Secret, and name of the file in the proxies.
pub(in crate::operator) const RING_KEY: &str = "ring.json";

pub(super) const CONFIG_DIR: &str = "/etc/tlsfarm/config";
pub(super) const RING_DIR: &str = "/etc/tlsfarm/ring";
pub(super) const CERTIFICATE_DIR: &str = "/etc/tlsfarm/certificates";

pub(super) fn compile(farm: &TLSFarm, id: &FarmId, resolved: &ResolvedPorts) -> ProxyConfig {
    let spec = &farm.spec;
    let tickets = &spec.resumption.tickets;
    let any = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    ProxyConfig {
        version: VERSION,
        farm: format!("{}/{}", id.namespace(), id.name()),
        listen: Listen {
            https: any(ports::HTTPS.1),
            http: (spec.http.mode != HttpMode::Disabled).then(|| any(ports::HTTP.1)),
            admin: any(ports::ADMIN.1),
        },
        ring: Path::new(RING_DIR).join(RING_KEY),
        tickets: Tickets {
            lifetime: tickets.lifetime,
            max_age: tickets.max_age,
            tls12_lifetime: match tickets.tls12 {
                Tls12Tickets::Enabled => Some(tls12_lifetime(tickets)),
                Tls12Tickets::Disabled => None,
            },
        },
        session_cache: cache::of_proxies(farm),
        http: spec.http.mode,
        hosts: spec
            .hosts
            .iter()
            .map(|host| compile_host(host, resolved))
            .collect(),
        trusted_proxies: spec.proxy.trusted_proxies.clone(),
        drain_period: spec.proxy.drain_period,
        timeouts: Timeouts::default(),
    }
}

/// How long sessions of TLS 1.2 may be resumed: their own keys are what is kept, so two rotation intervals at most.
pub(super) fn tls12_lifetime(tickets: &api::Tickets) -> Duration {
    let two_intervals = Duration::from_secs(2 * tickets.rotation_interval.as_secs());
    tickets.lifetime.min(two_intervals)
}

/// The file's text, for people too.
pub(super) fn file(config: &impl Serialize) -> String {
    serde_json::to_string_pretty(config).expect("the configuration has string keys only")
}

pub(super) fn config_map(id: &FarmId, file: String, cache_file: Option<String>) -> ConfigMap {
    let mut files = BTreeMap::from([(CONFIG_KEY.to_owned(), file)]);
    files.extend(cache_file.map(|file| (CACHE_CONFIG_KEY.to_owned(), file)));
    ConfigMap {
        metadata: id.metadata(id.proxy_name()),
        data: Some(files),
        ..ConfigMap::default()
    }
}

/// Where the files of a certificate Secret are mounted.
pub(super) fn certificate_dir(secret: &str) -> PathBuf {
    Path::new(CERTIFICATE_DIR).join(secret)
}

fn compile_host(host: &api::Host, resolved: &ResolvedPorts) -> Host {
    Host {
        name: host.name.clone(),
        hostnames: host.hostnames.clone(),
        min_version: host.tls.min_version,
        ticket_kind: host.tls.tickets.kind,
        certificates: host
            .tls
            .certificate_refs
            .iter()
            .map(|reference| Certificate {
                name: reference.name.clone(),
                certificate: certificate_dir(&reference.name).join("tls.crt"),
                key: certificate_dir(&reference.name).join("tls.key"),
            })
            .collect(),
        routes: host
            .routes
            .iter()
            .map(|route| Route {
                path: route.path.clone(),
                backend: Backend::Service(ServicePort {
                    name: route.backend.service.clone(),
                    port: route.backend.port,
                    port_name: resolved.get(&route.backend).cloned().flatten(),
                }),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{built, spec};
    use super::*;

    fn config_of(spec: Value) -> ProxyConfig {
        let objects = built(spec);
        let config_map = &objects[&("ConfigMap".into(), "shop-proxy".into())];
        ProxyConfig::parse(config_map["data"][CONFIG_KEY].as_str().expect("text")).expect("proxies accept it")
    }

    #[test]
    fn proxies_accept_what_is_compiled_and_find_their_backends_by_port_name() {
        let mut two_routes = spec();
        two_routes["hosts"][0]["routes"] = json!([
            {"path": "/", "backend": {"service": "web", "port": 8080}},
            {"path": "/late", "backend": {"service": "missing", "port": 80}},
        ]);
        let config = config_of(two_routes);
        assert_eq!(config.farm, "web/shop");
        let port_names: Vec<_> = config.hosts[0]
            .routes
            .iter()
            .map(|route| match &route.backend {
                Backend::Service(service) => service.port_name.as_deref(),
                Backend::Addresses(_) => panic!("not a Service"),
            })
            .collect();
        assert_eq!(port_names, [Some("http"), None]);
    }

    #[test]
    fn tickets_of_tls_1_2_live_for_two_rotations_at_most() {
        let lifetime = |tickets: Value| {
            let mut changed = spec();
            changed["resumption"] = json!({"tickets": tickets});
            config_of(changed).tickets.tls12_lifetime.map(Duration::as_secs)
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
    fn plain_http_is_not_listened_on_when_disabled() {
        let mut disabled = spec();
        disabled["http"] = json!({"mode": "Disabled"});
        assert_eq!(config_of(disabled).listen.http, None);
        assert!(config_of(spec()).listen.http.is_some());
    }
}
