//! Bodies, backends that fail, and balancing.

use tokio::io::AsyncWriteExt;

use super::support::{Backend, Farm, answering, nowhere, run, status};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n";
const GET_CLOSE: &str = "GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n";
const POST_CLOSE: &str =
    "POST / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn bodies_pass_in_both_directions() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let mut client = farm.connect(false);
        let body = "0123456789abcdef".repeat(1 << 16);
        let (mut reader, mut writer) = tokio::io::split(&mut client.stream);
        let request = format!(
            "POST /echo HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let send = async { writer.write_all(request.as_bytes()).await.expect("written") };
        let mut response = String::new();
        let receive = tokio::io::AsyncReadExt::read_to_string(&mut reader, &mut response);
        let ((), received) = tokio::join!(send, receive);
        received.expect("read");
        assert!(response.ends_with(&body), "{} bytes came back", response.len());
        assert_eq!(backend.one().body.len(), body.len());
    });
}

#[test]
fn chunked_bodies_and_trailers_pass_and_forbidden_trailers_do_not() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let response = farm
            .exchange(
                "POST /trailers HTTP/1.1\r\nHost: shop.example.com\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\
                 Trailer: X-Check, X-Real-IP\r\nConnection: close\r\n\r\n\
                 3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Check: 7\r\nX-Real-IP: 6.6.6.6\r\n\r\n",
            )
            .await;
        let seen = backend.one();
        assert_eq!(seen.body, "abcde");
        assert_eq!(seen.field("content-length"), "-");
        let trailers = seen.trailers.expect("trailers arrived");
        assert_eq!(
            trailers.get("x-check").map(|value| value.as_bytes()),
            Some(&b"7"[..])
        );
        assert!(!trailers.contains_key("x-real-ip"), "{trailers:?}");
        assert!(
            response.ends_with("4\r\ndata\r\n0\r\nx-sum: 42\r\n\r\n"),
            "{response:?}"
        );
    });
}

#[test]
fn a_get_with_a_body_keeps_it() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let response = farm
            .exchange(
                "GET /echo HTTP/1.1\r\nHost: shop.example.com\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\
                 \r\n3\r\nabc\r\n0\r\n\r\n",
            )
            .await;
        assert!(response.ends_with("\r\n\r\nabc"), "{response:?}");
    });
}

#[test]
fn responses_without_a_body_keep_the_connection_usable() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let mut client = farm.connect(false);
        client
            .send("HEAD / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
            .await;
        let response = client.read_until("\r\n\r\n").await;
        assert!(response.contains("\r\ncontent-length: 2\r\n"), "{response:?}");
        client
            .send("GET /not-modified HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
            .await;
        assert_eq!(status(&client.read_until("\r\n\r\n").await), 304);
        client
            .send("GET / HTTP/1.0\r\nHost: shop.example.com\r\n\r\n")
            .await;
        let last = client.rest().await;
        assert!(last.starts_with("HTTP/1.0 200"), "{last:?}");
        assert!(last.ends_with("ok"), "{last:?}");
        assert_eq!(backend.connections.get(), 1, "one backend connection serves all");
    });
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let mut client = farm.connect(false);
        client
            .send(
                "POST /echo HTTP/1.1\r\nHost: shop.example.com\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\
                 Connection: close\r\n\r\n",
            )
            .await;
        assert_eq!(
            client.read_until("\r\n\r\n").await,
            "HTTP/1.1 100 Continue\r\n\r\n"
        );
        client.send("abc").await;
        assert!(client.rest().await.ends_with("\r\n\r\nabc"));
        assert_eq!(backend.one().field("expect"), "-");
    });
}

#[test]
fn requests_spread_over_the_backends_and_reuse_their_connections() {
    run(async {
        let backends = [
            Backend::start().await,
            Backend::start().await,
            Backend::start().await,
        ];
        let farm = Farm::new(&backends.each_ref().map(|backend| backend.address));
        let mut client = farm.connect(false);
        for _ in 0..90 {
            client.send(GET).await;
            client.read_until("\r\n\r\nok").await;
        }
        for backend in &backends {
            let served = backend.seen().len();
            assert!(served >= 10, "a backend served {served} of 90");
            assert_eq!(backend.connections.get(), 1);
        }
    });
}

