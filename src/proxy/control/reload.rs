//! Reloads changed files: configuration, ring and certificates. Each is loaded completely and then swapped in. If
//! loading fails, the loaded version stays in use and the error is reported.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use tracing::{info, warn};

use super::certificate_files::CertificateFiles;
use super::ring_file::{RingFile, RingFileState};
use super::snapshot::Snapshot;
use super::status::Shared;
use crate::config::{ConfigError, Listen, ProxyConfig, fingerprint};
use crate::discovery::Endpoints;
use crate::proxy::metrics::{FileKind, ProxyMetrics};
use crate::runtime::files::WatchedFile;

/// Why a configuration file could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// Reading the file failed.
    #[error("failed to read: {0}")]
    Unreadable(#[from] std::io::Error),
    /// The file is not valid UTF-8.
    #[error("not valid UTF-8")]
    NotText,
    /// The file failed to parse or validate.
    #[error(transparent)]
    Unusable(#[from] ConfigError),
    /// rustls rejected the configuration.
    #[error("failed to set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Watches and reloads the files of a running proxy.
pub(crate) struct Reloader {
    config_file: PathBuf,
    config_watch: WatchedFile,
    listen: Listen,
    ring: RingFile,
    certificates: CertificateFiles,
    provider: Arc<CryptoProvider>,
    shared: Arc<Shared>,
}

impl Reloader {
    /// Loads all files at the start. Fails only if the configuration is invalid.
    pub(crate) fn start(
        config_file: &Path,
        provider: Arc<CryptoProvider>,
        endpoints: Endpoints,
        metrics: ProxyMetrics,
        now: Timestamp,
    ) -> Result<(Self, Arc<Shared>), ConfigFileError> {
        let mut config_watch = WatchedFile::default();
        let bytes = config_watch
            .poll_any(config_file)
            .expect("the first poll always reports a change")?;
        let (config, fingerprint) = parse_config(&bytes)?;
        let mut certificates = CertificateFiles::new(Arc::clone(&provider), metrics.clone());
        certificates.follow(&config);
        certificates.poll(now);
        let listen = config.listen.clone();
        let snapshot = Snapshot::new(config, fingerprint, &certificates.current(), &provider)?;
        set_snapshot_gauges(&metrics, &snapshot);
        let shared = Arc::new(Shared::new(snapshot, endpoints, metrics));
        let mut reloader = Self {
            config_file: config_file.to_owned(),
            config_watch,
            listen,
            ring: RingFile::default(),
            certificates,
            provider,
            shared: Arc::clone(&shared),
        };
        reloader.poll_ring(now);
        reloader.update_gauges(now);
        Ok((reloader, shared))
    }

    /// Checks all files and reloads those that have changed.
    pub(crate) fn poll(&mut self, now: Timestamp) {
        self.poll_config(now);
        if self.certificates.poll(now) {
            let current = self.shared.snapshot.load_full();
            if let Err(error) = self.swap(
                &self.certificates,
                current.config.clone(),
                current.fingerprint.clone(),
            ) {
                warn!(%error, "failed to load new certificates; keeping the loaded ones");
            }
        }
        self.poll_ring(now);
        if self.shared.keys.forget_expired(now) {
            info!("removed an expired ticket key");
        }
        self.update_gauges(now);
    }

    fn poll_config(&mut self, now: Timestamp) {
        let Some(read) = self.config_watch.poll_any(&self.config_file) else {
            return;
        };
        let loaded = read
            .map_err(ConfigFileError::from)
            .and_then(|bytes| self.load_config(&bytes, now));
        if let Err(error) = loaded {
            warn!(%error, "failed to load the configuration file; keeping the loaded configuration");
            self.shared.metrics.reload_failed(FileKind::Config);
            self.shared.set_config_problem(Some(error.to_string()));
        }
    }

    fn load_config(&mut self, bytes: &[u8], now: Timestamp) -> Result<(), ConfigFileError> {
        let (config, fingerprint) = parse_config(bytes)?;
        if config.listen != self.listen {
            warn!("listen addresses changed; restart the proxy to apply them");
            self.listen = config.listen.clone();
        }
        if self.shared.snapshot.load().fingerprint != fingerprint {
            // Work on a copy: an unusable configuration must not drop the certificates in use.
            let mut certificates = self.certificates.clone();
            certificates.follow(&config);
            certificates.poll(now);
            self.swap(&certificates, config, fingerprint.clone())?;
            self.certificates = certificates;
            self.shared.metrics.reloaded(FileKind::Config);
            info!(%fingerprint, "configuration loaded");
        }
        self.shared.set_config_problem(None);
        Ok(())
    }

    fn swap(
        &self,
        certificates: &CertificateFiles,
        config: ProxyConfig,
        fingerprint: String,
    ) -> Result<(), ConfigFileError> {
        let snapshot = Snapshot::new(config, fingerprint, &certificates.current(), &self.provider)?;
        set_snapshot_gauges(&self.shared.metrics, &snapshot);
        self.shared.snapshot.store(Arc::new(snapshot));
        Ok(())
    }

    fn poll_ring(&mut self, now: Timestamp) {
        let path = self.shared.snapshot.load().config.ring.clone();
        match self.ring.poll(&path) {
            RingFileState::Unchanged => {}
            RingFileState::InUse => self.shared.set_ring_problem(None),
            RingFileState::Replaced(ring) => {
                self.shared.keys.replace(&ring, now);
                self.shared.metrics.set_ring(&ring);
                self.shared.metrics.reloaded(FileKind::Ring);
                info!(generation = ring.generation, primary = %ring.primary.id, "ring loaded");
                self.shared.set_ring_problem(None);
            }
            RingFileState::Refused(refusal) => {
                warn!(%refusal, "failed to load the ring file; keeping the loaded ring");
                self.shared.metrics.reload_failed(FileKind::Ring);
                self.shared.set_ring_problem(Some(refusal.to_string()));
            }
        }
    }

    fn update_gauges(&self, now: Timestamp) {
        let metrics = &self.shared.metrics;
        metrics.set_can_seal(self.shared.keys.read(|keys| keys.can_seal(now)) == Some(true));
        metrics.set_file_faults(FileKind::Certificate, self.certificates.faults(now));
        metrics.set_ready(self.shared.missing().is_empty());
    }
}

/// Sets the gauges of what is taken from a configuration and its certificates.
fn set_snapshot_gauges(metrics: &ProxyMetrics, snapshot: &Snapshot) {
    metrics.set_certificates(snapshot.certificates_in_use());
    metrics.set_rotation_interval(snapshot.config.tickets.rotation_interval);
}

fn parse_config(bytes: &[u8]) -> Result<(ProxyConfig, String), ConfigFileError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ConfigFileError::NotText)?;
    Ok((ProxyConfig::parse(text)?, fingerprint(bytes)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jiff::SignedDuration;
    use rustls::crypto::aws_lc_rs::default_provider;

    use super::*;
    use crate::ring::Ring;
    use crate::ring::fixtures::{POLICY, at, ring, secret};
    use crate::runtime::test_dir::TestDir;

    /// A reloader whose ring file holds `ring`, started at `now`.
    fn start(dir: &Path, ring: &Ring, now: Timestamp) -> (Reloader, Arc<Shared>) {
        fs::create_dir_all(dir).expect("created");
        let (ring_file, config_file) = (dir.join("ring.json"), dir.join("config.yaml"));
        fs::write(&ring_file, &*ring.to_document()).expect("written");
        let config = format!(
            r#"
version: 1
farm: web/shop
listen: {{https: "[::]:8443", admin: "[::]:9090"}}
ring: {}
tickets: {{lifetime: 4h, maxAge: 24h}}
drainPeriod: 25s
hosts:
- name: shop
  hostnames: [shop.example.com]
  certificates: [{{name: shop-tls, certificate: missing.crt, key: missing.key}}]
  routes: [{{path: /, backend: {{addresses: ["127.0.0.1:8000"]}}}}]
"#,
            ring_file.display()
        );
        fs::write(&config_file, config).expect("written");
        let provider = Arc::new(default_provider());
        Reloader::start(
            &config_file,
            provider,
            Endpoints::fixed(),
            ProxyMetrics::default(),
            now,
        )
        .expect("started")
    }

    fn first_expiry(shared: &Shared) -> Option<Timestamp> {
        shared
            .keys
            .read(|keys| keys.next_expiry(Timestamp::MIN))
            .expect("a ring is loaded")
    }

    #[test]
    fn expired_keys_are_removed_without_a_file_change() {
        let dir = TestDir::new();
        let ring = ring().rotated(secret(), None, &POLICY, at(3600));
        let (previous_ends, primary_ends) = (ring.previous[0].open_until, ring.primary.open_until);
        let (mut reloader, shared) = start(&dir.join("clock"), &ring, at(3600));
        reloader.poll(previous_ends - SignedDuration::from_secs(1));
        assert_eq!(first_expiry(&shared), Some(previous_ends));
        reloader.poll(previous_ends);
        assert_eq!(first_expiry(&shared), Some(primary_ends));

        let (_, shared) = start(&dir.join("start"), &ring, previous_ends);
        let first = first_expiry(&shared);
        assert_eq!(
            first,
            Some(primary_ends),
            "an expired key of the file was taken into use"
        );
    }
}
