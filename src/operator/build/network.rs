//! The Services in front of the proxies.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api::{HttpMode, SessionCacheMode, TLSFarm, ports};
use crate::operator::names::FarmId;

pub(super) fn service(farm: &TLSFarm, id: &FarmId) -> Service {
    let wanted = &farm.spec.service;
    let mut service_ports = vec![port(443, ports::HTTPS.0)];
    if farm.spec.http.mode != HttpMode::Disabled {
        service_ports.push(port(80, ports::HTTP.0));
    }
    let mut metadata = id.metadata(id.proxy_name());
    if !wanted.annotations.is_empty() {
        metadata.annotations = Some(wanted.annotations.clone());
    }
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(format!("{:?}", wanted.type_)),
            selector: Some(id.pod_labels()),
            ports: Some(service_ports),
            load_balancer_class: wanted.load_balancer_class.clone(),
            external_traffic_policy: wanted.external_traffic_policy.map(|policy| format!("{policy:?}")),
            ip_family_policy: wanted.ip_family_policy.map(|policy| format!("{policy:?}")),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The Service for monitoring: the admin ports of all pods, including those that are not ready.
pub(super) fn metrics_service(farm: &TLSFarm, id: &FarmId) -> Service {
    let mut service_ports = vec![port(i32::from(ports::ADMIN.1), ports::ADMIN.0)];
    if farm.spec.resumption.session_cache.mode == SessionCacheMode::Sidecar {
        service_ports.push(port(i32::from(ports::CACHE_ADMIN.1), ports::CACHE_ADMIN.0));
    }
    Service {
        metadata: id.metadata(id.metrics_name()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(id.pod_labels()),
            ports: Some(service_ports),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// A TCP port without `appProtocol`: some load balancers would derive an HTTPS health check of `/` from it, to which
/// proxies do not answer 200, because such checks send no host name.
fn port(number: i32, name: &str) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port: number,
        target_port: Some(IntOrString::String(name.into())),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::operator::build::tests::{built, spec};

    fn service_of(change: impl FnOnce(&mut Value)) -> Value {
        let mut changed = spec();
        change(&mut changed);
        built(changed)[&("Service".into(), "shop-proxy".into())].clone()
    }

    #[test]
    fn clients_reach_the_named_container_ports() {
        let service = service_of(|_| {});
        assert_eq!(service["spec"]["type"], "LoadBalancer");
        assert_eq!(service["spec"]["ports"][0]["appProtocol"], Value::Null);
        let reached: Vec<_> = service["spec"]["ports"]
            .as_array()
            .expect("ports")
            .iter()
            .map(|port| (port["port"].clone(), port["targetPort"].clone()))
            .collect();
        assert_eq!(
            reached,
            [(json!(443), json!("https")), (json!(80), json!("http"))]
        );
        let disabled = service_of(|spec| spec["http"] = json!({"mode": "Disabled"}));
        assert_eq!(disabled["spec"]["ports"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn what_the_user_says_of_the_service_is_passed_on() {
        let service = service_of(|spec| {
            spec["service"] = json!({
                "type": "LoadBalancer",
                "annotations": {"example.com/pool": "edge"},
                "loadBalancerClass": "example.com/lb",
                "externalTrafficPolicy": "Local",
                "ipFamilyPolicy": "PreferDualStack",
            });
        });
        assert_eq!(service["metadata"]["annotations"]["example.com/pool"], "edge");
        assert_eq!(service["spec"]["loadBalancerClass"], "example.com/lb");
        assert_eq!(service["spec"]["externalTrafficPolicy"], "Local");
        assert_eq!(service["spec"]["ipFamilyPolicy"], "PreferDualStack");
    }
}