#[test]
fn an_endpoint_that_is_gone_costs_no_request() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[nowhere().await, backend.address, nowhere().await]);
        let mut client = farm.connect(false);
        for _ in 0..30 {
            client.send(POST_CLOSE.replace("Connection: close\r\n", "")).await;
            let response = client.read_until("\r\n\r\nok").await;
            assert_eq!(status(&response), 200);
        }
        assert_eq!(backend.seen().len(), 30);
        let errors = farm.metric("tlsfarm_proxy_upstream_errors_total{kind=\"connect\"}");
        let errors: u32 = errors.and_then(|errors| errors.parse().ok()).unwrap_or(0);
        assert!(errors <= 4, "{errors} attempts at endpoints that had just failed");
    });
}

#[test]
fn a_request_tries_three_endpoints_at_most() {
    run(async {
        let mut gone = Vec::new();
        for _ in 0..6 {
            gone.push(nowhere().await);
        }
        let farm = Farm::new(&gone);
        assert_eq!(status(&farm.exchange(POST_CLOSE).await), 502);
        assert_eq!(
            farm.metric("tlsfarm_proxy_upstream_errors_total{kind=\"connect\"}")
                .as_deref(),
            Some("3")
        );
    });
}

#[test]
fn backends_that_fail_give_a_bad_gateway_without_details() {
    run(async {
        for (name, backend) in [
            ("nothing listens", nowhere().await),
            ("no response", answering("").await),
            ("garbage", answering("SSH-2.0-OpenSSH\r\n\r\n").await),
            (
                "two lengths",
                answering("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab").await,
            ),
            (
                "a list of lengths",
                answering("HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab").await,
            ),
            (
                "a length beside chunks",
                answering(
                    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n\
                     2\r\nab\r\n0\r\n\r\n",
                )
                .await,
            ),
            (
                "a coding that stays",
                answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
                    .await,
            ),
            (
                "a bad length",
                answering("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n").await,
            ),
            (
                "a bad field",
                answering("HTTP/1.1 200 OK\r\nX Y: 1\r\n\r\n").await,
            ),
            (
                "an unasked switch",
                answering("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
                    .await,
            ),
        ] {
            let farm = Farm::new(&[backend]);
            let response = farm.exchange(POST_CLOSE).await;
            assert_eq!(status(&response), 502, "{name}: {response:?}");
            let reason = "invalid response from the backend";
            assert!(
                response.ends_with(&format!("\r\n\r\n{reason}\n")),
                "{name}: {response:?}"
            );
            assert!(!response.contains("127.0.0.1"), "{name}: {response:?}");
            for kind in ["connect", "response"] {
                let errors = farm.metric(&format!("tlsfarm_proxy_upstream_errors_total{{kind=\"{kind}\"}}"));
                let expected = (kind == "connect") == (name == "nothing listens");
                assert_eq!(errors, expected.then(|| "1".to_owned()), "{name}: {kind}");
            }
        }
    });
}

#[test]
fn a_response_that_breaks_off_is_not_passed_on_as_complete() {
    run(async {
        let backend = answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz").await;
        let farm = Farm::new(&[backend]);
        let response = farm.exchange(GET_CLOSE).await;
        assert!(response.contains("abc"), "{response:?}");
        assert!(!response.contains("0\r\n\r\n"), "{response:?}");
        assert_eq!(
            farm.metric("tlsfarm_proxy_upstream_errors_total{kind=\"body\"}")
                .as_deref(),
            Some("1")
        );
    });
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let mut client = farm.connect(false);
        client
            .send("GET /held HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
            .await;
        backend.arrived.notified().await;
        drop(client.stream);
        client.served.await.expect("served");
        super::support::eventually(|| {
            farm.metric("tlsfarm_proxy_upstream_connections").as_deref() == Some("0")
        })
        .await;
    });
}
