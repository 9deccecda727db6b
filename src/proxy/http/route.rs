//! Which backend serves which host name and path: an immutable table compiled from the configuration.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::api::HttpMode;
use crate::config::{Backend, ProxyConfig, Timeouts};
use crate::proxy::control::host_names::HostTable;

/// Routes, limits and trust of one configuration.
pub struct Routing {
    hosts: Vec<HostRoutes>,
    by_name: HostTable<usize>,
    trusted: Vec<IpNet>,
    pub(super) http: HttpMode,
    pub(super) timeouts: Timeouts,
}

/// The routes of one host.
pub(super) struct HostRoutes {
    /// Name within the farm.
    pub(super) name: String,
    /// Longest prefix first. Prefixes do not end with `/`; the root is empty.
    routes: Vec<(String, Backend)>,
}

impl Routing {
    /// Compiles the table.
    pub fn new(config: &ProxyConfig) -> Self {
        let names = config.hosts.iter().enumerate().flat_map(|(index, host)| {
            let names = host.hostnames.iter().cloned();
            names.map(move |name| (name, index))
        });
        let hosts = config.hosts.iter().map(|host| {
            let mut routes: Vec<_> = host
                .routes
                .iter()
                .map(|route| (route.path.trim_end_matches('/').to_owned(), route.backend.clone()))
                .collect();
            routes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
            HostRoutes {
                name: host.name.clone(),
                routes,
            }
        });
        Self {
            hosts: hosts.collect(),
            by_name: names.collect(),
            trusted: config.trusted_proxies.clone(),
            http: config.http,
            timeouts: config.timeouts.clone(),
        }
    }

    /// The host that a lower-case host name belongs to, by the same rules as in the handshake.
    pub(super) fn host(&self, hostname: &str) -> Option<&HostRoutes> {
        self.by_name
            .find(hostname)
            .and_then(|index| self.hosts.get(*index))
    }

    /// Whether the forwarding headers of this peer are believed.
    pub(super) fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&peer))
    }
}

impl HostRoutes {
    /// The backend of the longest prefix that covers `path`, compared by whole segments and without decoding anything.
    pub(super) fn backend(&self, path: &str) -> Option<&Backend> {
        self.routes
            .iter()
            .find(|(prefix, _)| {
                path.strip_prefix(prefix.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
            .map(|(_, backend)| backend)
    }
}

/// Whether a path has a segment that a backend may take for `..` and so leave the prefix that the route was chosen by.
///
/// Paths are neither decoded nor rewritten here, so what a backend may decode counts as decoded: `%2e` as a dot; `%2f`,
/// `\` and `%5c` as separators; and `;` as the end of a segment's name, as servlet containers read it.
pub(super) fn climbs(path: &str) -> bool {
    if !path.contains("..") && !path.contains('%') {
        return false;
    }
    let bytes = path.as_bytes();
    let mut at = 0;
    // Dots in the segment so far, as long as it has nothing else. A parameter changes nothing any more.
    let (mut dots, mut only_dots, mut parameter) = (0, true, false);
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let (byte, length) = match *rest {
            [b'%', b'2', b'e' | b'E', ..] => (b'.', 3),
            [b'%', b'2', b'f' | b'F', ..] | [b'%', b'5', b'c' | b'C', ..] => (b'/', 3),
            [b'%', b'3', b'b' | b'B', ..] => (b';', 3),
            [b'\\', ..] => (b'/', 1),
            [byte, ..] => (byte, 1),
            [] => break,
        };
        match byte {
            b'/' if only_dots && dots == 2 => return true,
            b'/' => (dots, only_dots, parameter) = (0, true, false),
            b';' => parameter = true,
            _ if parameter => {}
            b'.' => dots += 1,
            _ => only_dots = false,
        }
        at += length;
    }
    only_dots && dots == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
version: 1
farm: web/shop
listen: {https: "[::]:8443", admin: "[::]:9090"}
ring: ring.json
tickets: {lifetime: 4h, maxAge: 24h}
drainPeriod: 25s
trustedProxies: [10.0.0.0/8]
hosts:
- name: wild
  hostnames: ["*.example.com"]
  certificates: [{name: c, certificate: c, key: k}]
  routes:
  - {path: /, backend: {addresses: ["127.0.0.1:1"]}}
  - {path: /a, backend: {addresses: ["127.0.0.1:2"]}}
  - {path: /a/b/, backend: {addresses: ["127.0.0.1:3"]}}
- name: shop
  hostnames: [shop.example.com]
  certificates: [{name: c, certificate: c, key: k}]
  routes: [{path: /only, backend: {addresses: ["127.0.0.1:4"]}}]
"#;

    fn routing() -> Routing {
        Routing::new(&ProxyConfig::parse(CONFIG).expect("valid"))
    }

    #[test]
    fn an_exact_name_wins_over_another_hosts_wildcard() {
        let routing = routing();
        let name = |hostname| routing.host(hostname).map(|host| host.name.as_str());
        assert_eq!(name("shop.example.com"), Some("shop"));
        assert_eq!(name("other.example.com"), Some("wild"));
        assert_eq!(name("example.com"), None);
        assert_eq!(name("a.b.example.com"), None);
        assert_eq!(name(".example.com"), None);
    }

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        let routing = routing();
        let port = |hostname, path| match routing.host(hostname)?.backend(path)? {
            Backend::Addresses(addresses) => Some(addresses[0].port()),
            Backend::Service(_) => None,
        };
        assert_eq!(port("x.example.com", "/"), Some(1));
        assert_eq!(port("x.example.com", "/ab"), Some(1));
        assert_eq!(port("x.example.com", "/a"), Some(2));
        assert_eq!(port("x.example.com", "/a/"), Some(2));
        assert_eq!(port("x.example.com", "/a/b"), Some(3));
        assert_eq!(port("x.example.com", "/a/b/c"), Some(3));
        assert_eq!(port("x.example.com", "/a/bc"), Some(2));
        assert_eq!(port("x.example.com", "/%61"), Some(1), "nothing is decoded");
        assert_eq!(port("shop.example.com", "/other"), None);
    }

    #[test]
    fn only_listed_networks_are_trusted() {
        let routing = routing();
        assert!(routing.trusts("10.1.2.3".parse().expect("valid")));
        assert!(!routing.trusts("11.1.2.3".parse().expect("valid")));
    }

    #[test]
    fn paths_that_climb_are_found_however_they_are_written() {
        for path in [
            "/a/..",
            "/a/../b",
            "/..",
            "/a/%2e%2E/b",
            "/a/.%2e",
            "/a%2f..%2fb",
            "/a/..%5cb",
            "/a/..\\b",
            "/a\\..\\b",
            "/a/..;/b",
            "/a/..;x=1/b",
            "/a/..%3bx/b",
            "/a/..%2f",
        ] {
            assert!(climbs(path), "{path}");
        }
        for path in [
            "/",
            "/a..b",
            "/...",
            "/a/.../b",
            "/a./b",
            "/..a",
            "/a/..a;..",
            "/%2e",
            "/a%20b",
            "/a;../b",
            "/%",
            "/%2",
            "/a.b/c..",
        ] {
            assert!(!climbs(path), "{path}");
        }
    }
}
