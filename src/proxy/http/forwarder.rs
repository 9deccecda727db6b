//! Forwards requests to backends and returns their responses.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, LOCATION, TRANSFER_ENCODING, UPGRADE};
use http::uri::PathAndQuery;
use http::{Extensions, HeaderValue, Request, Response, StatusCode, Uri, Version, response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use super::body::response::{Exchange, ResponseBody};
use super::h1::upgrade::Upstream;
use super::headers::{self, Origin};
use super::refusal::HttpRefusal;
use super::request::{Admission, admit};
use super::route::Route;
use super::state::{ConnectionState, InFlight};
use crate::config::Backend;
use crate::discovery::Endpoints;
use crate::proxy::control::snapshot::Snapshot;
use crate::proxy::metrics::http::{HttpMetrics, UpstreamError};
use crate::proxy::upstream::endpoints::{Lease, Upstreams};
use crate::proxy::upstream::request_body::{RequestBody, UploadProgress};
use crate::proxy::upstream::retry::RetryBudget;

/// Maximum number of endpoints that one request tries to connect to.
const MAX_ENDPOINTS: usize = 3;
/// Interval at which idle connections are swept.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Forwards the requests of one traffic thread; owns its connection pools and load-balancing state.
pub struct Forwarder {
    snapshot: Arc<ArcSwap<Snapshot>>,
    endpoints: Endpoints,
    metrics: HttpMetrics,
    upstreams: Upstreams,
    retries: RetryBudget,
    sweeping: Cell<bool>,
}

/// Result of a forwarded request.
enum Forwarded {
    /// The backend's response.
    Backend(Response<Incoming>, Lease, Duration),
    /// The backend switched protocols.
    Switched(response::Parts),
    /// A redirect to this URI.
    Redirect(HeaderValue),
}

impl Forwarder {
    /// Creates a forwarder without connections. It uses the current `snapshot` and `endpoints` for each request.
    pub fn new(snapshot: Arc<ArcSwap<Snapshot>>, endpoints: Endpoints, metrics: HttpMetrics) -> Rc<Self> {
        Rc::new(Self {
            snapshot,
            endpoints,
            metrics,
            upstreams: Upstreams::default(),
            retries: RetryBudget::full(),
            sweeping: Cell::new(false),
        })
    }

    /// The current snapshot.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Starts closing idle connections. Must be called in the thread's `LocalSet`; only the first call has an effect.
    pub(super) fn start_sweeping(self: &Rc<Self>, interval: Duration) {
        if self.sweeping.replace(true) {
            return;
        }
        let forwarder: Weak<Self> = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            let mut ticks = tokio::time::interval(interval);
            loop {
                ticks.tick().await;
                let Some(forwarder) = forwarder.upgrade() else {
                    return;
                };
                forwarder.upstreams.sweep(Instant::now());
            }
        });
    }

    /// Answers a request from `connection`.
    pub(super) async fn answer(
        &self,
        connection: &Rc<ConnectionState>,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let exchange = Exchange::new(InFlight::new(connection), self.metrics.clone());
        let http2 = request.version() == Version::HTTP_2;
        let has_body = !request.body().is_end_stream();
        // Only HTTP/1 requests are numbered: they come one after another.
        let number = if http2 {
            Ok(None)
        } else {
            connection.heads.next_request().map(Some)
        };
        let outcome = match number {
            Ok(number) => self.serve(connection, request, number).await,
            Err(refusal) => Err(refusal),
        };
        // Nobody reads the body of a request that is not forwarded, so no other request can follow it.
        let unread = has_body && !matches!(outcome, Ok(Forwarded::Backend(..)));
        let mut response = match outcome {
            Ok(Forwarded::Backend(response, lease, idle)) => {
                let (mut parts, body) = response.into_parts();
                headers::to_client(&mut parts.headers, parts.version);
                parts.version = Version::HTTP_11;
                parts.extensions = Extensions::new();
                Response::from_parts(parts, ResponseBody::backend(body, idle, lease, exchange))
            }
            Ok(Forwarded::Switched(parts)) => {
                Response::from_parts(parts, ResponseBody::text(String::new(), exchange))
            }
            Ok(Forwarded::Redirect(location)) => {
                let mut response = Response::new(ResponseBody::text(String::new(), exchange));
                *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
                response.headers_mut().insert(LOCATION, location);
                response
            }
            Err(refusal) => refuse(refusal, exchange),
        };
        if !http2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            if let Ok(Some(number)) = number {
                connection.upgrade.decline(number);
            }
            if unread || connection.draining.get() {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
        }
        self.metrics.request_answered(http2, response.status());
        response
    }

    async fn serve(
        &self,
        connection: &ConnectionState,
        request: Request<Incoming>,
        number: Option<u64>,
    ) -> Result<Forwarded, HttpRefusal> {
        let snapshot = self.snapshot();
        let (mut parts, body) = request.into_parts();
        let (route, authority, port) = match admit(&parts, connection, &snapshot)? {
            Admission::Redirect(location) => return Ok(Forwarded::Redirect(location)),
            Admission::Forward {
                route,
                authority,
                port,
            } => (route, authority, port),
        };
        let timeouts = &route.timeouts;

        let upgrade = number
            .filter(|number| connection.upgrade.is_awaited_by(*number))
            .and_then(|_| headers::tunnelled_protocol(&parts.headers));
        let origin = Origin {
            connection,
            authority: &authority,
            port,
            version: parts.version,
            trusted: snapshot.trusts(connection.client.peer.ip()),
        };
        headers::to_backend(&mut parts.headers, &origin, upgrade.clone());
        let (body, upload) = RequestBody::new(body, timeouts.body_idle.as_std());
        if body.size_hint().exact().is_none() {
            // With some methods, hyper would send no body without this field.
            parts
                .headers
                .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let target = parts.uri.into_parts().path_and_query;
        parts.uri = Uri::from(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
        parts.version = Version::HTTP_11;
        parts.extensions = Extensions::new();

        let request = Request::from_parts(parts, body);
        let (response, lease) = self.send(request, route, upload.as_deref()).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let idle = timeouts.response_idle.as_std();
            return Ok(Forwarded::Backend(response, lease, idle));
        }
        let protocol = upgrade.ok_or_else(|| {
            self.metrics.upstream_error(UpstreamError::Response);
            bad_gateway()
        })?;
        self.switch(connection, response, protocol, timeouts.connect.as_std())
            .await
    }

    /// Sends the request to endpoints of the route until one responds.
    async fn send(
        &self,
        mut request: Request<RequestBody>,
        route: &Route,
        upload: Option<&UploadProgress>,
    ) -> Result<(Response<Incoming>, Lease), HttpRefusal> {
        self.retries.earn();
        let ready;
        let addresses = match &route.backend {
            Backend::Addresses(addresses) => addresses.as_slice(),
            Backend::Service(service) => {
                ready = self.endpoints.addresses(service);
                ready.as_deref().unwrap_or_default()
            }
        };
        // Safe to repeat: an idempotent method (RFC 9110 section 9.2.2), no body that could have been consumed, no
        // upgrade.
        let mut repeatable =
            upload.is_none() && request.method().is_idempotent() && !request.headers().contains_key(UPGRADE);
        let mut tried = Vec::new();
        while tried.len() < MAX_ENDPOINTS {
            let Some(endpoint) = self.upstreams.choose(addresses, &tried, Instant::now()) else {
                break;
            };
            let connect = Rc::clone(&endpoint).connect(route.timeouts.connect.as_std(), &self.metrics);
            let mut lease = match connect.await {
                Ok(lease) => lease,
                Err(error) => {
                    debug!(endpoint = %endpoint.address, %error, "failed to connect to an endpoint");
                    self.metrics.upstream_error(UpstreamError::Connect);
                    self.upstreams.failed(&endpoint, Instant::now());
                    tried.push(endpoint.address);
                    continue;
                }
            };
            // hyper consumes the request and does not return it once it has begun to send it.
            let spare = repeatable.then(|| copy_head(&request));
            let limit = route.timeouts.response_head.as_std();
            let Some(sent) = within(lease.send(request), limit, upload).await else {
                self.metrics.upstream_error(UpstreamError::Timeout);
                return Err(HttpRefusal {
                    status: StatusCode::GATEWAY_TIMEOUT,
                    reason: "the backend did not respond in time",
                });
            };
            let mut error = match sent {
                Ok(response) if headers::has_clear_framing(response.headers()) => {
                    return Ok((response, lease));
                }
                Ok(_) => {
                    debug!(endpoint = %endpoint.address, "ambiguous response length");
                    self.metrics.upstream_error(UpstreamError::Response);
                    return Err(bad_gateway());
                }
                Err(error) => error,
            };
            if let Some(refusal) = upload.and_then(UploadProgress::failure) {
                return Err(refusal);
            }
            if let Some(unsent) = error.take_message() {
                // The backend had closed the idle connection.
                if !lease.reused {
                    self.metrics.upstream_error(UpstreamError::Response);
                    tried.push(endpoint.address);
                }
                request = unsent;
                continue;
            }
            debug!(endpoint = %endpoint.address, error = %error.error(), "invalid response from an endpoint");
            self.metrics.upstream_error(UpstreamError::Response);
            match spare {
                Some(spare) if ended_without_response(error.error()) && self.retries.spend() => {
                    self.metrics.upstream_retried();
                    repeatable = false;
                    request = spare;
                }
                _ => return Err(bad_gateway()),
            }
        }
        if tried.is_empty() {
            self.metrics.upstream_error(UpstreamError::NoEndpoints);
            return Err(HttpRefusal {
                status: StatusCode::SERVICE_UNAVAILABLE,
                reason: "no ready endpoint for this route",
            });
        }
        Err(bad_gateway())
    }

    /// Completes a protocol upgrade with the backend.
    async fn switch(
        &self,
        connection: &ConnectionState,
        mut response: Response<Incoming>,
        protocol: HeaderValue,
        limit: Duration,
    ) -> Result<Forwarded, HttpRefusal> {
        let upgraded = timeout(limit, hyper::upgrade::on(&mut response)).await;
        let switched = upgraded
            .ok()
            .and_then(Result::ok)
            .and_then(|upgraded| upgraded.downcast::<TokioIo<TcpStream>>().ok());
        let Some(switched) = switched else {
            self.metrics.upstream_error(UpstreamError::Response);
            return Err(bad_gateway());
        };
        let (mut parts, _) = response.into_parts();
        let protocol = parts.headers.get(UPGRADE).cloned().unwrap_or(protocol);
        headers::to_client(&mut parts.headers, parts.version);
        parts.headers.insert(UPGRADE, protocol);
        parts
            .headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.extensions = Extensions::new();
        connection.upgrade.accept(Upstream {
            stream: switched.io.into_inner(),
            received: switched.read_buf,
        });
        Ok(Forwarded::Switched(parts))
    }
}

