//! Requests that get no further (F1 to F4 of the requirements, and the routes).

use super::support::{Backend, Farm, run, status};

/// Sends each request on a connection of its own; all get `code`, the connection ends, the backend sees nothing.
fn refused(code: u16, requests: &'static [&'static str]) {
    run(async move {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        for request in requests {
            let response = farm.exchange(request).await;
            assert_eq!(status(&response), code, "{request:?} got {response:?}");
            assert_eq!(
                response.matches("HTTP/1.").count(),
                1,
                "{request:?} got {response:?}"
            );
        }
        assert_eq!(backend.connections.get(), 0);
    });
}

#[test]
fn ambiguous_framing_is_a_bad_request_and_ends_the_connection() {
    const NEXT: &str = "GET /smuggled HTTP/1.1\r\nHost: shop.example.com\r\n\r\n";
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        for fields in [
            "Content-Length: 4\r\nTransfer-Encoding: chunked",
            "Content-Length: 4\r\nContent-Length: 5",
            "Content-Length: +4",
            "Content-Length: 4, 4",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding: chunked\n",
        ] {
            let request =
                format!("POST / HTTP/1.1\r\nHost: shop.example.com\r\n{fields}\r\n\r\n0\r\n\r\n{NEXT}");
            let response = farm.exchange(request).await;
            assert_eq!(status(&response), 400, "{fields:?}");
            assert!(response.contains("\r\nconnection: close\r\n"), "{response:?}");
            assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{fields:?}");
        }
        assert_eq!(backend.connections.get(), 0);
        let counted = farm.metric("tlsfarm_proxy_http_requests_total{protocol=\"http/1.1\",code=\"400\"}");
        assert_eq!(counted.as_deref(), Some("8"));
    });
}

#[test]
fn malformed_heads_are_bad_requests() {
    refused(
        400,
        &[
            "GET / HTTP/1.1\nHost: shop.example.com\n\n",
            "GET / HTTP/1.1\r\nHost: shop.example.com\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: shop.example.com\r\nX: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: shop.example.com\r\n\r\n",
            "GET / x HTTP/1.1\r\nHost: shop.example.com\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00\x01",
            // Taken by the guard, refused by hyper.
            "GET / HTTP/1.1\r\nHost: shop.example.com\r\nX: a\x7fb\r\n\r\n",
        ],
    );
}

#[test]
fn the_host_must_be_one_and_valid() {
    refused(
        400,
        &[
            "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\nHost: shop.example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nConnection: close\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com/x\r\n\r\n",
            "GET / HTTP/1.1\r\nConnection: close\r\nHost: a@shop.example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com:http\r\n\r\n",
            "GET https://shop.example.com/ HTTP/1.1\r\nConnection: close\r\n\r\n",
            "GET https://a@shop.example.com/ HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n",
        ],
    );
}

#[test]
fn a_connection_for_one_host_serves_no_other() {
    refused(
        421,
        &[
            "GET / HTTP/1.1\r\nConnection: close\r\nHost: other.example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nConnection: close\r\nHost: unknown.example.com\r\n\r\n",
            "GET / HTTP/1.1\r\nConnection: close\r\nHost: a.b.shop.example.com\r\n\r\n",
            "GET https://other.example.com/ HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n",
        ],
    );
}

#[test]
fn paths_that_climb_out_of_their_route_are_bad_requests() {
    refused(
        400,
        &[
            "GET /a/../b HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n",
            "GET /a/%2e%2e/b HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n",
            "GET /a/..%2fb HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n",
        ],
    );
}

#[test]
fn trace_and_connect_are_not_allowed() {
    refused(
        405,
        &[
            "TRACE / HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n",
            "CONNECT shop.example.com:443 HTTP/1.1\r\nHost: shop.example.com:443\r\n\r\n",
        ],
    );
}

#[test]
fn a_service_without_endpoints_is_unavailable() {
    refused(
        503,
        &["GET /missing/x HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n"],
    );
}

#[test]
fn too_large_heads_have_their_own_codes() {
    run(async {
        let farm = Farm::new(&[]);
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000));
        assert_eq!(status(&farm.exchange(long).await), 414);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101));
        assert_eq!(status(&farm.exchange(many).await), 431);
        assert_eq!(status(&farm.exchange("GET / HTTP/2.0\r\n\r\n").await), 505);
    });
}

#[test]
fn a_bad_chunk_ends_the_request_at_the_backend_too() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let response = farm
            .exchange(
                "POST / HTTP/1.1\r\nHost: shop.example.com\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3\r\nabc\r\n0x1\r\nd\r\n0\r\n\r\n",
            )
            .await;
        assert_eq!(status(&response), 400, "{response:?}");
        assert!(
            backend.seen().is_empty(),
            "the backend took half a body for a whole one"
        );
    });
}

#[test]
fn a_refusal_comes_after_the_answers_to_the_requests_before_it() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let response = farm
            .exchange(
                "GET /1 HTTP/1.1\r\nHost: shop.example.com\r\n\r\n\
                 POST /echo HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 3\r\n\r\nabc\
                 GET /3 HTTP/1.1\nHost: shop.example.com\n\n",
            )
            .await;
        let codes: Vec<&str> = response
            .match_indices("HTTP/1.1 ")
            .map(|(at, _)| &response[at + 9..at + 12])
            .collect();
        assert_eq!(codes, ["200", "200", "400"], "{response:?}");
        assert_eq!(backend.seen().len(), 2);
    });
}

#[test]
fn plain_http_is_redirected_for_names_that_are_served() {
    run(async {
        let farm = Farm::new(&[]);
        let mut client = farm.connect_plain();
        client
            .send("GET /a?b=c HTTP/1.1\r\nHost: Shop.Example.com:8080\r\n\r\n")
            .await;
        let response = client.read_until("\r\n\r\n").await;
        assert_eq!(status(&response), 308);
        assert!(
            response.contains("\r\nlocation: https://Shop.Example.com/a?b=c\r\n"),
            "{response:?}"
        );
        client
            .send("GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
            .await;
        assert_eq!(status(&client.rest().await), 404);
    });
}

#[test]
fn plain_http_is_forwarded_when_the_farm_says_so() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::with(&[backend.address], "http: Serve");
        let mut client = farm.connect_plain();
        client
            .send("GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n")
            .await;
        assert_eq!(status(&client.rest().await), 200);
        let seen = backend.one();
        assert_eq!(seen.field("x-forwarded-proto"), "http");
        assert_eq!(seen.field("x-forwarded-port"), "80");
        let mut client = farm.connect_plain();
        client.send("\x16\x03\x01\x02\x00\x01\x00\x01").await;
        assert_eq!(status(&client.rest().await), 400);
    });
}

#[test]
fn a_refusal_reaches_a_client_that_is_still_sending() {
    run(async {
        let farm = Farm::new(&[]);
        let body = "x".repeat(200_000);
        let response = farm
            .exchange(format!(
                "POST /missing HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 200000\r\n\r\n{body}"
            ))
            .await;
        assert_eq!(status(&response), 503, "{response:?}");
        assert!(response.contains("\r\nconnection: close\r\n"), "{response:?}");
    });
}
