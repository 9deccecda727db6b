//! HTTP/2 clients, with HTTP/1.1 behind the proxy (F4 and F8 of the requirements).

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::ProtocolVersion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, spawn_local};

use super::support::{Backend, Farm, RawClient, read_head, run, scripted};
use crate::proxy::http::ClientTls;
use crate::proxy::http::h1::framing::MAX_REQUEST_LINE;

type TestBody = BoxBody<Bytes, Infallible>;

#[derive(Clone)]
struct Executor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// An HTTP/2 client on a new connection to the host `shop`.
pub(super) async fn connect(farm: &Farm) -> (SendRequest<TestBody>, JoinHandle<hyper::Result<()>>) {
    connect_as(farm, farm.tls(ProtocolVersion::TLSv1_3, true)).await
}

/// The same after another handshake.
pub(super) async fn connect_as(
    farm: &Farm,
    tls: ClientTls,
) -> (SendRequest<TestBody>, JoinHandle<hyper::Result<()>>) {
    let io = TokioIo::new(farm.connect_as(Some(tls)).stream);
    let (sender, connection) = hyper::client::conn::http2::handshake(Executor, io)
        .await
        .expect("a handshake");
    (sender, spawn_local(connection))
}

pub(super) fn get(uri: &str) -> Request<TestBody> {
    request(Method::GET, uri, &[])
}

fn request(method: Method, uri: &str, fields: &[(&str, &str)]) -> Request<TestBody> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Empty::new().boxed()).expect("a valid request")
}

#[test]
fn requests_are_translated() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let (mut sender, _) = connect(&farm).await;
        let fields = [
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("te", "trailers"),
            ("x-real-ip", "6.6.6.6"),
        ];
        let response = sender
            .send_request(request(Method::GET, "https://a.shop.example.com/x?y", &fields))
            .await
            .expect("a response");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["via"], "1.1 tlsfarm");
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(body, "ok");
        let seen = backend.one();
        assert_eq!(seen.target, "/x?y");
        assert_eq!(seen.field("host"), "a.shop.example.com");
        assert_eq!(seen.field("cookie"), "a=1; b=2");
        assert_eq!(seen.field("via"), "2.0 tlsfarm");
        assert_eq!(seen.field("x-real-ip"), "-");
        assert_eq!(seen.field("transfer-encoding"), "-");
        let counted = farm.metric("tlsfarm_proxy_http_requests_total{protocol=\"h2\",code=\"200\"}");
        assert_eq!(counted.as_deref(), Some("1"));
    });
}

#[test]
fn bodies_and_trailers_are_translated() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let (mut sender, _) = connect(&farm).await;

        // Without a length, also where hyper's client would send no body.
        for method in [Method::POST, Method::GET] {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-check", "7".parse().expect("valid"));
            let frames = [Frame::data(Bytes::from_static(b"abc")), Frame::trailers(trailers)];
            let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
            let request = Request::builder()
                .method(method)
                .uri("https://shop.example.com/trailers")
                .header("trailer", "x-check")
                .header("te", "trailers")
                .body(BodyExt::boxed(body))
                .expect("a valid request");
            let response = sender.send_request(request).await.expect("a response");
            let body = response.into_body().collect().await.expect("a body");
            let trailers = body.trailers().cloned().expect("trailers");
            assert_eq!(trailers["x-sum"], "42");
            assert!(!trailers.contains_key("x-forwarded-for"));
            assert_eq!(body.to_bytes(), "data");
            let seen = backend.one();
            assert_eq!(seen.body, "abc");
            assert_eq!(seen.trailers.expect("trailers arrived")["x-check"], "7");
        }

        let big = Bytes::from(vec![b'x'; 1 << 20]);
        let request = Request::post("https://shop.example.com/echo")
            .body(Full::new(big.clone()).boxed())
            .expect("a valid request");
        let response = sender.send_request(request).await.expect("a response");
        assert_eq!(
            response.into_body().collect().await.expect("a body").to_bytes(),
            big
        );
        assert_eq!(backend.one().field("content-length"), big.len().to_string());
    });
}

#[test]
fn the_authority_wins_and_must_be_of_the_host() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let (mut sender, _) = connect(&farm).await;
        for (method, uri, fields, code) in [
            (
                Method::GET,
                "https://shop.example.com/",
                &[("host", "shop.example.com")][..],
                200,
            ),
            (
                Method::GET,
                "https://shop.example.com/",
                &[("host", "SHOP.example.com:443")],
                200,
            ),
            (
                Method::GET,
                "https://shop.example.com/",
                &[("host", "other.example.com")],
                400,
            ),
            (Method::GET, "https://other.example.com/only", &[], 421),
            (Method::GET, "https://unknown.example/", &[], 421),
            (Method::GET, "https://shop.example.com/a/%2e%2e/b", &[], 400),
            (Method::GET, "https://shop.example.com/missing", &[], 503),
            (Method::TRACE, "https://shop.example.com/", &[], 405),
        ] {
            let response = sender
                .send_request(request(method, uri, fields))
                .await
                .expect("a response");
            assert_eq!(response.status(), code, "{uri} {fields:?}");
        }
        let seen = backend.seen();
        assert_eq!(seen.len(), 2);
        assert!(seen.iter().all(|seen| seen.field("host") == "shop.example.com"));
    });
}

