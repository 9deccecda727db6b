//! The body of a request to a backend.

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

use crate::proxy::http::body::{BodyError, poll_part};
use crate::proxy::http::refusal::HttpRefusal;
use crate::proxy::http::timer::StallTimer;

/// The body of a request to a backend.
#[derive(Default)]
pub(crate) struct RequestBody(Option<Box<Upload>>);

struct Upload {
    body: Incoming,
    stall: StallTimer,
    progress: Rc<UploadProgress>,
}

/// Progress of reading a request body.
pub(crate) struct UploadProgress {
    last: Cell<Instant>,
    failure: Cell<Option<HttpRefusal>>,
}

impl RequestBody {
    /// Creates a body with a time limit of `idle` between two reads, and its progress; None if the body is empty.
    pub(crate) fn new(body: Incoming, idle: Duration) -> (Self, Option<Rc<UploadProgress>>) {
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
    /// Creates the progress of a body that has not been read yet.
    pub(crate) fn new() -> Self {
        Self {
            last: Cell::new(Instant::now()),
            failure: Cell::new(None),
        }
    }

    /// Records that a part was read.
    pub(crate) fn advanced(&self) {
        self.last.set(Instant::now());
    }

    /// Time of the last read.
    pub(crate) fn last(&self) -> Instant {
        self.last.get()
    }

    /// The refusal for a body that timed out or was malformed, if any.
    pub(crate) fn failure(&self) -> Option<HttpRefusal> {
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
                BodyError::Stalled => HttpRefusal {
                    status: StatusCode::REQUEST_TIMEOUT,
                    reason: "timed out waiting for the request body",
                },
                BodyError::Broken(_) => {
                    HttpRefusal::bad_request("the request's body is malformed or incomplete")
                }
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
