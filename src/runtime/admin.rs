//! The admin server: read-only pages over plain HTTP on a separate port.
//!
//! It limits concurrent connections and the time per request, so that it cannot be used to exhaust the process (G12 of
//! the requirements).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::debug;

use super::exposition::Exposition;

const MOST_CONNECTIONS: usize = 16;
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Response of a page.
pub type Page = Response<Full<Bytes>>;

/// Answers a request with these headers.
type Answer = Box<dyn Fn(&HeaderMap) -> Page + Send + Sync>;

/// The pages of one process, by path.
#[derive(Default)]
pub struct AdminPages {
    pages: BTreeMap<&'static str, Answer>,
}

impl AdminPages {
    /// Adds a page.
    #[must_use]
    pub fn page(mut self, path: &'static str, page: impl Fn() -> Page + Send + Sync + 'static) -> Self {
        self.pages.insert(path, Box::new(move |_| page()));
        self
    }

    /// Adds `/metrics`, in the format that the request's `Accept` header asks for.
    #[must_use]
    pub fn metrics(mut self, registry: Arc<Registry>) -> Self {
        let metrics = move |headers: &HeaderMap| {
            let format = Exposition::negotiate(headers);
            match format.encode(&registry) {
                Ok(text) => page(StatusCode::OK, format.content_type(), text),
                Err(_) => text_page(StatusCode::INTERNAL_SERVER_ERROR, "failed to encode the metrics"),
            }
        };
        self.pages.insert("/metrics", Box::new(metrics));
        self
    }

    /// Serves the pages until `stop` completes.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let pages = Arc::new(self);
        let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    debug!(%error, "admin server failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Past the limit the connection is dropped, which closes it.
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                continue;
            };
            let pages = Arc::clone(&pages);
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let answer = pages.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(TIME_LIMIT)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(TIME_LIMIT, connection).await;
                drop(slot);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Page {
        let Some(page) = self.pages.get(request.uri().path()) else {
            let known: Vec<_> = self.pages.keys().copied().collect();
            return text_page(
                StatusCode::NOT_FOUND,
                &format!("not found; available pages: {}", known.join(", ")),
            );
        };
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refused = text_page(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed");
            refused
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        page(request.headers())
    }
}

/// Creates a plain-text response.
pub fn text_page(status: StatusCode, text: &str) -> Page {
    page(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

/// Creates a JSON response.
pub fn json_page(value: &impl serde::Serialize) -> Page {
    match serde_json::to_string(value) {
        Ok(json) => page(StatusCode::OK, "application/json", json),
        Err(_) => text_page(StatusCode::INTERNAL_SERVER_ERROR, "failed to encode the state"),
    }
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Page {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
