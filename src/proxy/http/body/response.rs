//! The body of a response to a client.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{BodyError, poll_part};
use crate::proxy::http::state::InFlight;
use crate::proxy::http::timer::StallTimer;
use crate::proxy::metrics::http::{HttpMetrics, UpstreamError};
use crate::proxy::upstream::endpoints::Lease;

/// The body of a response to a client.
pub(crate) struct ResponseBody {
    source: Source,
    /// Whether hyper has a frame that the client has not read yet.
    handed_over: bool,
    exchange: Exchange,
}

enum Source {
    /// A complete text.
    Text(Option<Bytes>),
    /// A backend's body, and its connection.
    Backend {
        body: Incoming,
        stall: StallTimer,
        lease: Option<Lease>,
    },
}

/// In-flight count and duration measurement of a request; both end with the response.
pub(crate) struct Exchange {
    in_flight: InFlight,
    started: Instant,
    metrics: HttpMetrics,
}

impl ResponseBody {
    /// Creates a body with a text of the proxy.
    pub(crate) fn text(text: String, exchange: Exchange) -> Self {
        Self::new(Source::Text((!text.is_empty()).then(|| text.into())), exchange)
    }

    /// Creates a body that forwards a backend's response on the connection `lease`; `idle` limits the time between two
    /// reads.
    pub(crate) fn backend(body: Incoming, idle: Duration, lease: Lease, exchange: Exchange) -> Self {
        let stall = StallTimer::new(idle);
        let ended = body.is_end_stream();
        let mut source = Source::Backend {
            body,
            stall,
            lease: Some(lease),
        };
        if ended {
            source.release();
        }
        Self::new(source, exchange)
    }

    fn new(source: Source, exchange: Exchange) -> Self {
        let mut body = Self {
            source,
            handed_over: false,
            exchange,
        };
        body.hand_over(!body.is_end_stream());
        body
    }

    fn hand_over(&mut self, handed: bool) {
        if self.handed_over != handed {
            self.handed_over = handed;
            self.exchange.in_flight.activity().handed_over(handed);
        }
    }
}

impl Source {
    /// Returns the connection to the pool after a complete response.
    fn release(&mut self) {
        if let Self::Backend { lease, .. } = self
            && let Some(lease) = lease.take()
        {
            lease.release();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        this.hand_over(false);
        let outcome = match &mut this.source {
            Source::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Source::Backend { body, stall, .. } => poll_part(body, stall, cx),
        };
        match &outcome {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(_))) => this.exchange.metrics.upstream_error(UpstreamError::Body),
            Poll::Ready(None) => this.source.release(),
        }
        if this.is_end_stream() {
            this.source.release();
        } else {
            this.hand_over(matches!(outcome, Poll::Ready(Some(Ok(_)))));
        }
        outcome
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Text(text) => text.is_none(),
            Source::Backend { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Source::Backend { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.hand_over(false);
    }
}

impl Exchange {
    /// Starts measuring a request.
    pub(crate) fn new(in_flight: InFlight, metrics: HttpMetrics) -> Self {
        Self {
            in_flight,
            started: Instant::now(),
            metrics,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.metrics.request_ended(self.started.elapsed());
    }
}
