//! The ConfigMap with the configuration files of proxies and caches.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde::Serialize;

use crate::compile::mounts::{CACHE_CONFIG_KEY, CONFIG_KEY};
use crate::operator::names::FarmId;

/// Serializes a configuration file as indented JSON.
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::{Backend, ProxyConfig};
    use crate::operator::build::tests::{built, spec};

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
}
