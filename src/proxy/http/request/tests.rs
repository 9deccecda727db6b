//! What becomes of requests whose bytes are fine.

use std::sync::Arc;

use http::Request;
use http::request::Builder;
use rustls::ProtocolVersion;

use super::*;
use crate::config::{Backend, ProxyConfig};
use crate::proxy::control::snapshot::fixtures::without_certificates;
use crate::proxy::http::{Client, ClientTls};

const CONFIG: &str = r#"
version: 1
farm: web/shop
listen: {https: "[::]:8443", admin: "[::]:9090"}
ring: ring.json
tickets: {lifetime: 4h, maxAge: 24h}
drainPeriod: 25s
hosts:
- name: shop
  hostnames: [shop.example.com, "*.shop.example.com"]
  certificates: [{name: c, certificate: c, key: k}]
  routes: [{path: /, backend: {addresses: ["127.0.0.1:1"]}}]
- name: other
  hostnames: [other.example.com]
  certificates: [{name: c, certificate: c, key: k}]
  routes: [{path: /only, backend: {addresses: ["127.0.0.1:2"]}}]
"#;

/// What a request came to.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// Goes to the backend with this port, for this authority and port.
    To(u16, String, u16),
    Redirect(String),
    Refused(u16, &'static str),
}

/// What becomes of a request on a connection: for the host `tls`, or of plain HTTP in this mode.
fn verdict_on(tls: Option<&str>, http: HttpMode, request: Builder) -> Verdict {
    let mut config = ProxyConfig::parse(CONFIG).expect("valid");
    config.http = http;
    let snapshot = without_certificates(config);
    let connection = ConnectionState::new(Client {
        peer: "192.0.2.7:1".parse().expect("valid"),
        tls: tls.map(|hostname| ClientTls {
            host: Arc::clone(snapshot.host(hostname).expect("configured")),
            version: ProtocolVersion::TLSv1_3,
            http2: true,
        }),
    });
    let (parts, ()) = request.body(()).expect("a request").into_parts();
    match admit(&parts, &connection, &snapshot) {
        Ok(Admission::Forward {
            route,
            authority,
            port,
        }) => match &route.backend {
            Backend::Addresses(addresses) => Verdict::To(addresses[0].port(), text(&authority), port),
            Backend::Service(_) => panic!("a backend that is not configured"),
        },
        Ok(Admission::Redirect(location)) => Verdict::Redirect(text(&location)),
        Err(refusal) => Verdict::Refused(refusal.status.as_u16(), refusal.reason),
    }
}

fn text(value: &HeaderValue) -> String {
    value.to_str().expect("ASCII").into()
}

/// What becomes of a request on a connection for the host `shop`.
fn verdict(request: Builder) -> Verdict {
    verdict_on(Some("shop.example.com"), HttpMode::Redirect, request)
}

fn http1(target: &str) -> Builder {
    Request::get(target).header(HOST, "shop.example.com")
}

fn http2(target: &str) -> Builder {
    let uri = format!("https://shop.example.com{target}");
    Request::get(uri).version(Version::HTTP_2)
}

fn to_shop() -> Verdict {
    Verdict::To(1, "shop.example.com".into(), 443)
}

#[test]
fn trace_and_connect_are_not_served() {
    for method in [Method::TRACE, Method::CONNECT] {
        assert_eq!(
            verdict(http2("/").method(method)),
            Verdict::Refused(405, "this method is not supported")
        );
    }
    for method in ["GET", "POST", "OPTIONS", "PROPFIND"] {
        assert_eq!(verdict(http2("/").method(method)), to_shop(), "{method}");
    }
}

#[test]
fn fields_are_counted_in_every_version() {
    let with = |count: usize| (0..count).fold(http2("/"), |request, _| request.header("a", "b"));
    assert_eq!(verdict(with(MAX_FIELDS)), to_shop());
    assert_eq!(
        verdict(with(MAX_FIELDS + 1)),
        Verdict::Refused(431, "too many header fields")
    );
}

#[test]
fn a_target_is_as_long_as_a_request_line_at_most() {
    for query in [false, true] {
        let target = |length: usize| {
            let mut target = "/".repeat(length);
            if query {
                target.replace_range(length / 2..=length / 2, "?");
            }
            target
        };
        assert_eq!(verdict(http2(&target(MAX_REQUEST_LINE))), to_shop());
        assert_eq!(
            verdict(http2(&target(MAX_REQUEST_LINE + 1))),
            Verdict::Refused(414, "the request target is too long")
        );
    }
}

