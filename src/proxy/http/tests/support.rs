//! A farm of one thread, raw clients, and backends: real ones by hyper and scripted ones that misbehave.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use rustls::ProtocolVersion;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;

use crate::config::ProxyConfig;
use crate::discovery::Endpoints;
use crate::proxy::control::snapshot::Snapshot;
use crate::proxy::control::snapshot::fixtures::without_certificates;
use crate::proxy::http::connection::{DRAIN_GRACE, serve_until};
use crate::proxy::http::state::Drain;
use crate::proxy::http::{Client, ClientTls, Forwarder, HttpMetrics};

/// Nothing in these tests takes that long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs a test on a thread like those of the proxy.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(DEADLINE, test)
            .await
            .expect("the test hangs");
    });
}

/// A farm whose host `shop` has the given backend addresses at `/`.
pub(super) struct Farm {
    pub(super) draining: CancellationToken,
    pub(super) drain_grace: Duration,
    pub(super) peer: SocketAddr,
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    forwarder: Rc<Forwarder>,
    registry: Registry,
}

impl Farm {
    pub(super) fn new(addresses: &[SocketAddr]) -> Self {
        Self::with(addresses, "")
    }

    /// With more lines at the top level of the configuration.
    pub(super) fn with(addresses: &[SocketAddr], more: &str) -> Self {
        let addresses = serde_json::to_string(addresses).expect("serializes");
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
  hostnames: [shop.example.com, "*.shop.example.com"]
  certificates: [{{name: c, certificate: c, key: k}}]
  routes:
  - {{path: /, backend: {{addresses: {addresses}}}}}
  - {{path: /missing, backend: {{service: {{name: missing, port: 80}}}}}}
- name: other
  hostnames: [other.example.com]
  certificates: [{{name: c, certificate: c, key: k}}]
  routes: [{{path: /only, backend: {{addresses: {addresses}}}}}]
{more}
"#
        );
        let config = ProxyConfig::parse(&config).expect("a valid configuration");
        let mut registry = Registry::with_prefix("tlsfarm_proxy");
        let metrics = HttpMetrics::register(&mut registry);
        let snapshot = Arc::new(ArcSwap::from_pointee(without_certificates(config)));
        Self {
            draining: CancellationToken::new(),
            drain_grace: DRAIN_GRACE,
            peer: "192.0.2.7:1234".parse().expect("valid"),
            forwarder: Forwarder::new(Arc::clone(&snapshot), Endpoints::fixed(), metrics),
            snapshot,
            registry,
        }
    }

    /// A connection to the host `shop`.
    pub(super) fn connect(&self, http2: bool) -> RawClient {
        self.connect_as(Some(self.tls(ProtocolVersion::TLSv1_3, http2)))
    }

    /// What a handshake with the host `shop` agrees on.
    pub(super) fn tls(&self, version: ProtocolVersion, http2: bool) -> ClientTls {
        let snapshot = self.snapshot.load();
        ClientTls {
            host: Arc::clone(snapshot.host("shop.example.com").expect("configured")),
            version,
            http2,
        }
    }

    pub(super) fn connect_plain(&self) -> RawClient {
        self.connect_as(None)
    }

    pub(super) fn connect_as(&self, tls: Option<ClientTls>) -> RawClient {
        let (stream, serving) = self.accept(tls);
        RawClient {
            stream,
            served: spawn_local(serving),
        }
    }

    /// The client's end of a new connection, and what has to be driven to serve it.
    pub(super) fn accept(
        &self,
        tls: Option<ClientTls>,
    ) -> (DuplexStream, impl Future<Output = ()> + 'static) {
        let (stream, io) = tokio::io::duplex(64 << 10);
        let client = Client { peer: self.peer, tls };
        let drain = Drain {
            begun: self.draining.clone(),
            grace: self.drain_grace,
        };
        (stream, serve_until(io, client, Rc::clone(&self.forwarder), drain))
    }

    /// Sends bytes on a new connection and returns everything that comes back until it ends.
    pub(super) async fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.connect(false);
        client.send(request).await;
        client.rest().await
    }

    /// The value of a metric, as the text format writes it.
    pub(super) fn metric(&self, series: &str) -> Option<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("encodes");
        let line = text.lines().find_map(|line| line.strip_prefix(series))?;
        Some(line.trim().to_owned())
    }
}

/// A client that sends and reads bytes as they are.
pub(super) struct RawClient {
    pub(super) stream: DuplexStream,
    /// Ends when the proxy has finished with the connection.
    pub(super) served: JoinHandle<()>,
}

impl RawClient {
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("written");
    }

    /// Reads until the text ends with `end`.
    pub(super) async fn read_until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            match self.stream.read_u8().await {
                Ok(byte) => text.push(byte),
                Err(_) => panic!("ended after {:?}", String::from_utf8_lossy(&text)),
            }
        }
        String::from_utf8(text).expect("UTF-8")
    }

    /// Reads until the connection ends.
    pub(super) async fn rest(&mut self) -> String {
        let mut text = Vec::new();
        // A reset counts as an end too.
        let _ = self.stream.read_to_end(&mut text).await;
        String::from_utf8(text).expect("UTF-8")
    }
}

