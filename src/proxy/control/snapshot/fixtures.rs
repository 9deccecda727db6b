//! A farm for tests: `shop` accepts any client, `strict` requires TLS 1.3, `once` issues single-use tickets, and `bare`
//! has no certificate.

use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;

use super::Snapshot;
use crate::config::ProxyConfig;
use crate::proxy::tls::certificates::{
    CertificatesByHost, HostCertificate, HostCertificates, LoadedCertificate,
};

const CONFIG: &str = r#"
version: 1
farm: web/shop
listen: {https: "127.0.0.1:0", admin: "127.0.0.1:0"}
ring: /nowhere/ring
tickets: {lifetime: 4h, maxAge: 24h, tls12Lifetime: 2h}
sessionCache: {server: {unix: /nowhere/cache.sock}, sessionIdLifetime: 1h}
drainPeriod: 25s
hosts:
- name: shop
  hostnames: [shop.test, "*.shop.test"]
  certificates: &certificates [{name: tls, certificate: /nowhere/tls.crt, key: /nowhere/tls.key}]
  routes: &routes [{path: /, backend: {addresses: ["127.0.0.1:1"]}}]
- {name: strict, hostnames: [strict.test], minVersion: TLS13, certificates: *certificates, routes: *routes}
- {name: once, hostnames: [once.test], ticketKind: SingleUse, certificates: *certificates, routes: *routes}
- {name: bare, hostnames: [bare.test], certificates: *certificates, routes: *routes}
"#;

pub(crate) fn config() -> ProxyConfig {
    ProxyConfig::parse(CONFIG).expect("a configuration")
}

/// One certificate for all hosts, with an ECDSA key.
static CERTIFICATE: LazyLock<CertifiedKey<rcgen::KeyPair>> = LazyLock::new(|| {
    let names = [
        "shop.test",
        "*.shop.test",
        "strict.test",
        "once.test",
        "bare.test",
    ];
    generate_simple_self_signed(names.map(String::from)).expect("generated")
});

/// The certificate that clients have to trust.
pub(crate) fn certificate() -> CertificateDer<'static> {
    CERTIFICATE.cert.der().clone()
}

pub(crate) fn snapshot(config: ProxyConfig) -> Snapshot {
    let provider = Arc::new(default_provider());
    let certificates = config
        .hosts
        .iter()
        .map(|host| {
            let mut certificate = HostCertificate {
                name: "tls".into(),
                in_use: None,
                file_fault: None,
            };
            if host.name != "bare" {
                let [chain, key] = [CERTIFICATE.cert.pem(), CERTIFICATE.signing_key.serialize_pem()];
                let loaded =
                    LoadedCertificate::from_pem(chain.as_bytes(), key.as_bytes(), &host.hostnames, &provider);
                certificate.update(loaded, Timestamp::now());
            }
            (host.name.clone(), HostCertificates(vec![certificate]))
        })
        .collect();
    Snapshot::new(config, "fingerprint".into(), &certificates, &provider).expect("usable")
}

/// A snapshot for tests that begin after the handshake.
pub(crate) fn without_certificates(config: ProxyConfig) -> Snapshot {
    let provider = Arc::new(default_provider());
    let certificates = CertificatesByHost::default();
    Snapshot::new(config, "fingerprint".into(), &certificates, &provider).expect("usable")
}