#[test]
fn a_target_is_a_path_that_does_not_climb() {
    let star = Request::options("*").header(HOST, "shop.example.com");
    assert_eq!(
        verdict(star),
        Verdict::Refused(400, "the request target is malformed")
    );
    assert_eq!(
        verdict(http2("/a/..%2fb")),
        Verdict::Refused(400, "the path contains a .. segment")
    );
    assert_eq!(
        verdict(http2("/a?b/../c")),
        to_shop(),
        "a query is not part of the path"
    );
    assert_eq!(verdict(http2("")), to_shop(), "an empty path is the root");
}

#[test]
fn there_is_one_valid_host() {
    assert_eq!(verdict(http1("/")), to_shop());
    assert_eq!(
        verdict(Request::get("/")),
        Verdict::Refused(400, "missing Host header field")
    );
    assert_eq!(
        verdict(http1("/").header(HOST, "shop.example.com")),
        Verdict::Refused(400, "multiple Host header fields")
    );
    for host in [
        "",
        "a b",
        "user@shop.example.com",
        "shop.example.com:http",
        "sh\u{f6}p",
    ] {
        assert_eq!(
            verdict(Request::get("/").header(HOST, host)),
            Verdict::Refused(400, "malformed Host header field"),
            "{host:?}"
        );
    }
}

#[test]
fn the_target_authority_wins_and_http1_requires_a_host_even_so() {
    let absolute = "https://a.shop.example.com:8443/x";
    assert_eq!(
        verdict(Request::get(absolute).header(HOST, "other.example.com")),
        Verdict::To(1, "a.shop.example.com:8443".into(), 8443)
    );
    assert_eq!(
        verdict(Request::get(absolute)),
        Verdict::Refused(400, "missing Host header field")
    );
    assert_eq!(
        verdict(Request::get(absolute).header(HOST, "a b")),
        Verdict::Refused(400, "malformed Host header field")
    );
    assert_eq!(
        verdict(Request::get("https://user@shop.example.com/").header(HOST, "shop.example.com")),
        Verdict::Refused(400, "malformed Host header field")
    );
}

#[test]
fn http2_clients_may_send_the_host_beside_or_in_place_of_the_authority() {
    for host in ["shop.example.com", "SHOP.example.com.", "shop.example.com:443"] {
        assert_eq!(verdict(http2("/").header(HOST, host)), to_shop(), "{host}");
    }
    for host in ["other.example.com", "shop.example.com:444"] {
        assert_eq!(
            verdict(http2("/").header(HOST, host)),
            Verdict::Refused(400, ":authority and the Host header field differ"),
            "{host}"
        );
    }
    assert_eq!(verdict(http1("/").version(Version::HTTP_2)), to_shop());
    assert_eq!(
        verdict(Request::get("/").version(Version::HTTP_2)),
        Verdict::Refused(400, "missing Host header field")
    );
}

#[test]
fn a_connection_serves_the_names_of_its_host_only() {
    let misdirected = Verdict::Refused(421, "this connection is for a different host name");
    for host in ["other.example.com", "unknown.example", "a.b.shop.example.com"] {
        let request = Request::get("/only").header(HOST, host);
        assert_eq!(verdict(request), misdirected, "{host}");
    }
    let request = Request::get("/only").header(HOST, "other.example.com");
    assert_eq!(
        verdict_on(Some("other.example.com"), HttpMode::Disabled, request),
        Verdict::To(2, "other.example.com".into(), 443)
    );
    let request = Request::get("/").header(HOST, "other.example.com");
    assert_eq!(
        verdict_on(Some("other.example.com"), HttpMode::Serve, request),
        Verdict::Refused(404, "no route matches this path")
    );
}

#[test]
fn plain_http_is_served_redirected_or_refused_as_the_farm_says() {
    let request = || Request::get("/a?b").header(HOST, "Shop.example.com:8080");
    assert_eq!(
        verdict_on(None, HttpMode::Redirect, request()),
        Verdict::Redirect("https://Shop.example.com/a?b".into())
    );
    assert_eq!(
        verdict_on(None, HttpMode::Serve, request()),
        Verdict::To(1, "Shop.example.com:8080".into(), 8080)
    );
    assert_eq!(
        verdict_on(None, HttpMode::Serve, http1("/")),
        Verdict::To(1, "shop.example.com".into(), 80)
    );
    let not_served = Verdict::Refused(404, "unknown host name");
    assert_eq!(verdict_on(None, HttpMode::Disabled, request()), not_served);
    let unknown = Request::get("/").header(HOST, "unknown.example");
    assert_eq!(verdict_on(None, HttpMode::Redirect, unknown), not_served);
}
