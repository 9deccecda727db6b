//! The Deployment of the proxies and its disruption budget.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile,
    TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::cache;
use super::containers::{
    ContainerCommon, LogSettings, container_ports, log_env, mount, probe, restricted, secret_volume,
};
use crate::api::{HttpMode, TLSFarm, ports};
use crate::compile::mounts::{CONFIG_DIR, CONFIG_KEY, RING_DIR, certificate_dir};
use crate::operator::names::FarmId;

/// Name of the proxy's container.
pub(in crate::operator) const CONTAINER: &str = "proxy";

/// User and group of the process, the image's `nonroot`.
const USER: i64 = 65_532;

/// `minReadySeconds`: how long a new proxy must be ready before an old one is stopped, so that every node knows its
/// address.
const SETTLING_SECONDS: i32 = 2;

/// Seconds of the termination grace period in addition to the drain period.
const GRACE_SECONDS: u64 = 5;

/// Annotation on the pods with the fingerprint of the cache configuration, which the sidecars read only at the start: a
/// change restarts the pods.
const CACHE_CONFIG_ANNOTATION: &str = "tlsfarm.dev/cache-config";

/// Settings of the pods from the operator's command line.
#[derive(Clone, Debug)]
pub(in crate::operator) struct PodDefaults {
    /// Proxy image for farms that do not set one.
    pub(in crate::operator) image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub(in crate::operator) pull_policy: String,
    /// Log settings for farms that do not set theirs.
    pub(in crate::operator) log: LogSettings,
}

pub(super) fn deployment(
    farm: &TLSFarm,
    id: &FarmId,
    defaults: &PodDefaults,
    cache_file: Option<&str>,
) -> Deployment {
    let annotations = cache_file.map(|file| {
        let fingerprint = crate::config::fingerprint(file.as_bytes());
        [(CACHE_CONFIG_ANNOTATION.to_owned(), fingerprint)].into()
    });
    Deployment {
        metadata: id.metadata(id.proxy_name()),
        spec: Some(DeploymentSpec {
            replicas: Some(farm.spec.replicas),
            selector: selector(id),
            min_ready_seconds: Some(SETTLING_SECONDS),
            revision_history_limit: Some(2),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::String("25%".into())),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(id.labels()),
                    annotations,
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(farm, id, defaults)),
            },
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

pub(super) fn disruption_budget(id: &FarmId) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: id.metadata(id.proxy_name()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(id)),
            // A proxy that does not serve is no reason to block a drain.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

fn pod(farm: &TLSFarm, id: &FarmId, defaults: &PodDefaults) -> PodSpec {
    let proxy = &farm.spec.proxy;
    let scheduling = &proxy.scheduling;
    let (mut volumes, mut mounts) = files(farm, id);
    let common = ContainerCommon {
        image: proxy.image.as_deref().unwrap_or(&defaults.image),
        pull_policy: &defaults.pull_policy,
        env: log_env(proxy.log.as_ref(), &defaults.log),
    };
    let cache = cache::pod_parts(farm, id, &common);
    volumes.extend(cache.volumes);
    mounts.extend(cache.mounts);
    PodSpec {
        init_containers: cache.sidecar.map(|sidecar| vec![sidecar]),
        containers: vec![container(farm, common, mounts)],
        volumes: Some(volumes),
        service_account_name: Some(id.proxy_name()),
        automount_service_account_token: Some(true),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: i64::try_from(proxy.drain_period.as_secs() + GRACE_SECONDS).ok(),
        topology_spread_constraints: Some(vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".into(),
            when_unsatisfiable: "ScheduleAnyway".into(),
            label_selector: Some(selector(id)),
            // During a rollout the old proxies do not count.
            match_label_keys: Some(vec!["pod-template-hash".into()]),
            ..TopologySpreadConstraint::default()
        }]),
        node_selector: (!scheduling.node_selector.is_empty()).then(|| scheduling.node_selector.clone()),
        tolerations: (!scheduling.tolerations.is_empty()).then(|| scheduling.tolerations.clone()),
        priority_class_name: scheduling.priority_class_name.clone(),
        ..PodSpec::default()
    }
}

fn container(farm: &TLSFarm, common: ContainerCommon<'_>, mounts: Vec<VolumeMount>) -> Container {
    let proxy = &farm.spec.proxy;
    let mut listened_on = vec![ports::HTTPS, ports::ADMIN];
    if farm.spec.http.mode != HttpMode::Disabled {
        listened_on.push(ports::HTTP);
    }
    Container {
        name: CONTAINER.into(),
        image: Some(common.image.into()),
        image_pull_policy: Some(common.pull_policy.into()),
        env: Some(common.env),
        args: Some(vec![
            "proxy".into(),
            "--config".into(),
            format!("{CONFIG_DIR}/{CONFIG_KEY}"),
        ]),
        ports: Some(container_ports(&listened_on)),
        volume_mounts: Some(mounts),
        resources: Some(proxy.resources.clone()),
        readiness_probe: Some(probe(ports::ADMIN.0, "/readyz", 1, 2)),
        liveness_probe: Some(probe(ports::ADMIN.0, "/healthz", 10, 3)),
        security_context: Some(restricted()),
        ..Container::default()
    }
}

