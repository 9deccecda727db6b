//! Routes from paths to backends.

use crate::config::{self, Backend, Timeouts};

/// The routes of one host, those with the longest prefix first.
pub(crate) struct Routes(Vec<Route>);

/// A path prefix, its backend and its timeouts.
pub(crate) struct Route {
    /// Path prefix without a trailing `/`; empty for the root.
    prefix: String,
    pub(crate) backend: Backend,
    pub(crate) timeouts: Timeouts,
}

impl Routes {
    /// Creates the routes of a host. All have the same timeouts.
    pub(crate) fn new(routes: &[config::RouteConfig], timeouts: &Timeouts) -> Self {
        let mut routes: Vec<_> = routes
            .iter()
            .map(|route| Route {
                prefix: route.path.trim_end_matches('/').to_owned(),
                backend: route.backend.clone(),
                timeouts: timeouts.clone(),
            })
            .collect();
        routes.sort_by_key(|route| std::cmp::Reverse(route.prefix.len()));
        Self(routes)
    }

    /// Returns the route with the longest prefix that matches `path`.
    pub(crate) fn find(&self, path: &str) -> Option<&Route> {
        self.0.iter().find(|route| route.covers(path))
    }
}

impl Route {
    /// Compares whole segments without decoding, because a backend may decode differently.
    fn covers(&self, path: &str) -> bool {
        let rest = path.strip_prefix(self.prefix.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// Whether a path has a segment that a backend may interpret as `..`, which would leave the prefix of the route.
///
/// Paths are forwarded without decoding, so encodings that a backend may decode are checked too: `%2e` as a dot; `%2f`,
/// `\` and `%5c` as separators; and `;` as the end of a segment's name, as in servlet containers.
pub(crate) fn climbs(path: &str) -> bool {
    if !path.contains("..") && !path.contains('%') {
        return false;
    }
    let bytes = path.as_bytes();
    let mut at = 0;
    // Number of dots, while the segment has nothing else. The rest of a parameter (`;`) is ignored.
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
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        let routes = [("/", 1), ("/a", 2), ("/a/b/", 3)].map(|(path, port)| config::RouteConfig {
            path: path.into(),
            backend: Backend::Addresses(vec![(Ipv4Addr::LOCALHOST, port).into()]),
        });
        let all = Routes::new(&routes, &Timeouts::default());
        let without_root = Routes::new(&routes[1..], &Timeouts::default());
        let port = |routes: &Routes, path| match &routes.find(path)?.backend {
            Backend::Addresses(addresses) => Some(addresses[0].port()),
            Backend::Service(_) => None,
        };
        for (path, expected) in [
            ("/", 1),
            ("/ab", 1),
            ("/a", 2),
            ("/a/", 2),
            ("/a/b", 3),
            ("/a/b/c", 3),
            ("/a/bc", 2),
            // Percent-encoding is not decoded.
            ("/%61", 1),
        ] {
            assert_eq!(port(&all, path), Some(expected), "{path}");
        }
        assert_eq!(port(&without_root, "/other"), None);
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
