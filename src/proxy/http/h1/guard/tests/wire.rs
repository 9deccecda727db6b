//! A guard before a client of which the test says what it does when.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::http::Client;
use crate::proxy::http::h1::guard::{ClientIo, Guard};
use crate::proxy::http::state::ConnectionState;

/// A client whose bytes arrive when the test says so, and that reads as many as the test allows.
#[derive(Clone, Default)]
pub(super) struct Wire(pub(super) Rc<RefCell<WireState>>);

#[derive(Default)]
pub(super) struct WireState {
    pub(super) arriving: Vec<u8>,
    /// What ends the bytes: the client closes its side, or the connection fails.
    ended: Option<io::Result<()>>,
    /// How many bytes are still taken.
    pub(super) room: usize,
    pub(super) taken: Vec<u8>,
    /// Takes one buffer at a time, as a stream of TLS may.
    pub(super) one_by_one: bool,
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.borrow_mut();
        let length = wire.arriving.len().min(buf.remaining());
        if length == 0 {
            return wire.ended.take().map_or(Poll::Pending, Poll::Ready);
        }
        let rest = wire.arriving.split_off(length);
        buf.put_slice(&std::mem::replace(&mut wire.arriving, rest));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut wire = self.0.borrow_mut();
        let length = wire.room.min(buf.len());
        if length == 0 {
            return Poll::Pending;
        }
        wire.room -= length;
        wire.taken.extend_from_slice(&buf[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.poll_write(cx, &all)
    }

    fn is_write_vectored(&self) -> bool {
        !self.0.borrow().one_by_one
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.0.borrow().room {
            0 => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// What one read came to.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Read {
    Bytes(String),
    Eof,
    Fault(io::ErrorKind, String),
    Waits,
}

pub(super) fn bytes(text: &str) -> Read {
    Read::Bytes(text.into())
}

/// A guard before a client's wire.
pub(super) struct Guarded {
    pub(super) wire: Wire,
    pub(super) state: Rc<ConnectionState>,
    pub(super) guard: Guard<Wire>,
}

impl Guarded {
    pub(super) fn new() -> Self {
        let wire = Wire::default();
        let state = ConnectionState::new(Client {
            peer: "192.0.2.7:1".parse().expect("valid"),
            tls: None,
        });
        let io = ClientIo::new(wire.clone(), Rc::clone(&state), STALL);
        let guard = Guard::new(io, Rc::clone(&state));
        Self { wire, state, guard }
    }

    pub(super) fn arrives(&self, text: &str) {
        self.wire
            .0
            .borrow_mut()
            .arriving
            .extend_from_slice(text.as_bytes());
    }

    pub(super) fn ends(&self, ending: io::Result<()>) {
        self.wire.0.borrow_mut().ended = Some(ending);
    }

    /// Reads once, into a buffer that already holds something and has so much room.
    pub(super) fn read_into(&mut self, room: usize, waker: &Waker) -> Read {
        let mut space = vec![b'#'; 3 + room];
        let mut buf = ReadBuf::new(&mut space);
        buf.put_slice(b"###");
        let outcome = Pin::new(&mut self.guard).poll_read(&mut Context::from_waker(waker), &mut buf);
        let (before, read) = buf.filled().split_at(3);
        assert_eq!(before, b"###", "earlier bytes stay");
        match outcome {
            Poll::Ready(Ok(())) if read.is_empty() => Read::Eof,
            Poll::Ready(Ok(())) => Read::Bytes(String::from_utf8_lossy(read).into_owned()),
            Poll::Ready(Err(error)) => Read::Fault(error.kind(), error.to_string()),
            Poll::Pending => {
                assert!(read.is_empty(), "what is read is not announced: {read:?}");
                Read::Waits
            }
        }
    }

    pub(super) fn read(&mut self) -> Read {
        self.read_into(100_000, Waker::noop())
    }
}

/// Counts how often something was woken.
#[derive(Default)]
pub(super) struct Wakes(pub(super) AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) const STALL: Duration = Duration::from_millis(20);
