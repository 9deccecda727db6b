//! A farm `shop` whose sessions are in a cache: making one, and asking it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Metrics, Namespace, farm, run, scratch, wait_for};

pub const SHOP: &str = "shop.example.com";
pub const BANK: &str = "bank.example.com";

/// Port of a cache for the other caches.
pub const PEERS_PORT: u16 = 7443;

/// How long the kubelet may take to notice a changed Secret, or a dead container, and the farm to settle.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// As long as the API allows: the machine is busy, and misses are failures here.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_millis(50);

/// The settings of a cache in sidecars.
pub fn sidecars() -> Value {
    json!({"mode": "Sidecar", "lookupTimeout": lookup_timeout()})
}

/// [`LOOKUP_TIMEOUT`] as the API spells it.
pub fn lookup_timeout() -> String {
    format!("{}ms", LOOKUP_TIMEOUT.as_millis())
}

/// A farm `shop` with this cache, three proxies and two hosts, of which `bank` has single-use tickets; waits until it is
/// ready.
pub fn deploy(namespace: &Namespace, session_cache: Value) {
    namespace.create_certificate("shop-tls", &[SHOP]);
    namespace.create_certificate("bank-tls", &[BANK]);
    let mut shop = farm("shop", 3, &[("shop", SHOP), ("bank", BANK)]);
    shop["spec"]["hosts"][1]["tls"]["tickets"] = json!({"kind": "SingleUse"});
    shop["spec"]["resumption"] = json!({"sessionCache": session_cache});
    namespace.apply(&shop);
    namespace.wait_condition_for("shop", "SessionCacheReady", "True", "CacheReachable", PATIENCE);
    namespace.wait_ready("shop");
}

/// A proxy of the farm, with or without a cache beside it.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub name: String,
    pub address: SocketAddr,
    pub has_sidecar: bool,
}

impl Proxy {
    pub fn metrics(&self) -> Result<Metrics, String> {
        Metrics::of(SocketAddr::new(self.address.ip(), 9090))
    }

    /// Metrics of the sidecar cache; empty if there is none.
    pub fn cache_metrics(&self) -> Result<Metrics, String> {
        match self.has_sidecar {
            true => Metrics::of(SocketAddr::new(self.address.ip(), 9091)),
            false => Ok(Metrics::default()),
        }
    }

    /// Whether all ways of the proxy to its cache are open and those of that cache to `others` other ones are, too.
    fn is_linked(&self, others: usize) -> Result<bool, String> {
        let proxy = self.metrics()?;
        let all_closed = |metrics: &Metrics, of: &str, count: Option<usize>| {
            let breakers = |state| metrics.value(&format!("{of}_breakers{{state=\"{state}\"}}"));
            let closed = breakers("closed");
            breakers("open") + breakers("half_open") == 0.0
                && metrics.value(&format!("{of}_reachable")) == closed
                && count.map_or(closed > 0.0, |count| closed == count as f64)
        };
        if !all_closed(&proxy, "tlsfarm_proxy_session_cache", None) {
            return Ok(false);
        }
        let cache = self.cache_metrics()?;
        Ok(!self.has_sidecar
            || cache.value("tlsfarm_cache_peer_members") == (others + 1) as f64
                && all_closed(&cache, "tlsfarm_cache_peer", Some(others)))
    }
}

/// The ready proxies of the farm, sorted by name.
pub fn proxies(namespace: &Namespace) -> Vec<Proxy> {
    let farm = namespace.get("tlsfarm", "shop").expect("there");
    let has_sidecar = farm["spec"]["resumption"]["sessionCache"]["mode"] == "Sidecar";
    let proxies = namespace.proxies("shop").into_iter();
    proxies
        .map(|(name, address)| Proxy {
            name,
            address,
            has_sidecar,
        })
        .collect()
}

/// How long all must have been linked: a sidecar that restarts may be back before the EndpointSlice says that it was gone,
/// and then the others drop it once more.
const STEADY: Duration = Duration::from_secs(2);

