//! Targets of the probe: proxies and server names, from the Kubernetes API or the command line.

mod server_address;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use rustls::pki_types::ServerName;
use tokio::time::timeout;

pub(super) use self::server_address::ServerAddress;
use super::session::Mechanism;
use crate::api::{
    FARM_LABEL, MinVersion, Resumption, SessionCacheMode, TLSFarm, TicketKind, Tls12Tickets, ports,
};
use crate::runtime::kubernetes::{self, NoCluster};

/// Time limit for one API request, including retries.
const API_TIME_LIMIT: Duration = Duration::from_secs(10);

/// Label that replaces `*` of a wildcard name.
const WILDCARD_LABEL: &str = "probe";

/// A farm, or a list of addresses, at one point in time.
#[derive(Clone, Debug)]
pub(super) struct TargetFarm {
    /// `namespace/name`; None for a list of addresses.
    pub(super) name: Option<String>,
    /// Ring generation in the farm's status.
    pub(super) ring: Option<u64>,
    /// Ticket lifetime in the farm's spec, the shorter of both TLS versions.
    pub(super) ticket_lifetime: Option<Duration>,
    /// Whether its replicas are more than 0.
    pub(super) wants_proxies: bool,
    /// The ready proxies, by name.
    pub(super) proxies: Vec<TargetProxy>,
    /// Hosts to probe.
    pub(super) hosts: Vec<TargetHost>,
}

/// One proxy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct TargetProxy {
    /// Name in messages: the pod's name, or the address.
    pub(super) name: String,
    /// Unique id: the pod's UID, or the address.
    pub(super) id: String,
    /// Address of its TLS port.
    pub(super) address: SocketAddr,
}

/// One host of a farm.
#[derive(Clone, Debug)]
pub(super) struct TargetHost {
    /// Server name (SNI).
    pub(super) server_name: ServerName<'static>,
    /// Mechanisms that the host supports.
    pub(super) mechanisms: Vec<Mechanism>,
}

/// Source of the targets.
pub(super) enum Targets {
    /// Addresses from the command line.
    Fixed(TargetFarm),
    /// Farms of a cluster.
    Cluster(ClusterTargets),
}

/// Farms of a cluster.
pub(super) struct ClusterTargets {
    pub(super) client: Client,
    /// Namespaces to list; None: all namespaces.
    pub(super) namespaces: Option<Vec<String>>,
    /// Names of the farms to probe; empty: all farms.
    pub(super) names: Vec<String>,
    /// Server names to use instead of those in the farms' specs.
    pub(super) server_names: Vec<ServerName<'static>>,
    /// Mechanisms to probe.
    pub(super) mechanisms: Vec<Mechanism>,
}

/// Why the targets could not be determined.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The kubeconfig is missing or has no such context, and the probe does not run in a pod either.
    #[error("{0}; or probe servers outside a cluster by --address")]
    NoCluster(#[from] NoCluster),
    /// The Kubernetes client configuration is invalid.
    #[error("invalid Kubernetes client configuration: {0}")]
    Client(String),
    /// A name given by `--address` did not resolve to an address.
    #[error("failed to resolve {name}: {why}")]
    Resolve {
        /// The name.
        name: String,
        /// The error.
        why: String,
    },
    /// No server name is given, and the addresses do not tell which one is meant.
    #[error("--server-name is required with IP addresses, and with several names")]
    NoServerName,
    /// A list request to the API server failed.
    #[error("failed to list {what}: {why}")]
    List {
        /// The listed objects.
        what: String,
        /// The error.
        why: String,
    },
    /// The farm does not exist.
    #[error("farm {name:?} not found in {place}")]
    NoSuchFarm {
        /// Name on the command line.
        name: String,
        /// The searched namespaces.
        place: String,
    },
}

impl Targets {
    /// Reads the current farms and their ready proxies.
    pub(super) async fn look(&self) -> Result<Vec<TargetFarm>, TargetError> {
        match self {
            Self::Fixed(farm) => Ok(vec![farm.clone()]),
            Self::Cluster(cluster) => cluster.look().await,
        }
    }

    /// The searched namespaces, for messages.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Fixed(_) => "the given addresses".into(),
            Self::Cluster(cluster) => cluster.place(),
        }
    }
}

impl ClusterTargets {
    async fn look(&self) -> Result<Vec<TargetFarm>, TargetError> {
        let mut farms = Vec::new();
        for namespace in self.scopes() {
            let objects: Api<TLSFarm> = api(&self.client, namespace, Api::namespaced, Api::all);
            let pods: Api<Pod> = api(&self.client, namespace, Api::namespaced, Api::all);
            let objects = list(&objects, "farms", namespace, &ListParams::default()).await?;
            let selector = ListParams::default().labels(FARM_LABEL);
            let pods = list(&pods, "pods", namespace, &selector).await?;
            let wanted = |farm: &&TLSFarm| self.names.is_empty() || self.names.contains(&farm.name_any());
            farms.extend(objects.iter().filter(wanted).map(|farm| self.farm(farm, &pods)));
        }
        for name in &self.names {
            let ends_in_name = |farm: &TargetFarm| {
                let full = farm.name.as_deref().unwrap_or_default();
                full.rsplit('/').next() == Some(name)
            };
            if !farms.iter().any(ends_in_name) {
                return Err(TargetError::NoSuchFarm {
                    name: name.clone(),
                    place: self.place(),
                });
            }
        }
        Ok(farms)
    }

