//! Watches the certificate and key files of all hosts.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::config::{self, ProxyConfig};
use crate::proxy::metrics::{FileKind, ProxyMetrics};
use crate::proxy::tls::certificates::{
    CertificateFault, CertificatesByHost, HostCertificate, HostCertificates, LoadedCertificate,
};
use crate::runtime::files::{FileIdentity, read_regular};

/// The certificate files of all hosts and the certificates loaded from them.
#[derive(Clone)]
pub(crate) struct CertificateFiles {
    hosts: Vec<(String, Vec<Pair>)>,
    provider: Arc<CryptoProvider>,
    metrics: ProxyMetrics,
}

#[derive(Clone)]
struct Pair {
    files: config::CertificateConfig,
    hostnames: Vec<String>,
    seen: Option<[FileIdentity; 2]>,
    state: HostCertificate,
}

impl CertificateFiles {
    /// Creates an empty set.
    pub(crate) fn new(provider: Arc<CryptoProvider>, metrics: ProxyMetrics) -> Self {
        Self {
            hosts: Vec::new(),
            provider,
            metrics,
        }
    }

    /// Sets the list of files from a configuration. Loaded certificates are kept for pairs that are in the list again.
    pub(crate) fn follow(&mut self, config: &ProxyConfig) {
        let mut before = std::mem::take(&mut self.hosts);
        for host in &config.hosts {
            let known = before.iter_mut().find(|(name, _)| *name == host.name);
            let mut known = known.map(|(_, pairs)| std::mem::take(pairs)).unwrap_or_default();
            let pairs = host.certificates.iter().map(|files| {
                let same = known.iter().position(|pair| pair.files == *files);
                let mut pair = match same {
                    Some(position) => known.swap_remove(position),
                    None => Pair::new(files, &host.hostnames),
                };
                pair.rename(&host.hostnames);
                pair
            });
            self.hosts.push((host.name.clone(), pairs.collect()));
        }
    }

    /// Reloads changed files; returns whether any had changed.
    pub(crate) fn poll(&mut self, now: Timestamp) -> bool {
        let mut changed = false;
        for (host, pairs) in &mut self.hosts {
            for pair in pairs {
                if !pair.poll(&self.provider, now) {
                    continue;
                }
                changed = true;
                let report = pair.state.report(host, now);
                match report.problem {
                    None => {
                        self.metrics.reloaded(FileKind::Certificate);
                        info!(%host, certificate = %pair.state.name, not_after = report.not_after.map(display), "certificate loaded");
                    }
                    Some(problem) => {
                        self.metrics.reload_failed(FileKind::Certificate);
                        warn!(reason = %problem.reason, "{}", problem.message);
                    }
                }
            }
        }
        changed
    }

    /// Number of certificates that are missing, unusable or not valid.
    pub(crate) fn faults(&self, now: Timestamp) -> usize {
        let pairs = self.hosts.iter().flat_map(|(_, pairs)| pairs);
        pairs.filter(|pair| pair.state.fault(now).is_some()).count()
    }

    /// The current certificates of all hosts.
    pub(crate) fn current(&self) -> CertificatesByHost {
        let states = |pairs: &[Pair]| pairs.iter().map(|pair| pair.state.clone()).collect();
        let hosts = self.hosts.iter();
        hosts
            .map(|(host, pairs)| (host.clone(), HostCertificates(states(pairs))))
            .collect()
    }
}

impl Pair {
    fn new(files: &config::CertificateConfig, hostnames: &[String]) -> Self {
        Self {
            files: files.clone(),
            hostnames: hostnames.to_vec(),
            seen: None,
            state: HostCertificate {
                name: files.name.clone(),
                in_use: None,
                file_fault: None,
            },
        }
    }

    fn rename(&mut self, hostnames: &[String]) {
        if self.hostnames == hostnames {
            return;
        }
        self.hostnames = hostnames.to_vec();
        self.state.in_use = self
            .state
            .in_use
            .take()
            .map(|in_use| Arc::new(in_use.for_hostnames(hostnames)));
        self.seen = None;
    }

