//! Header fields that are forwarded, removed or added (RFC 9110 section 7.6, RFC 7239).
//!
//! Hop-by-hop fields are removed before the proxy adds its own, so that a `Connection` field cannot remove those.

use std::fmt::Write;
use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, Entry, FORWARDED, HOST, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, Version};

use super::state::ConnectionState;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Maximum length of a request id accepted from a trusted proxy.
const MAX_REQUEST_ID: usize = 128;

/// Information about the client for the request to a backend.
pub(super) struct Origin<'a> {
    pub(super) connection: &'a ConnectionState,
    /// `host[:port]` as the client sent it.
    pub(super) authority: &'a HeaderValue,
    /// The port of the authority, or the one of the scheme.
    pub(super) port: u16,
    /// Version of the client's request.
    pub(super) version: Version,
    /// Whether the client is a proxy whose forwarding headers are trusted.
    pub(super) trusted: bool,
}

/// Converts the header fields of a client's request to those of the request to the backend.
pub(super) fn to_backend(headers: &mut HeaderMap, origin: &Origin<'_>, upgrade: Option<HeaderValue>) {
    let trailers = accepts_trailers(headers);
    drop_hop_by_hop(headers);
    drop_claims(headers, origin.trusted);
    // hyper answers Expect: it sends 100 Continue once the body is read, which happens only when the backend takes it.
    headers.remove(EXPECT);
    if origin.version == Version::HTTP_2 {
        join_cookies(headers);
    }

    headers.insert(HOST, origin.authority.clone());
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    add_forwarding(headers, origin);
    append_via(headers, origin.version);
}

/// Whether the length of a backend's response is unambiguous. hyper accepts a list of equal lengths, a length together
/// with chunked encoding, and codings that it does not decode (RFC 9112 section 6.3).
pub(super) fn has_clear_framing(headers: &HeaderMap) -> bool {
    let only = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        (values.next(), values.next())
    };
    match (only(CONTENT_LENGTH), only(TRANSFER_ENCODING)) {
        ((None, _), (None, _)) => true,
        ((Some(length), None), (None, _)) => {
            !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit)
        }
        ((None, _), (Some(coding), None)) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    }
}

/// Converts the header fields of a backend's response to those of the response to the client.
pub(super) fn to_client(headers: &mut HeaderMap, version: Version) {
    drop_hop_by_hop(headers);
    append_via(headers, version);
}

/// Removes trailer fields that are not allowed in a trailer section or that only the proxy may set (RFC 9110 section
/// 6.5.1).
pub(super) fn filter_trailers(trailers: &mut HeaderMap) {
    drop_hop_by_hop(trailers);
    drop_claims(trailers, false);
    for name in [
        HOST,
        CONTENT_LENGTH,
        COOKIE,
        http::header::AUTHORIZATION,
        http::header::TRAILER,
    ] {
        trailers.remove(name);
    }
}

/// The protocol of an upgrade request, if it may be tunnelled: a single protocol other than HTTP or TLS, which would
/// bypass the checks and routes.
pub(super) fn tunnelled_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(UPGRADE).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let name = value.to_str().ok()?.split('/').next()?.trim();
    let refused = ["h2c", "h2", "http", "tls"];
    let single = !name.is_empty() && !value.as_bytes().contains(&b',');
    (single && !refused.iter().any(|other| name.eq_ignore_ascii_case(other))).then(|| value.clone())
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    if let Entry::Occupied(connection) = headers.entry(CONNECTION) {
        let (_, values) = connection.remove_entry_mult();
        let values: Vec<HeaderValue> = values.collect();
        for option in values
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        {
            if let Ok(name) = HeaderName::from_bytes(option.trim_ascii()) {
                headers.remove(name);
            }
        }
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// Removes forwarding headers sent by a client. For a trusted proxy only spellings with underscores are removed, which
/// CGI-like backends treat as the same headers.
fn drop_claims(headers: &mut HeaderMap, trusted: bool) {
    let dropped: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_claim(name.as_str()) && (!trusted || name.as_str().contains('_')))
        .cloned()
        .collect();
    for name in dropped {
        headers.remove(name);
    }
}

