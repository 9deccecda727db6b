//! What crosses the proxy and what it adds (F5, F10 and F14 of the requirements).

use super::support::{Backend, Farm, Seen, run, status};

/// What the backend sees of a GET with these fields.
async fn seen_with(peer: &str, more: &str, fields: &str) -> Seen {
    let backend = Backend::start().await;
    let mut farm = Farm::with(&[backend.address], more);
    farm.peer = peer.parse().expect("valid");
    let request = format!("GET /a?b HTTP/1.1\r\nHost: shop.example.com\r\n{fields}\r\n");
    let mut client = farm.connect(false);
    client.send(request).await;
    let response = client.read_until("\r\n\r\nok").await;
    assert_eq!(status(&response), 200, "{response:?}");
    backend.one()
}

#[test]
fn the_backend_learns_about_the_client() {
    run(async {
        let seen = seen_with("192.0.2.7:1234", "", "").await;
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/a?b"));
        assert_eq!(seen.field("host"), "shop.example.com");
        assert_eq!(seen.field("x-forwarded-for"), "192.0.2.7");
        assert_eq!(seen.field("x-forwarded-proto"), "https");
        assert_eq!(seen.field("x-forwarded-host"), "shop.example.com");
        assert_eq!(seen.field("x-forwarded-port"), "443");
        assert_eq!(
            seen.field("forwarded"),
            "for=192.0.2.7;host=shop.example.com;proto=https"
        );
        assert_eq!(seen.field("via"), "1.1 tlsfarm");
        let id = seen.field("x-request-id");
        assert!(
            id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{id}"
        );

        let seen = seen_with("[2001:db8::7]:1234", "", "").await;
        assert_eq!(seen.field("x-forwarded-for"), "2001:db8::7");
        assert_eq!(
            seen.field("forwarded"),
            "for=\"[2001:db8::7]\";host=shop.example.com;proto=https"
        );
        let seen = seen_with("[::ffff:192.0.2.7]:1234", "", "").await;
        assert_eq!(seen.field("x-forwarded-for"), "192.0.2.7");
    });
}

#[test]
fn a_port_in_the_authority_is_passed_on_and_quoted() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let response = farm
            .exchange("GET / HTTP/1.1\r\nHost: a.shop.example.com:8443\r\nConnection: close\r\n\r\n")
            .await;
        assert_eq!(status(&response), 200);
        let seen = backend.one();
        assert_eq!(seen.field("host"), "a.shop.example.com:8443");
        assert_eq!(seen.field("x-forwarded-port"), "8443");
        assert_eq!(
            seen.field("forwarded"),
            "for=192.0.2.7;host=\"a.shop.example.com:8443\";proto=https"
        );
    });
}

const CLAIMS: &str = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX_Forwarded_For: 6.6.6.6\r\n\
    X-Forwarded-Proto: gopher\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 6\r\nX-Forwarded-Prefix: /evil\r\n\
    Forwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\nClient-Cert: :Zm9v:\r\n\
    Client_Cert_Chain: x\r\nX-SSL-Client-Verify: SUCCESS\r\nX-Request-Id: chosen\r\nX-Other: kept\r\n";

#[test]
fn claims_of_clients_are_dropped() {
    run(async {
        let seen = seen_with("192.0.2.7:1234", "", CLAIMS).await;
        assert_eq!(seen.field("x-forwarded-for"), "192.0.2.7");
        assert_eq!(seen.field("x-forwarded-proto"), "https");
        assert_eq!(seen.field("x-forwarded-host"), "shop.example.com");
        assert_eq!(seen.field("x-forwarded-port"), "443");
        assert_eq!(
            seen.field("forwarded"),
            "for=192.0.2.7;host=shop.example.com;proto=https"
        );
        assert_ne!(seen.field("x-request-id"), "chosen");
        for name in [
            "x_forwarded_for",
            "x-forwarded-prefix",
            "x-real-ip",
            "x_real_ip",
            "client-cert",
            "client_cert_chain",
            "x-ssl-client-verify",
        ] {
            assert_eq!(seen.field(name), "-", "{name}");
        }
        assert_eq!(seen.field("x-other"), "kept");
    });
}

#[test]
fn claims_of_trusted_proxies_are_kept_and_extended() {
    run(async {
        let seen = seen_with("192.0.2.7:1234", "trustedProxies: [192.0.2.0/24]", CLAIMS).await;
        assert_eq!(seen.field("x-forwarded-for"), "6.6.6.6, 7.7.7.7, 192.0.2.7");
        assert_eq!(seen.field("x-forwarded-proto"), "gopher");
        assert_eq!(seen.field("x-forwarded-host"), "evil");
        assert_eq!(
            seen.field("forwarded"),
            "for=6.6.6.6, for=192.0.2.7;host=shop.example.com;proto=https"
        );
        assert_eq!(seen.field("x-request-id"), "chosen");
        assert_eq!(seen.field("client-cert"), ":Zm9v:");
        assert_eq!(seen.field("x_forwarded_for"), "-");
        assert_eq!(seen.field("client_cert_chain"), "-");
    });
}

#[test]
fn fields_of_one_connection_stay_on_it_and_cannot_take_ours_away() {
    run(async {
        let fields = "Connection: x-gone, x-forwarded-for, forwarded, via, host\r\nX-Gone: 1\r\nKeep-Alive: 5\r\n\
            Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\nTE: gzip\r\nUpgrade: h2c\r\nX-Stays: 1\r\n";
        let seen = seen_with("192.0.2.7:1234", "", fields).await;
        for name in [
            "x-gone",
            "keep-alive",
            "proxy-connection",
            "proxy-authorization",
            "te",
            "upgrade",
            "connection",
        ] {
            assert_eq!(seen.field(name), "-", "{name}");
        }
        assert_eq!(seen.field("x-stays"), "1");
        assert_eq!(seen.field("host"), "shop.example.com");
        assert_eq!(seen.field("x-forwarded-for"), "192.0.2.7");
        assert_eq!(seen.field("via"), "1.1 tlsfarm");

        let seen = seen_with("192.0.2.7:1234", "", "TE: gzip, trailers\r\nVia: 1.0 x\r\n").await;
        assert_eq!(seen.field("te"), "trailers");
        assert_eq!(seen.field("connection"), "te");
        assert_eq!(seen.field("via"), "1.0 x | 1.1 tlsfarm");
    });
}

#[test]
fn an_absolute_target_replaces_the_host() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let response = farm
            .exchange(
                "GET https://a.shop.example.com/x?y HTTP/1.1\r\nHost: other.example.com\r\n\
                 Connection: close\r\n\r\n",
            )
            .await;
        assert_eq!(status(&response), 200);
        let seen = backend.one();
        assert_eq!(seen.target, "/x?y");
        assert_eq!(seen.field("host"), "a.shop.example.com");
    });
}

#[test]
fn fields_of_the_backends_connection_do_not_reach_the_client() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let mut client = farm.connect(false);
        client
            .send("GET /hops HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
            .await;
        let response = client.read_until("\r\n\r\nhops").await;
        for field in [
            "connection:",
            "x-secret:",
            "keep-alive:",
            "upgrade:",
            "proxy-authenticate:",
        ] {
            assert!(!response.contains(field), "{field} in {response:?}");
        }
        assert!(response.contains("\r\nx-kept: 1\r\n"));
        assert!(response.contains("\r\nvia: 1.1 tlsfarm\r\n"));
    });
}
