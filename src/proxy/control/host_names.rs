//! Lookup of hosts by server name.

use std::collections::HashMap;

/// Hosts by host name.
pub(crate) struct HostTable<T> {
    exact: HashMap<String, T>,
    /// By the name without its `*.`.
    wildcard: HashMap<String, T>,
}

impl<T> HostTable<T> {
    /// Finds the host for a lower-case server name. An exact name takes precedence over a wildcard, which matches
    /// exactly one label.
    pub(crate) fn find(&self, server_name: &str) -> Option<&T> {
        self.exact.get(server_name).or_else(|| {
            let (label, parent) = server_name.split_once('.')?;
            (!label.is_empty()).then(|| self.wildcard.get(parent)).flatten()
        })
    }
}

impl<T> FromIterator<(String, T)> for HostTable<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(hostnames: I) -> Self {
        let mut table = Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
        };
        for (hostname, host) in hostnames {
            match hostname.strip_prefix("*.") {
                Some(parent) => table.wildcard.insert(parent.into(), host),
                None => table.exact.insert(hostname, host),
            };
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_names_win_and_a_wildcard_matches_one_label() {
        let table: HostTable<u8> = [
            ("example.com".to_string(), 1),
            ("*.example.com".to_string(), 2),
            ("www.example.com".to_string(), 3),
            ("*.www.example.com".to_string(), 4),
        ]
        .into_iter()
        .collect();
        for (name, host) in [
            ("example.com", Some(1)),
            ("a.example.com", Some(2)),
            ("www.example.com", Some(3)),
            ("a.www.example.com", Some(4)),
            ("a.b.example.com", None),
            (".example.com", None),
            ("com", None),
            ("", None),
            ("127.0.0.1", None),
        ] {
            assert_eq!(table.find(name).copied(), host, "{name}");
        }
    }
}
