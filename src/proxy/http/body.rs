//! Bodies on their way through the proxy: passed on frame by frame, with a limit on how long they may stand still.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::framing::Refusal;
use super::headers::filter_trailers;
use super::metrics::{HttpMetrics, UpstreamError};
use super::state::InFlight;
use super::timer::StallTimer;
use super::upstream::Lease;

/// Why a body cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// Nothing came for too long.
    #[error("no part of the body came in time")]
    Stalled,
    /// The connection that it came on failed.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

/// The body of a client's request on its way to a backend.
#[derive(Default)]
pub(super) struct RequestBody(Option<Box<Upload>>);

struct Upload {
    body: Incoming,
    stall: StallTimer,
    progress: Rc<UploadProgress>,
}

/// How the body of a client's request comes along.
pub(super) struct UploadProgress {
    last: Cell<Instant>,
    failure: Cell<Option<Refusal>>,
}

/// The body of a response to a client.
pub(super) struct ResponseBody {
    source: Source,
    /// Whether a part was handed over and nothing has been asked for since: the client has to take it.
    handed_over: bool,
    exchange: Exchange,
}

enum Source {
    /// All of it, once.
    Text(Option<Bytes>),
    /// What a backend sends, and the connection that it comes on.
    Backend {
        body: Incoming,
        stall: StallTimer,
        lease: Option<Lease>,
    },
}

/// What ends with a response: the request's place among those in flight, and its measurement.
pub(super) struct Exchange {
    in_flight: InFlight,
    started: Instant,
    metrics: HttpMetrics,
}

impl RequestBody {
    /// A body that is limited to `idle` between its parts, and how it comes along; none of both when there is no body.
    pub(super) fn new(body: Incoming, idle: Duration) -> (Self, Option<Rc<UploadProgress>>) {
        if body.is_end_stream() {
            return (Self(None), None);
        }
        let progress = Rc::new(UploadProgress::new());
        let upload = Upload {
            body,
            stall: StallTimer::new(idle),
            progress: Rc::clone(&progress),
        };
        (Self(Some(Box::new(upload))), Some(progress))
    }
}

impl UploadProgress {
    /// The progress of a body of which nothing has come yet.
    pub(super) fn new() -> Self {
        Self {
            last: Cell::new(Instant::now()),
            failure: Cell::new(None),
        }
    }

    /// A part came.
    pub(super) fn advanced(&self) {
        self.last.set(Instant::now());
    }

    /// When the last part came.
    pub(super) fn last(&self) -> Instant {
        self.last.get()
    }

    /// What to tell a client that has not delivered the body as it should.
    pub(super) fn failure(&self) -> Option<Refusal> {
        self.failure.get()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(upload) = &mut self.get_mut().0 else {
            return Poll::Ready(None);
        };
        let outcome = poll_part(&mut upload.body, &mut upload.stall, cx);
        match &outcome {
            Poll::Ready(Some(Ok(_))) => upload.progress.advanced(),
            Poll::Ready(Some(Err(error))) => upload.progress.failure.set(Some(match error {
                BodyError::Stalled => Refusal {
                    status: StatusCode::REQUEST_TIMEOUT,
                    reason: "the request's body did not come in time",
                },
                BodyError::Broken(_) => Refusal::bad_request("the request's body is malformed or incomplete"),
            })),
            Poll::Ready(None) | Poll::Pending => {}
        }
        outcome
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or(SizeHint::with_exact(0), |upload| upload.body.size_hint())
    }
}

impl ResponseBody {
    /// A short text of our own.
    pub(super) fn text(text: String, exchange: Exchange) -> Self {
        Self::new(Source::Text((!text.is_empty()).then(|| text.into())), exchange)
    }

    /// What a backend sends on the connection `lease`, limited to `idle` between its parts.
    pub(super) fn backend(body: Incoming, idle: Duration, lease: Lease, exchange: Exchange) -> Self {
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
            self.exchange.in_flight.connection().handed_over(handed);
        }
    }
}

impl Source {
    /// The response is complete: its connection may serve others.
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
    /// Starts to measure a request.
    pub(super) fn new(in_flight: InFlight, metrics: HttpMetrics) -> Self {
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

/// The next part of a body, without the trailer fields that must not pass.
fn poll_part(
    body: &mut Incoming,
    stall: &mut StallTimer,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    match Pin::new(body).poll_frame(cx) {
        Poll::Ready(outcome) => {
            stall.progressed();
            Poll::Ready(outcome.map(|part| {
                let mut frame = part?;
                if let Some(trailers) = frame.trailers_mut() {
                    filter_trailers(trailers);
                }
                Ok(frame)
            }))
        }
        Poll::Pending => stall.poll_stalled(cx).map(|()| Some(Err(BodyError::Stalled))),
    }
}