/// The status code of a response.
pub(super) fn status(response: &str) -> u16 {
    let code = response.split(' ').nth(1).unwrap_or_default();
    code.parse()
        .unwrap_or_else(|_| panic!("not a response: {response:?}"))
}

/// A request as a backend saw it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

impl Seen {
    /// All values of a field, or `-`.
    pub(super) fn field(&self, name: &str) -> String {
        let values: Vec<_> = self
            .headers
            .get_all(name)
            .iter()
            .map(|value| value.to_str().expect("ASCII"))
            .collect();
        if values.is_empty() {
            "-".into()
        } else {
            values.join(" | ")
        }
    }
}

/// A well-behaved backend.
pub(super) struct Backend {
    pub(super) address: SocketAddr,
    pub(super) connections: Rc<Cell<usize>>,
    /// Lets requests to `/held` go on, one for each notification.
    pub(super) release: Rc<Notify>,
    /// Notified when a request to `/held` has arrived.
    pub(super) arrived: Rc<Notify>,
    seen: Rc<RefCell<Vec<Seen>>>,
}

impl Backend {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let backend = Self {
            address: listener.local_addr().expect("an address"),
            connections: Rc::default(),
            release: Rc::default(),
            arrived: Rc::default(),
            seen: Rc::default(),
        };
        let (seen, connections) = (Rc::clone(&backend.seen), Rc::clone(&backend.connections));
        let (release, arrived) = (Rc::clone(&backend.release), Rc::clone(&backend.arrived));
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.set(connections.get() + 1);
                let (seen, release, arrived) = (Rc::clone(&seen), Rc::clone(&release), Rc::clone(&arrived));
                let service = service_fn(move |request| {
                    let (seen, release) = (Rc::clone(&seen), Rc::clone(&release));
                    let arrived = Rc::clone(&arrived);
                    async move { respond(request, &seen, &release, &arrived).await }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                spawn_local(async move {
                    let _ = serving.await;
                });
            }
        });
        backend
    }

    /// The requests that arrived whole since the last call.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.take()
    }

    /// The one request that arrived.
    pub(super) fn one(&self) -> Seen {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }
}

type TestBody = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn respond(
    request: Request<Incoming>,
    seen: &RefCell<Vec<Seen>>,
    release: &Notify,
    arrived: &Notify,
) -> Result<Response<TestBody>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned();
    let body = body.to_bytes();
    let path = parts.uri.path().to_owned();
    seen.borrow_mut().push(Seen {
        method: parts.method.to_string(),
        target: parts.uri.to_string(),
        headers: parts.headers,
        body: body.clone(),
        trailers,
    });
    if path == "/held" {
        arrived.notify_one();
        release.notified().await;
    }
    let full = |body: Bytes| Full::new(body).boxed();
    let response = Response::builder().header("x-kept", "1");
    let response = match path.as_str() {
        "/echo" => response.body(full(body)),
        "/not-modified" => response.status(StatusCode::NOT_MODIFIED).body(full(Bytes::new())),
        "/hops" => response
            .header("connection", "x-secret, x-kept-not")
            .header("x-secret", "1")
            .header("keep-alive", "timeout=5")
            .header("upgrade", "h2c")
            .header("proxy-authenticate", "Basic")
            .body(full(Bytes::from_static(b"hops"))),
        "/trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "42".parse().expect("valid"));
            trailers.insert("x-forwarded-for", "6.6.6.6".parse().expect("valid"));
            let frames = [
                Frame::data(Bytes::from_static(b"data")),
                Frame::trailers(trailers),
            ];
            let frames = futures::stream::iter(frames.map(Ok::<_, Infallible>));
            response
                .header("trailer", "x-sum, x-forwarded-for")
                .body(BodyExt::boxed(StreamBody::new(frames)))
        }
        _ => response.body(full(Bytes::from_static(b"ok"))),
    };
    Ok(response.expect("a valid response"))
}

/// A backend that does on each connection what `script` says.
pub(super) async fn scripted<F, R>(script: F) -> SocketAddr
where
    F: Fn(usize, TcpStream) -> R + 'static,
    R: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    spawn_local(async move {
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(script(number, stream));
            number += 1;
        }
    });
    address
}

/// A backend that answers every request head with these bytes and then closes.
pub(super) async fn answering(response: &'static str) -> SocketAddr {
    scripted(move |_, mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(response.as_bytes()).await;
    })
    .await
}

/// Reads a request's head; what was read is empty when the connection has ended.
pub(super) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).expect("UTF-8")
}

/// An address at which nothing listens.
pub(super) async fn nowhere() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    listener.local_addr().expect("an address")
}

/// Waits until something is true. The deadline is that of the test.
pub(super) async fn eventually(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}