/// Waits for a response head for at most `limit` after the last part of the request was sent.
async fn within<T>(
    response: impl Future<Output = T>,
    limit: Duration,
    upload: Option<&UploadProgress>,
) -> Option<T> {
    let mut response = pin!(response);
    let mut since = Instant::now();
    loop {
        if let Ok(response) = timeout_at(since + limit, response.as_mut()).await {
            return Some(response);
        }
        since = upload.map(UploadProgress::last).filter(|last| *last > since)?;
    }
}

/// Whether the connection was closed before any response, for example because a backend closed an idle connection while
/// a request was in flight. All other hyper errors return the request unsent, or occur after a response has begun.
fn ended_without_response(error: &hyper::Error) -> bool {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    error.is_incomplete_message() || io.is_some()
}

fn copy_head(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Creates an error response: a short text without internal details.
fn refuse(refusal: HttpRefusal, exchange: Exchange) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::text(format!("{}\n", refusal.reason), exchange));
    *response.status_mut() = refusal.status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(
            ALLOW,
            HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        );
    }
    response
}

const fn bad_gateway() -> HttpRefusal {
    HttpRefusal {
        status: StatusCode::BAD_GATEWAY,
        reason: "invalid response from the backend",
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use tokio::time::sleep;

    use super::*;
    use crate::config::ProxyConfig;
    use crate::proxy::control::snapshot::fixtures::without_certificates;

    const LIMIT: Duration = Duration::from_millis(40);

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
            .block_on(async {
                timeout(Duration::from_secs(20), test)
                    .await
                    .expect("the test hangs")
            })
    }

    const CONFIG: &str = r#"
version: 1
farm: web/shop
listen: {https: "[::]:8443", admin: "[::]:9090"}
ring: ring.json
tickets: {lifetime: 4h, maxAge: 24h}
drainPeriod: 25s
hosts:
- name: shop
  hostnames: [shop.example.com]
  certificates: [{name: c, certificate: c, key: k}]
  routes: [{path: /, backend: {addresses: ["127.0.0.1:1"]}}]
"#;

    #[test]
    fn unused_endpoints_are_forgotten_periodically() {
        let config = ProxyConfig::parse(CONFIG).expect("valid");
        let snapshot = Arc::new(ArcSwap::from_pointee(without_certificates(config)));
        let metrics = HttpMetrics::register(&mut Registry::default());
        let forwarder = Forwarder::new(snapshot, Endpoints::fixed(), metrics);
        let unused = || {
            let address = "127.0.0.1:1".parse().expect("valid");
            let endpoint = forwarder.upstreams.choose(&[address], &[], Instant::now());
            Rc::downgrade(&endpoint.expect("one"))
        };
        run(tokio::task::LocalSet::new().run_until(async {
            for _ in 0..2 {
                let unused = unused();
                assert!(unused.upgrade().is_some());
                forwarder.start_sweeping(Duration::from_millis(1));
                while unused.upgrade().is_some() {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        }));
    }

    #[test]
    fn a_response_times_out_at_its_limit() {
        run(async {
            assert_eq!(within(async { "response" }, LIMIT, None).await, Some("response"));
            let begun = Instant::now();
            let never = std::future::pending::<()>();
            assert_eq!(within(never, LIMIT, None).await, None);
            assert!(begun.elapsed() >= LIMIT);
        });
    }

    #[test]
    fn upload_progress_restarts_the_response_timeout() {
        run(async {
            let upload = UploadProgress::new();
            let response = async {
                for _ in 0..4 {
                    sleep(LIMIT * 3 / 4).await;
                    upload.advanced();
                }
                "response"
            };
            assert_eq!(within(response, LIMIT, Some(&upload)).await, Some("response"));

            let begun = Instant::now();
            let stops = async {
                sleep(LIMIT / 2).await;
                upload.advanced();
                std::future::pending().await
            };
            assert_eq!(within::<()>(stops, LIMIT, Some(&upload)).await, None);
            assert!(
                begun.elapsed() >= LIMIT * 3 / 2,
                "gave up after {:?}",
                begun.elapsed()
            );
        });
    }
}
