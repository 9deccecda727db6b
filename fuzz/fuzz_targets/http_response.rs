//! Responses of backends: whatever a backend sends, the client gets one well-formed response or a part of one, and
//! nothing after it.
//!
//! The first byte of the input says how the client asks and how long the pieces are in which the backend sends the rest.

#![no_main]

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use libfuzzer_sys::fuzz_target;
use prometheus_client::registry::Registry;
use rustls::ProtocolVersion;
use rustls::crypto::aws_lc_rs::default_provider;
use tlsfarm::config::ProxyConfig;
use tlsfarm::discovery::Endpoints;
use tlsfarm::proxy::control::snapshot::Snapshot;
use tlsfarm::proxy::http::{Client, ClientTls, Forwarder, HttpMetrics, serve};
use tlsfarm::proxy::tls::certificates::CertificatesByHost;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;

/// No exchange takes that long: the backend closes as soon as it has sent the input.
const DEADLINE: Duration = Duration::from_secs(3);

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

fuzz_target!(|input: &[u8]| {
    let Some((options, response)) = input.split_first() else {
        return;
    };
    let method = if options & 1 == 1 { "HEAD" } else { "GET" };
    let piece = usize::from(options >> 1).max(1) * 7;
    let received = RUNTIME.with(|runtime| {
        // Its tasks, and with them all connections, end with this input.
        LocalSet::new().block_on(runtime, async {
            let exchange = exchange(method, response.to_vec(), piece);
            tokio::time::timeout(DEADLINE, exchange)
                .await
                .expect("the client waits for ever")
        })
    });
    check(method, &received);
});

/// What a client receives through the proxy from a backend that answers every request with these bytes.
async fn exchange(method: &str, response: Vec<u8>, piece: usize) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let response: Rc<[u8]> = response.into();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(answer(stream, Rc::clone(&response), piece));
        }
    });

    let snapshot = snapshot(address);
    let metrics = HttpMetrics::register(&mut Registry::default());
    let following = Arc::new(ArcSwap::new(Arc::clone(&snapshot)));
    let forwarder = Forwarder::new(following, Endpoints::watched(), metrics);
    let (mut client, proxy) = tokio::io::duplex(64 * 1024);
    let peer = Client {
        peer: "192.0.2.7:1234".parse().expect("valid"),
        tls: Some(ClientTls {
            host: Arc::clone(snapshot.host("shop.test").expect("configured")),
            version: ProtocolVersion::TLSv1_3,
            http2: false,
        }),
    };
    spawn_local(serve(proxy, peer, forwarder, CancellationToken::new()));
    let request = format!("{method} / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).await.expect("it is memory");
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.expect("it is memory");
    received
}

async fn answer(mut stream: TcpStream, response: Rc<[u8]>, piece: usize) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_buf(&mut request).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
    for piece in response.chunks(piece) {
        if stream.write_all(piece).await.is_err() {
            return;
        }
    }
}

fn snapshot(backend: SocketAddr) -> Arc<Snapshot> {
    let config = format!(
        r#"
version: 1
farm: web/shop
listen: {{https: "[::]:8443", admin: "[::]:9090"}}
ring: ring.json
tickets: {{lifetime: 4h, maxAge: 24h}}
drainPeriod: 25s
hosts:
- name: shop
  hostnames: [shop.test]
  certificates: [{{name: c, certificate: c, key: k}}]
  routes: [{{path: /, backend: {{addresses: ["{backend}"]}}}}]
"#
    );
    let config = ProxyConfig::parse(&config).expect("a valid configuration");
    let provider = Arc::new(default_provider());
    let certificates = CertificatesByHost::default();
    Arc::new(Snapshot::new(config, String::new(), &certificates, &provider).expect("usable"))
}