/// Waits until there are so many ready proxies, each reaches its cache, and each cache all others and no more. From then
/// on every resumption that is due takes place, unless an answer is late.
pub fn when_linked(namespace: &Namespace, count: usize) -> Vec<Proxy> {
    when_linked_within(namespace, count, PATIENCE)
}

pub fn when_linked_within(namespace: &Namespace, count: usize, limit: Duration) -> Vec<Proxy> {
    let mut last = None;
    let mut linked_since: Option<Instant> = None;
    wait_for(
        &format!("{count} proxies and caches to reach each other"),
        limit,
        || {
            let proxies = proxies(namespace);
            let linked: Vec<_> = proxies
                .iter()
                .map(|proxy| (proxy.name.clone(), proxy.is_linked(count - 1)))
                .collect();
            let all = linked.len() == count && linked.iter().all(|(_, linked)| *linked == Ok(true));
            if last.as_ref() != Some(&linked) {
                println!("linked: {linked:?}");
                last = Some(linked);
            }
            if !all {
                linked_since = None;
                return None;
            }
            let since = linked_since.get_or_insert_with(Instant::now);
            (since.elapsed() >= STEADY).then_some(proxies)
        },
    )
}

/// Certificate and key of somebody who calls himself `name`.
pub fn own_identity(name: &str) -> (PathBuf, PathBuf) {
    let dir = scratch("stranger");
    let (certificate, key) = crate::harness::certificate(&[name], 2000..2100);
    let files = (dir.join("tls.crt"), dir.join("tls.key"));
    std::fs::write(&files.0, certificate).expect("written");
    std::fs::write(&files.1, key).expect("written");
    files
}

/// What the farm's status says of its cache.
pub fn status(namespace: &Namespace) -> Value {
    namespace.get("tlsfarm", "shop").expect("there")["status"]["sessionCache"].clone()
}

/// Makes the kubelets look at once at what the farm's pods mount. They do so within two minutes by themselves.
pub fn hurry_kubelets(namespace: &Namespace, why: &str) {
    let annotation = format!("test.tlsfarm.dev/hurry={why}");
    let farm = "tlsfarm.dev/farm=shop";
    namespace.kubectl(&["annotate", "pods", "--selector", farm, "--overwrite", &annotation]);
}

/// What a peers' port answers to PING.
pub fn ask_as_peer(address: SocketAddr, identity: Option<&(PathBuf, PathBuf)>) -> String {
    let address = address.to_string();
    let mut args = vec!["10", "openssl", "s_client", "-connect", &address, "-ign_eof"];
    if let Some((certificate, key)) = identity {
        args.extend(["-cert", certificate.to_str().expect("UTF-8")]);
        args.extend(["-key", key.to_str().expect("UTF-8")]);
    }
    run("timeout", &args, Some("PING\r\nQUIT\r\n")).unwrap_or_else(|error| error)
}

/// What a Secret holds, decoded.
pub fn secret_texts(namespace: &Namespace, name: &str) -> Option<BTreeMap<String, String>> {
    let secret = namespace.get("secret", name)?;
    let data = secret["data"].as_object().expect("a Secret holds something");
    let decoded = |value: &Value| {
        let text = value.as_str().expect("base64");
        run("base64", &["--decode"], Some(text)).expect("base64")
    };
    Some(
        data.iter()
            .map(|(key, value)| (key.clone(), decoded(value)))
            .collect(),
    )
}

/// The fingerprint of the first certificate in a text.
pub fn fingerprint(text: &str) -> String {
    let args = ["x509", "-noout", "-fingerprint", "-sha256"];
    run("openssl", &args, Some(text)).unwrap_or_else(|error| error)
}

/// The fingerprint of the certificate that a cache presents to its peers.
pub fn presented_by(cache: SocketAddr) -> String {
    // The cache presents its certificate before it refuses a client without one.
    fingerprint(&ask_as_peer(cache, None))
}
