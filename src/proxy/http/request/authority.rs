//! The authority of a request: host and port (RFC 9110 section 7.2, RFC 3986 section 3.2).

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// A host name or address with an optional port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Authority<'a> {
    /// In lower case and without the dot of a fully qualified name.
    pub(crate) host: Cow<'a, str>,
    /// The host as sent, including the brackets of an IPv6 address.
    pub(crate) written_host: &'a str,
    pub(crate) port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Parses a `Host` field or the authority of a URI. None if it is not `host[:port]`; user information is rejected
    /// too (RFC 9110 section 4.2.4).
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (written_host, port) = if let Some(bracketed) = text.strip_prefix('[') {
            let (address, _) = bracketed.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            text.split_at_checked(address.len() + 2)?
        } else {
            let end = text.find(':').unwrap_or(text.len());
            let (host, port) = text.split_at_checked(end)?;
            if host.is_empty() || !host.bytes().all(is_host_byte) {
                return None;
            }
            (host, port)
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return None,
            Some("") => None,
            Some(digits) if digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            Some(_) => return None,
        };
        let host = written_host.strip_suffix('.').unwrap_or(written_host);
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        Some(Self {
            host,
            written_host,
            port,
        })
    }

    /// Whether both have the same host and port; `default_port` is the port of the scheme.
    pub(crate) fn same_as(&self, other: &Authority<'_>, default_port: u16) -> bool {
        self.host == other.host && self.port.unwrap_or(default_port) == other.port.unwrap_or(default_port)
    }
}

/// Whether a byte may stand in a registered name (RFC 3986 section 3.2.2).
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_addresses_and_ports() {
        let read = |text| Authority::parse(text).map(|read| (read.host.into_owned(), read.port));
        assert_eq!(read("shop.example.com"), Some(("shop.example.com".into(), None)));
        assert_eq!(
            read("Shop.Example.COM.:8443"),
            Some(("shop.example.com".into(), Some(8443)))
        );
        assert_eq!(read("192.0.2.1:80"), Some(("192.0.2.1".into(), Some(80))));
        assert_eq!(
            read("[2001:db8::1]:443"),
            Some(("[2001:db8::1]".into(), Some(443)))
        );
        assert_eq!(read("shop:"), Some(("shop".into(), None)));
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            ":80",
            "a b",
            "user@shop",
            "shop/",
            "shop:80a",
            "shop:+80",
            "shop:70000",
            "shop:80:80",
            "[::1",
            "[x]",
            "[::1]x",
            "::1",
            "sh\u{f6}p",
            "shop?",
        ] {
            assert_eq!(Authority::parse(text), None, "{text:?}");
        }
    }
}