/// Reads one response as a strict client does. It may be cut off, as the backend's was, and nothing may follow it.
fn check(method: &str, received: &[u8]) {
    let Some(head_end) = received.windows(4).position(|end| end == b"\r\n\r\n") else {
        // A head that waits for its body is dropped when the body turns out to be malformed at once.
        assert!(
            received.is_empty(),
            "a part of a head: {:?}",
            String::from_utf8_lossy(received)
        );
        return;
    };
    let mut lines = lines(&received[..head_end]);
    let status_line = lines.next().expect("a status line");
    let code = match status_line {
        [
            b'H',
            b'T',
            b'T',
            b'P',
            b'/',
            b'1',
            b'.',
            b'1',
            b' ',
            a,
            b,
            c,
            b' ',
            ..,
        ] => [*a, *b, *c],
        _ => panic!("not a status line: {:?}", String::from_utf8_lossy(status_line)),
    };
    let code = std::str::from_utf8(&code).expect("ASCII").parse::<u16>();
    let code = code.expect("three digits");
    assert!(
        (200..=999).contains(&code),
        "an interim response is taken for the final one"
    );

    let (mut length, mut chunked) = (None, false);
    for line in lines {
        let colon = line
            .iter()
            .position(|byte| *byte == b':')
            .expect("a field has a colon");
        let name = std::str::from_utf8(&line[..colon])
            .expect("a name is ASCII")
            .to_ascii_lowercase();
        let value = line[colon + 1..].trim_ascii();
        assert!(
            !value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)),
            "{name}"
        );
        match name.as_str() {
            "content-length" => {
                assert_eq!(length, None, "two lengths");
                let text = std::str::from_utf8(value).expect("digits");
                assert!(
                    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()),
                    "{text:?}"
                );
                length = Some(text.parse::<u64>().expect("a length"));
            }
            "transfer-encoding" => {
                assert!(
                    !chunked && value == b"chunked",
                    "{:?}",
                    String::from_utf8_lossy(value)
                );
                chunked = true;
            }
            "connection" => assert_eq!(value, b"close"),
            "keep-alive" | "proxy-connection" | "te" | "upgrade" => {
                panic!("{name} is for one connection only")
            }
            _ => {}
        }
    }
    assert!(length.is_none() || !chunked, "two framings");

    let body = &received[head_end + 4..];
    if method == "HEAD" || code == 204 || code == 304 {
        assert!(body.is_empty(), "a body where there can be none");
    } else if let Some(length) = length {
        assert!(body.len() as u64 <= length, "more than the announced length");
    } else if chunked {
        check_chunks(body);
    }
}

/// The lines of a head. A carriage return or a line feed by itself would be a line end to some clients only.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(head);
    std::iter::from_fn(move || {
        let head = rest?;
        let end = head.windows(2).position(|pair| pair == b"\r\n");
        let line = &head[..end.unwrap_or(head.len())];
        rest = end.map(|end| &head[end + 2..]);
        assert!(
            !line.iter().any(|byte| matches!(byte, b'\r' | b'\n')),
            "{:?}",
            String::from_utf8_lossy(line)
        );
        Some(line)
    })
}

/// Nothing follows the last chunk and its trailer section.
fn check_chunks(mut body: &[u8]) {
    while let Some(end) = body.windows(2).position(|pair| pair == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).expect("a size is ASCII");
        let size = usize::from_str_radix(size, 16).expect("hexadecimal digits");
        body = &body[end + 2..];
        if size == 0 {
            let trailers = body.windows(4).position(|end| end == b"\r\n\r\n");
            let end = if body.starts_with(b"\r\n") {
                Some(2)
            } else {
                trailers.map(|at| at + 4)
            };
            assert!(
                end.is_none_or(|end| end == body.len()),
                "bytes after the end of the body"
            );
            return;
        }
        let Some(rest) = body.get(size..) else { return };
        assert!(
            b"\r\n".starts_with(&rest[..rest.len().min(2)]),
            "a chunk is longer than it says"
        );
        body = rest.get(2..).unwrap_or_default();
    }
}
