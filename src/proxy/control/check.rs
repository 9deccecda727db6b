//! `tlsfarm proxy --check`: loads every file that a proxy needs, without opening a port.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::aws_lc_rs::default_provider;

use super::reload::{ConfigFileError, Reloader};
use crate::discovery::Endpoints;
use crate::proxy::metrics::ProxyMetrics;
use crate::resp::client::Client;

/// Loads a configuration file and the files that it names; returns every problem. Backends and the session cache are not
/// contacted.
///
/// # Errors
///
/// Fails if the configuration file itself is invalid.
pub(crate) async fn check_files(config_file: &Path, now: Timestamp) -> Result<Vec<String>, ConfigFileError> {
    let provider = Arc::new(default_provider());
    let metrics = ProxyMetrics::default();
    let (_, shared) = Reloader::start(config_file, provider, Endpoints::watched(), metrics, now)?;
    let report = shared.report(now);
    let mut problems: Vec<String> = report
        .certificates
        .into_iter()
        .filter_map(|certificate| Some(certificate.problem?.message))
        .collect();
    let config = &shared.snapshot.load().config;
    let ring = match (report.ring.problem, report.ring.primary) {
        (Some(problem), _) => Some(problem),
        (None, None) => Some(
            "its primary key may no longer encrypt tickets, because the ring was not rotated in time".into(),
        ),
        (None, Some(_)) => None,
    };
    problems.extend(ring.map(|problem| format!("ring {}: {problem}", config.ring.display())));
    if let Some(cache) = &config.session_cache {
        let found = Client::check_files(&cache.server).await;
        problems.extend(found.iter().map(|problem| format!("session cache: {problem}")));
    }
    Ok(problems)
}
