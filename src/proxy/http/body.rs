//! Forwarding of bodies, with a limit on the time between two reads.

pub(crate) mod response;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;

use super::headers::filter_trailers;
use super::timer::StallTimer;

/// Why forwarding a body failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// Reading timed out.
    #[error("timed out waiting for the body")]
    Stalled,
    /// The connection that it was read from failed.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

/// Polls the next frame of a body, without trailer fields that must not be forwarded.
pub(crate) fn poll_part(
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
