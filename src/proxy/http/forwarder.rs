//! From a client's request to a backend's response.

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

use super::body::{Exchange, RequestBody, ResponseBody, UploadProgress};
use super::framing::Refusal;
use super::headers::{self, Origin};
use super::metrics::{HttpMetrics, UpstreamError};
use super::request::{Admission, admit};
use super::routing::Routing;
use super::state::{ConnectionState, InFlight, Upstream};
use super::upstream::{Lease, Upstreams};
use crate::config::Backend;
use crate::discovery::Endpoints;

/// Most endpoints that one request tries to connect to.
const MAX_ENDPOINTS: usize = 3;
/// How often unused connections are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Every request earns one, a retry costs five: at most a fifth of the requests are retries, however sick backends are.
const RETRY_COST: u32 = 5;
const MAX_RETRY_CREDIT: u32 = 100;

/// Forwards the requests of one traffic thread: its connection pools and the state of its load balancing.
pub struct Forwarder {
    routing: Arc<ArcSwap<Routing>>,
    endpoints: Endpoints,
    metrics: HttpMetrics,
    upstreams: Upstreams,
    retry_credit: Cell<u32>,
    sweeping: Cell<bool>,
}

/// How a request ended well.
enum Outcome {
    /// With a backend's response.
    Backend(Response<Incoming>, Lease, Duration),
    /// With the backend's consent to switch protocols.
    Switched(response::Parts),
    /// With a redirect to this URI.
    Redirect(HeaderValue),
}

impl Forwarder {
    /// A forwarder without any connections. It follows changes of `routing` and `endpoints`.
    pub fn new(routing: Arc<ArcSwap<Routing>>, endpoints: Endpoints, metrics: HttpMetrics) -> Rc<Self> {
        Rc::new(Self {
            routing,
            endpoints,
            metrics,
            upstreams: Upstreams::default(),
            retry_credit: Cell::new(MAX_RETRY_CREDIT),
            sweeping: Cell::new(false),
        })
    }

    pub(super) fn routing(&self) -> Arc<Routing> {
        self.routing.load_full()
    }

