//! Configuration files of proxies and caches: what is accepted means the same when it is written again and can be taken
//! into use; what is refused is refused on one line.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use rustls::crypto::aws_lc_rs::default_provider;
use tlsfarm::config::{CacheConfig, ProxyConfig};
use tlsfarm::proxy::control::snapshot::Snapshot;
use tlsfarm::proxy::tls::certificates::CertificatesByHost;

/// An error message quotes at most a part of the file.
const LONGEST_MESSAGE: usize = 1024;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match ProxyConfig::parse(text) {
        Ok(config) => {
            assert!(!config.hosts.is_empty());
            let (certificates, provider) = (CertificatesByHost::default(), Arc::new(default_provider()));
            Snapshot::new(config.clone(), String::new(), &certificates, &provider).expect("usable");
            let json = serde_json::to_string(&config).expect("it serializes");
            assert_eq!(ProxyConfig::parse(&json).as_ref(), Ok(&config));
        }
        Err(error) => check(&error.to_string()),
    }
    match CacheConfig::parse(text) {
        Ok(config) => {
            let json = serde_json::to_string(&config).expect("it serializes");
            assert_eq!(CacheConfig::parse(&json).as_ref(), Ok(&config));
        }
        Err(error) => check(&error.to_string()),
    }
});

fn check(message: &str) {
    assert!(!message.contains('\n'), "{message:?}");
    assert!(message.len() <= LONGEST_MESSAGE, "{message:?}");
}