    fn farm(&self, farm: &TLSFarm, pods: &[Pod]) -> TargetFarm {
        let (namespace, name) = (farm.namespace(), farm.name_any());
        let of_farm = |pod: &&Pod| {
            pod.metadata.namespace == namespace && pod.labels().get(FARM_LABEL).is_some_and(|of| *of == name)
        };
        let tickets = &farm.spec.resumption.tickets;
        let mut proxies: Vec<TargetProxy> = pods.iter().filter(of_farm).filter_map(serving_proxy).collect();
        proxies.sort_by(|a, b| a.name.cmp(&b.name));
        TargetFarm {
            name: Some(format!("{}/{name}", namespace.as_deref().unwrap_or_default())),
            ring: farm
                .status
                .as_ref()
                .and_then(|status| Some(status.ring.as_ref()?.generation)),
            // TLS 1.2 tickets are never older than two rotation intervals.
            ticket_lifetime: Some(
                tickets
                    .lifetime
                    .as_std()
                    .min(2 * tickets.rotation_interval.as_std()),
            ),
            wants_proxies: farm.spec.replicas > 0,
            proxies,
            hosts: self.hosts(farm),
        }
    }

    fn hosts(&self, farm: &TLSFarm) -> Vec<TargetHost> {
        let host = |server_name: ServerName<'static>, of: Option<&crate::api::HostSpec>| {
            let offered = |mechanism: &&Mechanism| offers(&farm.spec.resumption, of, **mechanism);
            TargetHost {
                server_name,
                mechanisms: self.mechanisms.iter().filter(offered).copied().collect(),
            }
        };
        if !self.server_names.is_empty() {
            let names = self.server_names.iter();
            return names
                .map(|name| host(name.clone(), named(&farm.spec.hosts, &name.to_str())))
                .collect();
        }
        let first_name = |of: &crate::api::HostSpec| {
            let hostname = of.hostnames.first()?;
            let concrete = match hostname.strip_prefix("*.") {
                Some(parent) => format!("{WILDCARD_LABEL}.{parent}"),
                None => hostname.clone(),
            };
            Some(host(ServerName::try_from(concrete).ok()?, Some(of)))
        };
        farm.spec.hosts.iter().filter_map(first_name).collect()
    }

    /// The namespaces to list, or one `None` for all of them.
    fn scopes(&self) -> Vec<Option<&str>> {
        match &self.namespaces {
            Some(namespaces) => namespaces.iter().map(|name| Some(name.as_str())).collect(),
            None => vec![None],
        }
    }

    fn place(&self) -> String {
        match self.namespaces.as_deref() {
            None => "any namespace".into(),
            Some([namespace]) => format!("namespace {namespace}"),
            Some(namespaces) => format!("namespaces {}", namespaces.join(", ")),
        }
    }
}

/// Whether a farm with these `resumption` settings must support `mechanism` on `host`, or on a name without a host.
fn offers(resumption: &Resumption, host: Option<&crate::api::HostSpec>, mechanism: Mechanism) -> bool {
    let tls12 = host.is_none_or(|host| host.tls.min_version == MinVersion::TLS12);
    let single_use = host.is_some_and(|host| host.tls.tickets.kind == TicketKind::SingleUse);
    match mechanism {
        // TLS 1.2 tickets cannot be single-use, so single-use hosts issue none.
        Mechanism::Tls12Ticket => tls12 && !single_use && resumption.tickets.tls12 == Tls12Tickets::Enabled,
        Mechanism::Tls12SessionId => tls12 && resumption.session_cache.mode != SessionCacheMode::Disabled,
        Mechanism::Tls13Ticket => !single_use,
        Mechanism::Tls13SingleUse => single_use,
    }
}

/// The host for `name`: an exact match, or else a wildcard match.
fn named<'a>(hosts: &'a [crate::api::HostSpec], name: &str) -> Option<&'a crate::api::HostSpec> {
    let with = |wanted: &str| {
        let has = |host: &&crate::api::HostSpec| host.hostnames.iter().any(|hostname| hostname == wanted);
        hosts.iter().find(has)
    };
    let wildcard = || with(&format!("*.{}", name.split_once('.')?.1));
    with(name).or_else(wildcard)
}

/// Creates a client for a kubeconfig context; without one, for the current context or the in-cluster configuration.
pub(super) async fn connect(context: Option<&str>) -> Result<Client, TargetError> {
    let config = kubernetes::find(context).await?;
    Client::try_from(config).map_err(|error| TargetError::Client(kubernetes::describe(&error)))
}

/// The ids of the ready proxies of `farms`.
pub(super) fn ids(farms: &[TargetFarm]) -> BTreeSet<String> {
    let proxies = farms.iter().flat_map(|farm| &farm.proxies);
    proxies.map(|proxy| proxy.id.clone()).collect()
}