/// Whether a field is a forwarding header. `name` is in lower case.
fn is_claim(name: &str) -> bool {
    const NAMES: [&str; 3] = ["forwarded", "x-real-ip", "x-request-id"];
    const PREFIXES: [&str; 3] = ["x-forwarded", "client-cert", "x-ssl-"];
    // The first letter already rules out most fields.
    if !matches!(name.as_bytes().first(), Some(b'f' | b'x' | b'c')) {
        return false;
    }
    let same = |own: u8, other: u8| own == other || (own == b'_' && other == b'-');
    let starts = |prefix: &str| {
        name.len() >= prefix.len()
            && name
                .bytes()
                .zip(prefix.bytes())
                .all(|(own, other)| same(own, other))
    };
    NAMES
        .iter()
        .any(|other| name.len() == other.len() && starts(other))
        || PREFIXES.iter().any(|prefix| starts(prefix))
}

/// Joins the cookie fields that HTTP/2 clients split (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut values = headers.get_all(COOKIE).iter();
    if values.next().is_none() || values.next().is_none() {
        return;
    }
    let joined = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect::<Vec<_>>()
        .join(&b"; "[..]);
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

fn add_forwarding(headers: &mut HeaderMap, origin: &Origin<'_>) {
    let scheme = if origin.connection.tls().is_some() {
        "https"
    } else {
        "http"
    };
    let peer = origin.connection.client.peer.ip();

    let chain = joined(headers, &X_FORWARDED_FOR).map(|chain| format!("{chain}, {peer}"));
    set(headers, X_FORWARDED_FOR, chain, &origin.connection.peer_text);

    let mut element = joined(headers, &FORWARDED).map_or_else(String::new, |chain| format!("{chain}, "));
    // Writing to a String cannot fail.
    let _ = match peer {
        IpAddr::V4(peer) => write!(element, "for={peer}"),
        IpAddr::V6(peer) => write!(element, "for=\"[{peer}]\""),
    };
    let host = origin.authority.to_str().unwrap_or_default();
    let quote = if host
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    {
        ""
    } else {
        "\""
    };
    let _ = write!(element, ";host={quote}{host}{quote};proto={scheme}");
    if let Ok(element) = HeaderValue::from_str(&element) {
        headers.insert(FORWARDED, element);
    }

    // Keep the value that a trusted proxy set for the client's connection.
    headers
        .entry(X_FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static(scheme));
    headers
        .entry(X_FORWARDED_HOST)
        .or_insert_with(|| origin.authority.clone());
    headers
        .entry(X_FORWARDED_PORT)
        .or_insert_with(|| HeaderValue::from(origin.port));
    let known = headers.get_all(X_REQUEST_ID).iter().count() == 1
        && headers
            .get(X_REQUEST_ID)
            .is_some_and(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID);
    if !known && let Ok(id) = HeaderValue::from_str(&format!("{:032x}", rand::random::<u128>())) {
        headers.insert(X_REQUEST_ID, id);
    }
}

/// All values of a list field as one.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<&str> = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    (!values.is_empty()).then(|| values.join(", "))
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<String>, otherwise: &HeaderValue) {
    let value = value.and_then(|value| HeaderValue::from_str(&value).ok());
    headers.insert(name, value.unwrap_or_else(|| otherwise.clone()));
}