    fn poll(&mut self, provider: &CryptoProvider, now: Timestamp) -> bool {
        let identity = || [&self.files.certificate, &self.files.key].map(|file| FileIdentity::of(file));
        let before = identity();
        let unchanged = self.seen.as_ref() == Some(&before);
        if unchanged && !self.state.wants_another_look(now) {
            return false;
        }
        let read = self.read(provider);
        if identity() != before {
            // They were swapped meanwhile; certificate and key may be of different times.
            return false;
        }
        self.seen = Some(before);
        if unchanged
            && read
                .as_ref()
                .err()
                .is_some_and(|fault| self.state.file_fault.as_ref() == Some(fault))
        {
            return false;
        }
        self.state.update(read, now);
        true
    }

    fn read(&self, provider: &CryptoProvider) -> Result<LoadedCertificate, CertificateFault> {
        let chain = read(&self.files.certificate)?;
        let key = read(&self.files.key)?;
        LoadedCertificate::from_pem(&chain, &key, &self.hostnames, provider)
    }
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, CertificateFault> {
    let name = || {
        file.file_name()
            .unwrap_or(file.as_os_str())
            .to_string_lossy()
            .into_owned()
    };
    match read_regular(file) {
        Ok(bytes) => Ok(Zeroizing::new(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CertificateFault::Missing {
            file: name(),
            directory: keys_of_secret(file),
        }),
        Err(error) => Err(CertificateFault::Unreadable(name(), error.kind())),
    }
}

/// Maximum number of directory entries read for a message. It is read again at every poll while the file is missing.
const MOST_ENTRIES: usize = 64;

/// Names of the files beside `file`, sorted, if it has the name of a key of a mounted TLS Secret. Files beside one of
/// another name, such as in /etc/ssl, are not listed: they may have nothing to do with it.
fn keys_of_secret(file: &Path) -> Option<Vec<String>> {
    let is_key = file
        .file_name()
        .is_some_and(|name| name == "tls.crt" || name == "tls.key");
    if !is_key {
        return None;
    }
    let entries = file.parent().and_then(|dir| fs::read_dir(dir).ok());
    let mut names: Vec<String> = entries
        .into_iter()
        .flatten()
        .take(MOST_ENTRIES)
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        // The kubelet's own links.
        .filter(|name| !name.starts_with(".."))
        // The characters of a Secret's keys; other names are not one's, and may contain control characters.
        .filter(|name| {
            name.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        })
        .collect();
    names.sort();
    Some(names)
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::default_provider;

    use super::*;
    use crate::runtime::test_dir::TestDir;

    /// The current problem of the pair `tls.crt` and `tls.key`, or of files of another name, in `dir`.
    fn problem(pair: &mut Pair) -> String {
        pair.poll(&default_provider(), Timestamp::UNIX_EPOCH);
        pair.state.file_fault.as_ref().expect("a problem").to_string()
    }

    fn pair(dir: &TestDir, name: &str) -> Pair {
        let files = config::CertificateConfig {
            name: "shop-tls".into(),
            certificate: dir.join(format!("{name}.crt")),
            key: dir.join(format!("{name}.key")),
        };
        Pair::new(&files, &["shop.example.com".into()])
    }

    #[test]
    fn a_missing_secret_and_one_of_another_type_have_different_messages() {
        let dir = TestDir::new();
        let mut pair = pair(&dir, "tls");
        dir.write("..data", "");
        let missing = "tls.crt not found: the Secret does not exist, or is not mounted yet";
        assert_eq!(problem(&mut pair), missing);
        // It is created later, and is of another type.
        dir.write("cert.pem", "");
        let other = "tls.crt not found: the Secret has the keys cert.pem instead of tls.crt and tls.key";
        assert_eq!(problem(&mut pair), other);
        for number in 0..9 {
            dir.write(&number.to_string(), "");
        }
        let many =
            "tls.crt not found: the Secret has the keys 0, 1, 2, 3 and 6 more instead of tls.crt and tls.key";
        assert_eq!(problem(&mut pair), many);
    }

    #[test]
    fn files_beside_a_standalone_certificate_are_not_listed() {
        let dir = TestDir::new();
        dir.write("other.key", "");
        assert_eq!(problem(&mut pair(&dir, "shop")), "shop.crt not found");
    }
}
