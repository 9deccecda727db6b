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
    MOST_FILES_NAMED,
};
use crate::runtime::files::FileIdentity;

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
    match fs::read(file) {
        Ok(bytes) => Ok(Zeroizing::new(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CertificateFault::Missing {
            file: name(),
            others: others_beside(file),
        }),
        Err(error) => Err(CertificateFault::Unreadable(name(), error.kind())),
    }
}

/// Names of other files in the directory of `file`, sorted. The kubelet's own links, which begin with two dots, do not
/// count.
fn others_beside(file: &Path) -> Vec<String> {
    let Some(entries) = file.parent().and_then(|dir| fs::read_dir(dir).ok()) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| !name.starts_with(".."))
        .collect();
    names.sort();
    names.truncate(MOST_FILES_NAMED);
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::test_dir::TestDir;

    #[test]
    fn a_secret_that_is_missing_and_one_of_another_kind_are_told_apart() {
        let dir = TestDir::new();
        let fault = || read(&dir.join("tls.crt")).expect_err("missing").to_string();
        dir.write("..data", "");
        assert_eq!(
            fault(),
            "no file tls.crt: the Secret does not exist, or is not mounted yet"
        );
        dir.write("tls.key", "");
        dir.write("cert.pem", "");
        assert_eq!(
            fault(),
            "no file tls.crt, but cert.pem, tls.key: a Secret of type kubernetes.io/tls has tls.crt and tls.key"
        );
    }

    #[test]
    fn a_directory_of_many_files_is_not_listed_whole() {
        let dir = TestDir::new();
        for number in 0..9 {
            dir.write(&number.to_string(), "");
        }
        assert_eq!(others_beside(&dir.join("tls.crt")), ["0", "1", "2", "3"]);
        assert_eq!(others_beside(&dir.join("absent/tls.crt")), [""; 0]);
    }
}
