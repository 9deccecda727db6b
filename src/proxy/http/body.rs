//! The parts of a body on their way through the proxy, with a limit on how long they may stand still.

pub(crate) mod response;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;

use super::headers::filter_trailers;
use super::timer::StallTimer;

/// Why a body cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// Nothing came for too long.
    #[error("timed out waiting for the body")]
    Stalled,
    /// The connection that it came on failed.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

/// The next part of a body, without the trailer fields that must not pass.
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