/// Returns the proxy of a pod that is ready and not terminating.
fn serving_proxy(pod: &Pod) -> Option<TargetProxy> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let ready = conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    if !ready || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    Some(TargetProxy {
        name: pod.name_any(),
        id: pod.uid()?,
        address: SocketAddr::new(ip, ports::HTTPS.1),
    })
}

fn api<K>(
    client: &Client,
    namespace: Option<&str>,
    namespaced: fn(Client, &str) -> Api<K>,
    all: fn(Client) -> Api<K>,
) -> Api<K> {
    match namespace {
        Some(namespace) => namespaced(client.clone(), namespace),
        None => all(client.clone()),
    }
}

async fn list<K>(
    api: &Api<K>,
    what: &str,
    namespace: Option<&str>,
    params: &ListParams,
) -> Result<Vec<K>, TargetError>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let failed = |why: String| {
        let place = namespace.map_or_else(|| "all namespaces".into(), |name| format!("namespace {name}"));
        TargetError::List {
            what: format!("{what} in {place}"),
            why,
        }
    };
    match timeout(API_TIME_LIMIT, api.list(params)).await {
        Ok(Ok(list)) => Ok(list.items),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(failed(
            "the API server does not have this resource; is TLSFarm installed?".into(),
        )),
        Ok(Err(error)) => Err(failed(kubernetes::describe(&error))),
        Err(_) => Err(failed("timed out".into())),
    }
}

/// Names of the farms that have replicas but no ready proxy.
pub(super) fn unready(farms: &[TargetFarm]) -> Vec<String> {
    let unready = farms
        .iter()
        .filter(|farm| farm.wants_proxies && farm.proxies.is_empty());
    unready.filter_map(|farm| farm.name.clone()).collect()
}

/// Explains why there were no trials.
pub(super) fn why_nothing(targets: &Targets, farms: &[TargetFarm]) -> String {
    if let Some(farm) = unready(farms).first() {
        format!("no proxy of farm {farm} is ready")
    } else if farms.iter().all(|farm| farm.proxies.is_empty()) {
        format!("no farm with proxies found in {}", targets.place())
    } else {
        "no host supports the requested mechanisms".into()
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use serde_json::json;

    use super::*;

    fn pod(conditions: serde_json::Value, deleted: bool) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "shop-proxy-a", "namespace": "web", "uid": "1", "labels": {FARM_LABEL: "shop"}},
            "status": {"podIP": "fd00::7", "conditions": conditions},
        });
        if deleted {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(pod).expect("a pod")
    }

    fn farm_spec(mode: &str, tls12: &str) -> crate::api::TLSFarmSpec {
        let host = |name: &str, min_version: &str, kind: &str| {
            json!({
                "name": name.trim_start_matches("*.").replace('.', "-"),
                "hostnames": [name],
                "tls": {"certificateRefs": [{"name": "a"}], "minVersion": min_version, "tickets": {"kind": kind}},
                "routes": [],
            })
        };
        serde_json::from_value(json!({
            "hosts": [
                host("plain.example.com", "TLS12", "Stateless"),
                host("once.example.com", "TLS12", "SingleUse"),
                host("*.new.example.com", "TLS13", "Stateless"),
            ],
            "resumption": {"tickets": {"tls12": tls12}, "sessionCache": {"mode": mode}},
        }))
        .expect("a spec")
    }

    fn offered(spec: &crate::api::TLSFarmSpec, name: &str) -> Vec<Mechanism> {
        let host = named(&spec.hosts, name);
        let offered = |mechanism: &&Mechanism| offers(&spec.resumption, host, **mechanism);
        Mechanism::value_variants()
            .iter()
            .filter(offered)
            .copied()
            .collect()
    }

    #[test]
    fn a_host_is_held_to_what_the_spec_promises() {
        use Mechanism::{Tls12SessionId, Tls12Ticket, Tls13SingleUse, Tls13Ticket};
        let spec = farm_spec("Sidecar", "Enabled");
        let all = [Tls12Ticket, Tls12SessionId, Tls13Ticket];
        assert_eq!(offered(&spec, "plain.example.com"), all);
        assert_eq!(
            offered(&spec, "once.example.com"),
            [Tls12SessionId, Tls13SingleUse]
        );
        assert_eq!(offered(&spec, "a.new.example.com"), [Tls13Ticket], "TLS 1.3 only");
        assert_eq!(offered(&spec, "elsewhere.example.org"), all, "no host's name");

        let spec = farm_spec("Disabled", "Disabled");
        assert_eq!(offered(&spec, "plain.example.com"), [Tls13Ticket]);
    }

    #[test]
    fn only_ready_pods_that_stay_are_probed() {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let proxy = serving_proxy(&pod(ready.clone(), false)).expect("ready");
        assert_eq!(proxy.address.to_string(), "[fd00::7]:8443");
        assert_eq!(serving_proxy(&pod(ready, true)), None);
        assert_eq!(
            serving_proxy(&pod(json!([{"type": "Ready", "status": "False"}]), false)),
            None
        );
        assert_eq!(serving_proxy(&pod(json!([]), false)), None);
    }
}
