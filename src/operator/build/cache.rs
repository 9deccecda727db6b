//! Objects for the session cache: the sidecars, their files and the Service for peer discovery, or the credentials for
//! a Redis server.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, ObjectFieldSelector, ResourceRequirements,
    Service, ServicePort, ServiceSpec, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::containers::{ContainerCommon, container_ports, mount, probe, restricted, secret_volume};
use crate::api::{self, SessionCacheMode, TLSFarm, ports};
use crate::compile::farm::sidecar;
use crate::compile::mounts::{
    CACHE_CERTIFICATE_DIR, CACHE_CONFIG_KEY, CONFIG_DIR, REDIS_CREDENTIALS_DIR, REDIS_TLS_DIR, RUN_DIR,
};
use crate::operator::names::FarmId;

const CONTAINER: &str = "cache";

/// Parts of the pod template for the session cache.
#[derive(Default)]
pub(super) struct PodParts {
    pub(super) sidecar: Option<Container>,
    pub(super) volumes: Vec<Volume>,
    /// Of the proxy's container.
    pub(super) mounts: Vec<VolumeMount>,
}

/// Builds the headless Service for peer discovery; None without sidecars.
///
/// It contains ready pods only, so that the cache of a draining proxy leaves the peer group.
pub(super) fn service(farm: &TLSFarm, id: &FarmId) -> Option<Service> {
    sidecar(&farm.spec)?;
    let (name, number) = ports::CACHE_PEERS;
    Some(Service {
        metadata: id.metadata(id.cache_name()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            selector: Some(id.pod_labels()),
            ports: Some(vec![ServicePort {
                name: Some(name.into()),
                port: i32::from(number),
                target_port: Some(IntOrString::String(name.into())),
                protocol: Some("TCP".into()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    })
}

/// Builds the parts of the pod template.
pub(super) fn pod_parts(farm: &TLSFarm, id: &FarmId, common: &ContainerCommon<'_>) -> PodParts {
    let cache = &farm.spec.resumption.session_cache;
    match (cache.mode, &cache.redis) {
        (SessionCacheMode::Sidecar, _) => PodParts {
            sidecar: Some(container(cache, common)),
            volumes: vec![
                Volume {
                    name: "run".into(),
                    empty_dir: Some(EmptyDirVolumeSource {
                        medium: Some("Memory".into()),
                        size_limit: Some(Quantity("1Mi".into())),
                    }),
                    ..Volume::default()
                },
                secret_volume("cache-tls".into(), id.cache_tls_name(), false),
            ],
            mounts: vec![mount("run", RUN_DIR.into())],
        },
        (SessionCacheMode::Redis, Some(redis)) => {
            // Optional: handshakes must not depend on them.
            let secrets = [
                (
                    "redis-tls",
                    REDIS_TLS_DIR,
                    redis.tls.as_ref().map(|tls| &tls.secret_ref),
                ),
                (
                    "redis-credentials",
                    REDIS_CREDENTIALS_DIR,
                    redis.credentials_secret_ref.as_ref(),
                ),
            ];
            let mut parts = PodParts::default();
            for (volume, dir, reference) in secrets {
                if let Some(reference) = reference {
                    parts
                        .volumes
                        .push(secret_volume(volume.into(), reference.name.clone(), true));
                    parts.mounts.push(mount(volume, dir.into()));
                }
            }
            parts
        }
        (SessionCacheMode::Redis, None) | (SessionCacheMode::Disabled, _) => PodParts::default(),
    }
}

/// A native sidecar: it starts before the proxy and stops after it.
///
/// It has no readiness probe: a failing cache causes full handshakes, and must not make the proxy unready.
fn container(cache: &api::SessionCacheSpec, common: &ContainerCommon<'_>) -> Container {
    let pod_ip = EnvVar {
        name: "POD_IP".into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: "status.podIP".into(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    Container {
        name: CONTAINER.into(),
        image: Some(common.image.into()),
        image_pull_policy: Some(common.pull_policy.into()),
        restart_policy: Some("Always".into()),
        args: Some(vec![
            "cache".into(),
            "--config".into(),
            format!("{CONFIG_DIR}/{CACHE_CONFIG_KEY}"),
        ]),
        env: Some([&[pod_ip], common.env.as_slice()].concat()),
        ports: Some(container_ports(&[ports::CACHE_PEERS, ports::CACHE_ADMIN])),
        volume_mounts: Some(vec![
            mount("config", CONFIG_DIR.into()),
            mount("cache-tls", CACHE_CERTIFICATE_DIR.into()),
            VolumeMount {
                name: "run".into(),
                mount_path: RUN_DIR.into(),
                ..VolumeMount::default()
            },
        ]),
        resources: Some(
            cache
                .resources
                .clone()
                .unwrap_or_else(|| resources(cache.size_mib)),
        ),
        liveness_probe: Some(probe(ports::CACHE_ADMIN.0, "/healthz", 10, 3)),
        security_context: Some(restricted()),
        ..Container::default()
    }
}

/// Default resources of a sidecar: the allocator may need as much memory again as the entries.
fn resources(size_mib: i32) -> ResourceRequirements {
    let limit = format!("{}Mi", 2 * i64::from(size_mib) + 64);
    ResourceRequirements {
        requests: Some(BTreeMap::from([
            ("cpu".into(), Quantity("50m".into())),
            ("memory".into(), Quantity("32Mi".into())),
        ])),
        limits: Some(BTreeMap::from([("memory".into(), Quantity(limit))])),
        ..ResourceRequirements::default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::api::Duration;
    use crate::compile::mounts::RING_DIR;
    use crate::config::{Backend, CacheConfig, CacheServer, ProxyConfig};
    use crate::operator::build::tests::{built, spec};

    type Objects = BTreeMap<(String, String), Value>;

    fn built_with(cache: Value) -> Objects {
        let mut changed = spec();
        changed["resumption"] = json!({"sessionCache": cache});
        built(changed)
    }

    fn pod(objects: &Objects) -> &Value {
        &objects[&("Deployment".into(), "shop-proxy".into())]["spec"]["template"]
    }

    fn text<'a>(objects: &'a Objects, key: &str) -> Option<&'a str> {
        objects[&("ConfigMap".into(), "shop-proxy".into())]["data"][key].as_str()
    }

    fn volumes(objects: &Objects) -> Vec<String> {
        let volumes = pod(objects)["spec"]["volumes"].as_array().expect("volumes");
        let secrets = volumes
            .iter()
            .filter_map(|volume| volume["secret"]["secretName"].as_str());
        secrets.map(str::to_owned).collect()
    }

    #[test]
    fn sidecars_and_proxies_accept_what_they_are_told_and_meet_at_one_socket() {
        let objects = built_with(json!({"mode": "Sidecar", "sizeMiB": 7, "lookupTimeout": "10ms"}));
        let cache = CacheConfig::parse(text(&objects, "cache.json").expect("there")).expect("valid");
        let proxy = ProxyConfig::parse(text(&objects, "config.json").expect("there")).expect("valid");
        let used = proxy.session_cache.expect("used");
        assert_eq!(
            used.server,
            CacheServer::Unix(cache.listen.unix.expect("listens"))
        );
        assert_eq!(used.session_id_lifetime, Duration::from_secs(7200));
        assert_eq!(cache.size_mib, 7);
        let peers = cache.peers.expect("it has peers");
        assert_eq!(peers.timeout, Duration::from_millis(8));
        assert_eq!(peers.server_name, "cache.shop.web.tlsfarm");
        let Backend::Service(members) = peers.members else {
            panic!("not found through a Service")
        };
        let service = &objects[&("Service".into(), members.name)]["spec"];
        assert_eq!(service["clusterIP"], "None");
        assert_eq!(service["ports"][0]["name"].as_str(), members.port_name.as_deref());
        assert_eq!(service["publishNotReadyAddresses"], Value::Null);
    }

    #[test]
    fn the_sidecar_is_restricted_alone_has_the_key_and_is_never_waited_for() {
        let objects = built_with(json!({"mode": "Sidecar"}));
        let spec = &pod(&objects)["spec"];
        let sidecar = &spec["initContainers"][0];
        assert_eq!(
            (&sidecar["name"], &sidecar["restartPolicy"]),
            (&json!("cache"), &json!("Always"))
        );
        assert_eq!(sidecar["image"], spec["containers"][0]["image"]);
        assert_eq!(
            sidecar["securityContext"],
            spec["containers"][0]["securityContext"]
        );
        assert_eq!(sidecar["readinessProbe"], Value::Null);
        assert_eq!(sidecar["resources"]["limits"]["memory"], "192Mi");
        let mounted = |container: &Value, path: &str| {
            let mounts = container["volumeMounts"].as_array().expect("mounts");
            mounts.iter().any(|mount| mount["mountPath"] == path)
        };
        assert!(mounted(sidecar, CACHE_CERTIFICATE_DIR) && mounted(sidecar, RUN_DIR));
        let proxy = &spec["containers"][0];
        assert!(!mounted(proxy, CACHE_CERTIFICATE_DIR) && mounted(proxy, RUN_DIR));
        assert!(!mounted(sidecar, RING_DIR));
        assert!(!volumes(&objects).contains(&"shop-cache-ca".to_owned()));
    }

    #[test]
    fn what_a_sidecar_reads_at_its_start_restarts_it_and_nothing_else_does() {
        let template = |cache| pod(&built_with(cache)).clone();
        let before = template(json!({"mode": "Sidecar"}));
        assert_ne!(before, template(json!({"mode": "Sidecar", "sizeMiB": 65})));
        assert_ne!(
            before,
            template(json!({"mode": "Sidecar", "lookupTimeout": "20ms"}))
        );
        let mut rotating = spec();
        rotating["resumption"] =
            json!({"sessionCache": {"mode": "Sidecar"}, "tickets": {"rotationInterval": "5m"}});
        assert_eq!(before, *pod(&built(rotating)));
    }

    #[test]
    fn a_redis_needs_no_sidecar_and_its_secrets_keep_no_pod_from_starting() {
        let objects = built_with(json!({"mode": "Redis", "redis": {
            "address": "redis.web.svc:6379",
            "tls": {"secretRef": {"name": "redis-ca"}},
            "credentialsSecretRef": {"name": "redis-login"},
        }}));
        assert_eq!(pod(&objects)["spec"]["initContainers"], Value::Null);
        assert_eq!(text(&objects, "cache.json"), None);
        assert!(!objects.contains_key(&("Service".into(), "shop-cache".into())));
        let volumes = pod(&objects)["spec"]["volumes"]
            .as_array()
            .expect("volumes")
            .clone();
        for secret in ["redis-ca", "redis-login"] {
            let volume = volumes
                .iter()
                .find(|volume| volume["secret"]["secretName"] == secret);
            assert_eq!(volume.expect("mounted")["secret"]["optional"], true);
        }
        let proxy = ProxyConfig::parse(text(&objects, "config.json").expect("there")).expect("valid");
        let CacheServer::Redis(redis) = proxy.session_cache.expect("used").server else {
            panic!("not a Redis")
        };
        assert_eq!(
            redis.password,
            Some(Path::new(REDIS_CREDENTIALS_DIR).join("password"))
        );
        assert_eq!(
            redis.tls.expect("TLS").authority,
            Path::new(REDIS_TLS_DIR).join("ca.crt")
        );
    }

    #[test]
    fn without_a_cache_nothing_of_it_is_there() {
        let objects = built(spec());
        assert_eq!(pod(&objects)["spec"]["initContainers"], Value::Null);
        assert_eq!(pod(&objects)["metadata"]["annotations"], Value::Null);
        assert_eq!(volumes(&objects), ["shop-ring", "shop-tls"]);
        assert_eq!(objects.len(), 8);
    }
}