/// The mounted files: configuration, ring and certificates.
///
/// The kubelet removes the files of a deleted source only if the source is optional. Certificates are optional, so that
/// a missing one does not prevent the pod from starting; the files of ring and configuration stay.
fn files(farm: &TLSFarm, id: &FarmId) -> (Vec<Volume>, Vec<VolumeMount>) {
    let mut volumes = vec![
        Volume {
            name: "config".into(),
            config_map: Some(ConfigMapVolumeSource {
                name: id.proxy_name(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        secret_volume("ring".into(), id.ring_name(), false),
    ];
    let mut mounts = vec![mount("config", CONFIG_DIR.into()), mount("ring", RING_DIR.into())];
    let secrets: BTreeSet<&str> = farm
        .spec
        .hosts
        .iter()
        .flat_map(|host| {
            host.tls
                .certificate_refs
                .iter()
                .map(|reference| reference.name.as_str())
        })
        .collect();
    for secret in secrets {
        // A Secret's name may be longer than a volume's, and the volume's must not depend on its place in the list.
        let volume = format!("certificate-{}", crate::config::fingerprint(secret.as_bytes()));
        mounts.push(mount(
            &volume,
            certificate_dir(secret).to_string_lossy().into_owned(),
        ));
        volumes.push(secret_volume(volume, secret.to_owned(), true));
    }
    (volumes, mounts)
}

fn selector(id: &FarmId) -> LabelSelector {
    LabelSelector {
        match_labels: Some(id.pod_labels()),
        ..LabelSelector::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::operator::build::tests::{built, spec};

    fn deployment_of(change: impl FnOnce(&mut Value)) -> Value {
        let mut changed = spec();
        change(&mut changed);
        built(changed)[&("Deployment".into(), "shop-proxy".into())].clone()
    }

    #[test]
    fn pods_meet_the_restricted_pod_security_level() {
        let pod = &deployment_of(|_| {})["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(container["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(container["readOnlyRootFilesystem"], true);
    }

    #[test]
    fn a_missing_certificate_does_not_keep_pods_from_starting_and_a_missing_ring_does() {
        let deployment = deployment_of(|_| {});
        let volumes = deployment["spec"]["template"]["spec"]["volumes"]
            .as_array()
            .expect("volumes")
            .clone();
        let optional = |secret: &str| {
            let volume = volumes
                .iter()
                .find(|volume| volume["secret"]["secretName"] == secret);
            volume.expect("mounted")["secret"]["optional"].clone()
        };
        assert_eq!(optional("shop-tls"), true);
        assert_eq!(optional("shop-ring"), false);
    }

    #[test]
    fn the_order_of_hosts_restarts_nothing_and_shared_certificates_are_mounted_once() {
        let host = |name: &str, secret: &str| {
            json!({
                "name": name,
                "hostnames": [format!("{name}.example.com")],
                "tls": {"certificateRefs": [{"name": secret}]},
                "routes": [{"path": "/", "backend": {"service": "web", "port": 8080}}],
            })
        };
        let (a, b, c) = (host("a", "one"), host("b", "two.with.dots"), host("c", "one"));
        let template = |hosts: Value| deployment_of(|spec| spec["hosts"] = hosts)["spec"]["template"].clone();
        let first = template(json!([a, b, c]));
        assert_eq!(first, template(json!([c, b, a])));
        assert_eq!(first["spec"]["volumes"].as_array().map(Vec::len), Some(4));
    }

    #[test]
    fn pods_get_longer_to_end_than_they_drain() {
        let deployment = deployment_of(|spec| spec["proxy"] = json!({"drainPeriod": "1m"}));
        assert_eq!(
            deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"],
            65
        );
    }

    #[test]
    fn a_farm_chooses_what_its_containers_log_and_else_the_operator_does() {
        let environment = |proxy: Value| {
            let deployment = deployment_of(|spec| {
                spec["proxy"] = proxy;
                spec["resumption"] = json!({"sessionCache": {"mode": "Sidecar"}});
            });
            let pod = &deployment["spec"]["template"]["spec"];
            ["containers", "initContainers"].map(|kind| {
                let env = pod[kind][0]["env"].as_array().expect("a list").clone();
                ["TLSFARM_LOG", "TLSFARM_LOG_FORMAT"].map(|name| {
                    let variable = env.iter().find(|variable| variable["name"] == name);
                    variable.expect("set")["value"].as_str().expect("text").to_owned()
                })
            })
        };
        assert_eq!(environment(json!({})), [["info", "json"]; 2]);
        let chosen = json!({"log": {"filter": "warn,tlsfarm=debug", "format": "Text"}});
        assert_eq!(environment(chosen), [["warn,tlsfarm=debug", "text"]; 2]);
        let filter_only = json!({"log": {"filter": "debug"}});
        assert_eq!(environment(filter_only), [["debug", "json"]; 2]);
    }
}
