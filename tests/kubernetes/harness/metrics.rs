//! What a process has counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::run;

/// The series of one `/metrics` page and their values.
#[derive(Clone, Debug, Default)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// What the process with its pages at `address` says now, if it answers.
    pub fn of(address: SocketAddr) -> Result<Self, String> {
        let url = format!("http://{address}/metrics");
        let page = run("curl", &["--silent", "--fail", "--max-time", "10", &url], None)?;
        let series = page.lines().filter(|line| !line.starts_with('#'));
        let series = series.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Ok(Self(series.collect()))
    }

    /// The value of a series; 0 when there is none.
    pub fn value(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or_default()
    }

    /// The series that begin with `prefix` and have grown since `before`, without the prefix, and by how much.
    pub fn grown(&self, before: &Self, prefix: &str) -> BTreeMap<String, u64> {
        let of = |(name, value): (&String, &f64)| {
            let name = name.strip_prefix(prefix)?;
            let grown = value - before.value(&format!("{prefix}{name}"));
            // Counters are whole numbers.
            (grown > 0.0).then(|| (name.to_owned(), grown as u64))
        };
        self.0.iter().filter_map(of).collect()
    }
}