#[test]
fn a_target_is_limited_as_on_http1() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let (mut sender, _) = connect(&farm).await;
        let target = |length: usize| format!("/{}", "x".repeat(length - 1));
        for (length, code) in [(MAX_REQUEST_LINE, 200), (MAX_REQUEST_LINE + 1, 414)] {
            let uri = format!("https://shop.example.com{}", target(length));
            let response = sender.send_request(get(&uri)).await.expect("a response");
            assert_eq!(response.status(), code, "{length}");
        }
        assert_eq!(backend.one().target, target(MAX_REQUEST_LINE));
    });
}

#[test]
fn draining_says_goaway_and_answers_what_is_being_served() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::new(&[backend.address]);
        let (mut sender, connection) = connect(&farm).await;
        let held = sender.send_request(get("https://shop.example.com/held"));
        let held = spawn_local(held);
        backend.arrived.notified().await;
        farm.draining.cancel();
        backend.release.notify_one();
        let response = held.await.expect("joined").expect("a response");
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.expect("a body");
        connection.await.expect("joined").expect("a clean end");
    });
}

#[test]
fn many_streams_are_served_at_once() {
    run(async {
        let backends = [Backend::start().await, Backend::start().await];
        let farm = Farm::new(&backends.each_ref().map(|backend| backend.address));
        let (sender, _) = connect(&farm).await;
        let requests = (0..100).map(|_| {
            let mut sender = sender.clone();
            async move {
                let response = sender.send_request(get("https://shop.example.com/")).await;
                let response = response.expect("a response");
                assert_eq!(response.status(), StatusCode::OK);
                response.into_body().collect().await.expect("a body").to_bytes()
            }
        });
        for body in futures::future::join_all(requests).await {
            assert_eq!(body, "ok");
        }
        for backend in &backends {
            let served = backend.seen().len();
            assert!((30..=70).contains(&served), "a backend served {served} of 100");
        }
    });
}

const HEADERS: u8 = 1;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// The preface of a connection, and settings that leave everything as it is.
async fn send_preface(client: &mut RawClient) {
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.send([0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
}

/// Type and payload of the next frame.
async fn read_frame(client: &mut RawClient) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    client.stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
    let whole = client.stream.read_exact(&mut payload).await;
    whole.expect("a whole frame");
    Some((head[3], payload))
}

#[test]
fn data_sent_while_a_connection_ends_is_tolerated() {
    run(async {
        let farm = Farm::with(&[], "timeouts: {http2Idle: 50ms}");
        let mut client = farm.connect(true);
        send_preface(&mut client).await;
        // The answer to the ping between the two GOAWAY frames says that the first one was read.
        while let Some((kind, payload)) = read_frame(&mut client).await {
            if kind == PING {
                client.send([0, 0, 8, PING, 1, 0, 0, 0, 0]).await;
                client.send(payload).await;
            }
        }
        // The proxy has closed; a WINDOW_UPDATE of a client may still arrive then.
        client.stream.write_all(&[0; 1000]).await.expect("taken");
        drop(client.stream);
        client.served.await.expect("served");
    });
}

#[test]
fn a_request_that_crosses_the_goaway_of_an_idle_connection_is_answered() {
    run(async {
        let backend = Backend::start().await;
        let farm = Farm::with(&[backend.address], "timeouts: {http2Idle: 500ms}");
        let mut client = farm.connect(true);
        send_preface(&mut client).await;
        while read_frame(&mut client).await.expect("a GOAWAY").0 != GOAWAY {}
        // Long enough after the GOAWAY for the request to cross it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        // By the static table of HPACK: GET, https, /, and an authority as text. Ends headers and stream 1.
        let authority = "shop.example.com";
        let mut fields = vec![0x82, 0x87, 0x84, 0x01, authority.len() as u8];
        fields.extend_from_slice(authority.as_bytes());
        client
            .send([0, 0, fields.len() as u8, HEADERS, 5, 0, 0, 0, 1])
            .await;
        client.send(fields).await;
        let status = loop {
            let (kind, payload) = read_frame(&mut client).await.expect("a response");
            if kind == HEADERS {
                break payload[0];
            }
        };
        assert_eq!(status, 0x88, "200, by the static table");
    });
}

#[test]
fn a_cancelled_response_does_not_count_as_stalled() {
    const STALL: Duration = Duration::from_millis(300);
    run(async {
        // First an endless response, then one that takes longer than a client may stall.
        let backend = scripted(|number, mut stream| async move {
            read_head(&mut stream).await;
            if number > 0 {
                tokio::time::sleep(STALL * 2).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await;
                return;
            }
            let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while sent.is_ok() {
                sent = stream.write_all(&[b'x'; 4096]).await;
            }
        })
        .await;
        let farm = Farm::with(&[backend], "timeouts: {writeStall: 300ms}");
        let (mut sender, _) = connect(&farm).await;
        let mut given_up = sender
            .send_request(get("https://shop.example.com/"))
            .await
            .expect("a response");
        given_up.body_mut().frame().await.expect("a part").expect("data");
        // Wait until the proxy is blocked on the client.
        tokio::time::sleep(STALL / 3).await;
        drop(given_up);
        let slow = sender.send_request(get("https://shop.example.com/")).await;
        assert_eq!(slow.expect("a response").status(), StatusCode::OK);
    });
}