    /// Starts to close connections that are not used any more. Needs the thread's `LocalSet`; only the first call counts.
    pub(super) fn start_sweeping(self: &Rc<Self>) {
        if self.sweeping.replace(true) {
            return;
        }
        let forwarder: Weak<Self> = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
            loop {
                ticks.tick().await;
                let Some(forwarder) = forwarder.upgrade() else {
                    return;
                };
                forwarder.upstreams.sweep();
            }
        });
    }

    /// Answers a request that arrived on `connection`.
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
            connection.next_request().map(Some)
        };
        let outcome = match number {
            Ok(number) => self.serve(connection, request, number).await,
            Err(refusal) => Err(refusal),
        };
        // Nobody reads the body of a request that is not forwarded, so no other request can follow it.
        let unread = has_body && !matches!(outcome, Ok(Outcome::Backend(..)));
        let mut response = match outcome {
            Ok(Outcome::Backend(response, lease, idle)) => {
                let (mut parts, body) = response.into_parts();
                headers::to_client(&mut parts.headers, parts.version);
                parts.version = Version::HTTP_11;
                parts.extensions = Extensions::new();
                Response::from_parts(parts, ResponseBody::backend(body, idle, lease, exchange))
            }
            Ok(Outcome::Switched(parts)) => {
                Response::from_parts(parts, ResponseBody::text(String::new(), exchange))
            }
            Ok(Outcome::Redirect(location)) => {
                let mut response = Response::new(ResponseBody::text(String::new(), exchange));
                *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
                response.headers_mut().insert(LOCATION, location);
                response
            }
            Err(refusal) => refuse(refusal, exchange),
        };
        if !http2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            if let Ok(Some(number)) = number {
                connection.decline_upgrade(number);
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
    ) -> Result<Outcome, Refusal> {
        let routing = self.routing();
        let (mut parts, body) = request.into_parts();
        let (backend, authority, port) = match admit(&parts, connection, &routing)? {
            Admission::Redirect(location) => return Ok(Outcome::Redirect(location)),
            Admission::Forward {
                backend,
                authority,
                port,
            } => (backend, authority, port),
        };

        let upgrade = number
            .filter(|number| connection.awaits_upgrade(*number))
            .and_then(|_| headers::tunnelled_protocol(&parts.headers));
        let origin = Origin {
            connection,
            authority: &authority,
            port,
            version: parts.version,
            trusted: routing.trusts(connection.client.peer.ip()),
        };
        headers::to_backend(&mut parts.headers, &origin, upgrade.clone());
        let (body, upload) = RequestBody::new(body, routing.timeouts.body_idle.as_std());
        if body.size_hint().exact().is_none() {
            // hyper would send no body at all with some methods unless told so.
            parts
                .headers
                .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let target = parts.uri.into_parts().path_and_query;
        parts.uri = Uri::from(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
        parts.version = Version::HTTP_11;
        parts.extensions = Extensions::new();

        let request = Request::from_parts(parts, body);
        let (response, lease) = self.send(request, backend, upload.as_deref(), &routing).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let idle = routing.timeouts.response_idle.as_std();
            return Ok(Outcome::Backend(response, lease, idle));
        }
        let protocol = upgrade.ok_or_else(|| {
            self.metrics.upstream_error(UpstreamError::Response);
            bad_gateway()
        })?;
        self.switch(connection, response, protocol, routing.timeouts.connect.as_std())
            .await
    }

    /// Sends the request to one endpoint of the backend after another until there is a response.
    async fn send(
        &self,
        mut request: Request<RequestBody>,
        backend: &Backend,
        upload: Option<&UploadProgress>,
        routing: &Routing,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        self.retry_credit
            .set((self.retry_credit.get() + 1).min(MAX_RETRY_CREDIT));
        let ready;
        let addresses = match backend {
            Backend::Addresses(addresses) => addresses.as_slice(),
            Backend::Service(service) => {
                ready = self.endpoints.addresses(service);
                ready.as_deref().unwrap_or_default()
            }
        };
        // Safe to repeat: by its method (RFC 9110 section 9.2.2), and there is nothing of it that is used up.
        let mut repeatable =
            upload.is_none() && request.method().is_idempotent() && !request.headers().contains_key(UPGRADE);
        let mut tried = Vec::new();
        while tried.len() < MAX_ENDPOINTS {
            let Some(endpoint) = self.upstreams.choose(addresses, &tried) else {
                break;
            };
            let connect = Rc::clone(&endpoint).connect(routing.timeouts.connect.as_std(), &self.metrics);
            let mut lease = match connect.await {
                Ok(lease) => lease,
                Err(error) => {
                    debug!(endpoint = %endpoint.address, %error, "an endpoint cannot be connected to");
                    self.metrics.upstream_error(UpstreamError::Connect);
                    self.upstreams.failed(&endpoint);
                    tried.push(endpoint.address);
                    continue;
                }
            };
            let spare = repeatable.then(|| copy_head(&request));
            let limit = routing.timeouts.response_head.as_std();
            let Some(sent) = within(lease.send(request), limit, upload).await else {
                self.metrics.upstream_error(UpstreamError::Timeout);
                return Err(Refusal {
                    status: StatusCode::GATEWAY_TIMEOUT,
                    reason: "the backend did not respond in time",
                });
            };
            let mut error = match sent {
                Ok(response) => return Ok((response, lease)),
                Err(error) => error,
            };
            if let Some(refusal) = upload.and_then(UploadProgress::failure) {
                return Err(refusal);
            }
            if let Some(unsent) = error.take_message() {
                // An unused connection that the backend has closed in the meantime.
                if !lease.reused {
                    tried.push(endpoint.address);
                }
                request = unsent;
                continue;
            }
            debug!(endpoint = %endpoint.address, error = %error.error(), "an endpoint gave no valid response");
            self.metrics.upstream_error(UpstreamError::Response);
            match spare {
                Some(spare) if ended_without_response(error.error()) && self.may_retry() => {
                    self.metrics.upstream_retried();
                    repeatable = false;
                    request = spare;
                }
                _ => return Err(bad_gateway()),
            }
        }
        if tried.is_empty() {
            self.metrics.upstream_error(UpstreamError::NoEndpoints);
            return Err(Refusal {
                status: StatusCode::SERVICE_UNAVAILABLE,
                reason: "no endpoint is ready to serve this",
            });
        }
        Err(bad_gateway())
    }

    /// Completes a change of protocol on the backend's side.
    async fn switch(
        &self,
        connection: &ConnectionState,
        mut response: Response<Incoming>,
        protocol: HeaderValue,
        limit: Duration,
    ) -> Result<Outcome, Refusal> {
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
        connection.accept_upgrade(Upstream {
            stream: switched.io.into_inner(),
            received: switched.read_buf,
        });
        Ok(Outcome::Switched(parts))
    }

    fn may_retry(&self) -> bool {
        let credit = self.retry_credit.get().checked_sub(RETRY_COST);
        if let Some(credit) = credit {
            self.retry_credit.set(credit);
        }
        credit.is_some()
    }
}

/// Waits for a response head at most `limit` long, counted from the last part of the request that was sent.
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

/// Whether the connection ended before there was any response, as happens when a backend closes an unused connection
/// while a request is on its way.
fn ended_without_response(error: &hyper::Error) -> bool {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || io.is_some()
}

fn copy_head(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// An answer of our own: a short text without any inner details.
fn refuse(refusal: Refusal, exchange: Exchange) -> Response<ResponseBody> {
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

const fn bad_gateway() -> Refusal {
    Refusal {
        status: StatusCode::BAD_GATEWAY,
        reason: "the backend did not give a valid response",
    }
}
