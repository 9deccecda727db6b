//! Requests that get no further (F1 to F4 of the requirements, and the routes).

use super::support::{Backend, Farm, run, status};

/// Sends each request on a connection of its own; all get `code` and the reason, the connection ends, the backend sees
/// nothing.
fn refused(code: u16, requests: &'static [(&'static str, &'static [&'static str])]) {
    run(async move {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        for (reason, requests) in requests {
            for request in *requests {
                assert_refused(&farm.exchange(request).await, code, reason);
            }
        }
        assert_eq!(backend.connections.get(), 0);
        let count: usize = requests.iter().map(|(_, requests)| requests.len()).sum();
        let counted = farm.metric(&format!(
            "tlsfarm_proxy_http_requests_total{{protocol=\"http/1.1\",code=\"{code}\"}}"
        ));
        assert_eq!(counted, Some(count.to_string()));
    });
}

/// Whether this is all that came: one response of our own, which says why and is not kept by anybody.
fn assert_refused(response: &str, code: u16, reason: &str) {
    assert_eq!(status(response), code, "{response:?}");
    assert!(
        response.ends_with(&format!("\r\n\r\n{reason}\n")),
        "{reason:?} and not {response:?}"
    );
    assert_eq!(response.matches("content-length: ").count(), 1, "{response:?}");
    for field in [
        "connection: close",
        "content-type: text/plain; charset=utf-8",
        "cache-control: no-store",
    ] {
        assert!(response.contains(&format!("\r\n{field}\r\n")), "{response:?}");
    }
    assert_eq!(
        response.contains("\r\nallow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"),
        code == 405,
        "{response:?}"
    );
}

#[test]
fn ambiguous_framing_is_a_bad_request_and_ends_the_connection() {
    const NEXT: &str = "GET /smuggled HTTP/1.1\r\nHost: shop.example.com\r\n\r\n";
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        for (fields, reason) in [
            (
                "Content-Length: 4\r\nTransfer-Encoding: chunked",
                "both Content-Length and Transfer-Encoding are present",
            ),
            (
                "Content-Length: 4\r\nContent-Length: 5",
                "conflicting Content-Length header fields",
            ),
            ("Content-Length: +4", "Content-Length is not a number"),
            ("Content-Length: 4, 4", "Content-Length is not a number"),
            (
                "Transfer-Encoding: xchunked",
                "only Transfer-Encoding: chunked is supported",
            ),
            (
                "Transfer-Encoding: chunked, identity",
                "only Transfer-Encoding: chunked is supported",
            ),
            ("Transfer-Encoding : chunked", "a header name is malformed"),
            ("Transfer-Encoding: chunked\n", "bare LF in the request head"),
        ] {
            let request =
                format!("POST / HTTP/1.1\r\nHost: shop.example.com\r\n{fields}\r\n\r\n0\r\n\r\n{NEXT}");
            assert_refused(&farm.exchange(request).await, 400, reason);
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
            (
                "bare LF in the request head",
                &["GET / HTTP/1.1\nHost: shop.example.com\n\n"],
            ),
            (
                "control character in the request head",
                &[
                    "GET / HTTP/1.1\r\nHost: shop.example.com\r\nX: a\0b\r\n\r\n",
                    "\x16\x03\x01\x02\x00\x01\x00\x01",
                ],
            ),
            (
                "a header line begins with whitespace",
                &[
                    "GET / HTTP/1.1\r\nHost: shop.example.com\r\nX: a\r\n b\r\n\r\n",
                    "GET / HTTP/1.1\r\n Host: shop.example.com\r\n\r\n",
                ],
            ),
            (
                "the request line is malformed",
                &["GET / x HTTP/1.1\r\nHost: shop.example.com\r\n\r\n"],
            ),
        ],
    );
}

#[test]
fn requests_refused_only_by_hyper_are_bad_requests_too() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let delete = "GET / HTTP/1.1\r\nHost: shop.example.com\r\nX: a\x7fb\r\n\r\n";
        let response = farm.exchange(delete).await;
        assert_eq!(status(&response), 400);
        assert!(response.contains("\r\nconnection: close\r\n"), "{response:?}");
        assert_eq!(backend.connections.get(), 0);
    });
}

#[test]
fn requests_need_exactly_one_valid_host() {
    refused(
        400,
        &[
            (
                "missing Host header field",
                &[
                    "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
                    "GET https://shop.example.com/ HTTP/1.1\r\nConnection: close\r\n\r\n",
                ],
            ),
            (
                "multiple Host header fields",
                &[
                    "GET / HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\nHost: shop.example.com\r\n\r\n",
                ],
            ),
            (
                "malformed Host header field",
                &[
                    "GET / HTTP/1.1\r\nConnection: close\r\nHost:\r\n\r\n",
                    "GET / HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com/x\r\n\r\n",
                    "GET / HTTP/1.1\r\nConnection: close\r\nHost: a@shop.example.com\r\n\r\n",
                    "GET / HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com:http\r\n\r\n",
                    "GET https://a@shop.example.com/ HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n",
                ],
            ),
        ],
    );
}

#[test]
fn a_connection_for_one_host_serves_no_other() {
    refused(
        421,
        &[(
            "this connection is for a different host name",
            &[
                "GET / HTTP/1.1\r\nConnection: close\r\nHost: other.example.com\r\n\r\n",
                "GET / HTTP/1.1\r\nConnection: close\r\nHost: unknown.example.com\r\n\r\n",
                "GET / HTTP/1.1\r\nConnection: close\r\nHost: a.b.shop.example.com\r\n\r\n",
                "GET https://other.example.com/ HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n",
            ],
        )],
    );
}

#[test]
fn paths_that_climb_out_of_their_route_are_bad_requests() {
    refused(
        400,
        &[(
            "the path contains a .. segment",
            &[
                "GET /a/../b HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n",
                "GET /a/%2e%2e/b HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n",
                "GET /a/..%2fb HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n",
            ],
        )],
    );
}

#[test]
fn trace_and_connect_are_not_allowed() {
    refused(
        405,
        &[
            (
                "this method is not supported",
                &["TRACE / HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n"],
            ),
            (
                "CONNECT is not supported",
                &["CONNECT shop.example.com:443 HTTP/1.1\r\nHost: shop.example.com:443\r\n\r\n"],
            ),
        ],
    );
}

#[test]
fn a_service_without_endpoints_is_unavailable() {
    refused(
        503,
        &[(
            "no ready endpoint for this route",
            &["GET /missing/x HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n"],
        )],
    );
    run(async {
        let farm = Farm::new(&[]);
        let get = "GET / HTTP/1.1\r\nConnection: close\r\nHost: shop.example.com\r\n\r\n";
        assert_refused(&farm.exchange(get).await, 503, "no ready endpoint for this route");
        let errors = farm.metric("tlsfarm_proxy_upstream_errors_total{kind=\"no_endpoints\"}");
        assert_eq!(errors.as_deref(), Some("1"));
    });
}

#[test]
fn too_large_heads_have_their_own_codes() {
    run(async {
        let farm = Farm::new(&[]);
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000));
        assert_refused(&farm.exchange(long).await, 414, "the request line is too long");
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101));
        assert_refused(
            &farm.exchange(many).await,
            431,
            "the request's header fields are too large",
        );
        assert_refused(
            &farm.exchange("GET / HTTP/2.0\r\n\r\n").await,
            505,
            "only HTTP/1.0 and HTTP/1.1 are supported",
        );
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
        assert_refused(&response, 400, "the request's body is malformed or incomplete");
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