/// Appends the proxy and the received HTTP version to `Via` (RFC 9110 section 7.6.3).
fn append_via(headers: &mut HeaderMap, version: Version) {
    let received = match version {
        Version::HTTP_2 => "2.0 tlsfarm",
        Version::HTTP_10 => "1.0 tlsfarm",
        _ => "1.1 tlsfarm",
    };
    headers.append(VIA, HeaderValue::from_static(received));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarding_headers_are_recognized_with_hyphens_and_underscores() {
        for name in [
            "forwarded",
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded_proto",
            "x-forwarded",
            "x-real-ip",
            "x_real_ip",
            "client-cert",
            "client_cert",
            "client-cert-chain",
            "x-ssl-client-verify",
            "x-request-id",
        ] {
            assert!(is_claim(name), "{name}");
        }
        for name in [
            "cookie",
            "content-type",
            "x-api-key",
            "forwarded-by-me",
            "from",
            "x-real-ips",
            "client",
        ] {
            assert!(!is_claim(name), "{name}");
        }
    }

    #[test]
    fn every_connection_line_removes_the_fields_that_it_names() {
        let mut headers = HeaderMap::new();
        headers.append(CONNECTION, HeaderValue::from_static("close, x-a"));
        headers.append(CONNECTION, HeaderValue::from_static("X-B , ,\"bad name\""));
        for name in [
            "x-a",
            "x-b",
            "x-c",
            "keep-alive",
            "proxy-connection",
            "proxy-authenticate",
            "proxy-authorization",
            "te",
            "transfer-encoding",
            "upgrade",
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("2"));
        }
        drop_hop_by_hop(&mut headers);
        assert_eq!(
            headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["x-c"]
        );
    }

    #[test]
    fn trailers_carry_no_framing_routing_or_identity_fields() {
        let mut trailers = HeaderMap::new();
        for name in [
            "x-check",
            "connection",
            "x-named",
            "transfer-encoding",
            "content-length",
            "host",
            "trailer",
            "cookie",
            "authorization",
            "forwarded",
            "x-forwarded-for",
            "x_real_ip",
        ] {
            trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("x-named"));
        }
        filter_trailers(&mut trailers);
        assert_eq!(
            trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["x-check"]
        );
    }

    #[test]
    fn ambiguous_response_framing_is_detected() {
        let fields = |length: &[&'static str], coding: &[&'static str]| {
            let field = |name: HeaderName| {
                move |value: &&'static str| (name.clone(), HeaderValue::from_static(value))
            };
            let lengths = length.iter().map(field(CONTENT_LENGTH));
            let mut headers = HeaderMap::new();
            for (name, value) in lengths.chain(coding.iter().map(field(TRANSFER_ENCODING))) {
                headers.append(name, value);
            }
            headers
        };
        for (length, coding, clear) in [
            (&[][..], &[][..], true),
            (&["0"], &[], true),
            (&["7"], &[], true),
            (&[], &["chunked"], true),
            (&[], &["Chunked"], true),
            (&[""], &[], false),
            (&["7, 7"], &[], false),
            (&["7", "7"], &[], false),
            (&["+7"], &[], false),
            (&["7"], &["chunked"], false),
            (&[], &["gzip, chunked"], false),
            (&[], &["gzip", "chunked"], false),
            (&[], &["chunked", "chunked"], false),
            (&[], &["identity"], false),
        ] {
            assert_eq!(
                has_clear_framing(&fields(length, coding)),
                clear,
                "{length:?} {coding:?}"
            );
        }
    }

    #[test]
    fn responses_are_forwarded_without_the_backends_framing() {
        let mut headers = HeaderMap::from_iter([(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))]);
        to_client(&mut headers, Version::HTTP_11);
        assert!(!headers.contains_key(TRANSFER_ENCODING));
        assert_eq!(headers[VIA], "1.1 tlsfarm");
    }

    #[test]
    fn a_trusted_request_id_is_kept_if_it_is_the_only_one_and_short() {
        let connection = ConnectionState::new(crate::proxy::http::Client {
            peer: "192.0.2.7:1".parse().expect("valid"),
            tls: None,
        });
        let authority = HeaderValue::from_static("shop.example.com");
        let longest = "x".repeat(MAX_REQUEST_ID);
        let longer = "x".repeat(MAX_REQUEST_ID + 1);
        for (trusted, ids, kept) in [
            (true, &["chosen"][..], true),
            (true, &[longest.as_str()], true),
            (true, &[longer.as_str()], false),
            (true, &[""], false),
            (true, &["one", "two"], false),
            (true, &[], false),
            (false, &["chosen"], false),
        ] {
            let mut headers = HeaderMap::new();
            for id in ids {
                headers.append(X_REQUEST_ID, HeaderValue::from_str(id).expect("valid"));
            }
            let origin = Origin {
                connection: &connection,
                authority: &authority,
                port: 80,
                version: Version::HTTP_11,
                trusted,
            };
            to_backend(&mut headers, &origin, None);
            let [id] = headers.get_all(X_REQUEST_ID).iter().collect::<Vec<_>>()[..] else {
                panic!("{headers:?}");
            };
            assert_eq!(ids.iter().any(|chosen| id == chosen), kept, "{ids:?}");
            assert!(kept || id.len() == 32, "{id:?}");
        }
    }

    #[test]
    fn upgrades_to_other_http_versions_are_not_tunnelled() {
        let protocol = |value: &'static str| {
            let headers = HeaderMap::from_iter([(UPGRADE, HeaderValue::from_static(value))]);
            tunnelled_protocol(&headers).is_some()
        };
        assert!(protocol("websocket"));
        assert!(protocol("SPDY/3.1"));
        for value in ["h2c", "H2C", "HTTP/2.0", "TLS/1.0", "websocket, h2c", ""] {
            assert!(!protocol(value), "{value:?}");
        }
        let mut headers = HeaderMap::new();
        headers.append(UPGRADE, HeaderValue::from_static("websocket"));
        headers.append(UPGRADE, HeaderValue::from_static("other"));
        assert!(
            tunnelled_protocol(&headers).is_none(),
            "two protocols are ambiguous"
        );
    }
}
