//! Filter between the client's bytes and hyper: only unambiguous requests pass ([`Framing`]).
//!
//! A head is held until it is complete and checked; bodies are read directly into hyper's buffer. hyper gets a
//! placeholder instead of a refused head; the service recognizes it by its number and answers with the refusal. An
//! error inside a body is a read error, so that the connection and the request to the backend end at once.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::framing::{Framing, Step};
use crate::proxy::http::refusal::HttpRefusal;
use crate::proxy::http::state::ConnectionState;
use crate::proxy::http::timer::StallTimer;

/// Placeholder that hyper reads instead of a refused head.
const REFUSED_HEAD: &[u8] = b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n";
/// Maximum number of bytes to hold while a protocol upgrade is undecided.
const MAX_UNDECIDED: usize = 16 << 10;

/// The client's connection, with a limit on how long a write may be blocked.
pub(crate) struct ClientIo<IO> {
    io: IO,
    state: Rc<ConnectionState>,
    stall: StallTimer,
}

/// A [`ClientIo`] that reads checked HTTP/1 requests only.
pub(crate) struct Guard<IO> {
    io: ClientIo<IO>,
    state: Rc<ConnectionState>,
    framing: Framing,
    /// Bytes that hyper has not read yet; the first `passable` of them may pass.
    held: BytesMut,
    passable: usize,
    end: Option<GuardEnd>,
}

/// Why reading has ended.
enum GuardEnd {
    /// The client has closed its side.
    Eof,
    /// A head was refused; the connection closes after the response.
    Refused,
    /// A body was malformed.
    Fault(HttpRefusal),
}

impl<IO> ClientIo<IO> {
    pub(crate) fn new(io: IO, state: Rc<ConnectionState>, write_stall: Duration) -> Self {
        Self {
            io,
            state,
            stall: StallTimer::new(write_stall),
        }
    }

    /// Fails a write that was blocked for too long.
    fn stalled<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.state.activity.write_blocked.set(outcome.is_pending());
        if outcome.is_ready() {
            self.stall.progressed();
            self.state.activity.progressed();
            return outcome;
        }
        ready!(self.stall.poll_stalled(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "timed out writing to the client",
        )))
    }
}

impl<IO: AsyncRead + Unpin> Guard<IO> {
    pub(crate) fn new(io: ClientIo<IO>, state: Rc<ConnectionState>) -> Self {
        Self {
            io,
            state,
            framing: Framing::default(),
            held: BytesMut::new(),
            passable: 0,
            end: None,
        }
    }

    /// Stops checking. Returns the held bytes.
    pub(crate) fn into_parts(self) -> (ClientIo<IO>, Bytes) {
        (self.io, self.held.freeze())
    }

    /// Checks the held bytes until more input is needed.
    fn judge_held(&mut self) {
        let at_head = self.framing.at_head();
        match self.framing.advance(&self.held) {
            Ok(Step::Pass(passed)) => {
                self.passable = passed;
                if at_head {
                    self.head_passed();
                }
            }
            Ok(Step::Wait) => {}
            Err(refusal) if at_head => self.refuse(refusal),
            Err(refusal) => self.end = Some(GuardEnd::Fault(refusal)),
        }
    }

    fn head_passed(&mut self) {
        let number = self.state.heads.pass();
        if self.framing.awaits_upgrade() {
            self.state.upgrade.await_decision(number);
        }
    }

    fn refuse(&mut self, refusal: HttpRefusal) {
        self.state.heads.refuse(refusal);
        // Give hyper a valid request; otherwise it would answer by itself, ahead of responses that are still due.
        self.held = BytesMut::from(REFUSED_HEAD);
        self.passable = REFUSED_HEAD.len();
        self.end = Some(GuardEnd::Refused);
    }

    /// Records since when a head has been incomplete.
    fn note_partial_head(&self) {
        let partial = self.framing.at_head() && self.passable == 0 && !self.held.is_empty();
        if partial && self.state.heads.partial_since.get().is_none() {
            self.state.heads.partial_since.set(Some(Instant::now()));
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guard<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.passable > 0 {
                let length = this.passable.min(buf.remaining());
                buf.put_slice(&this.held.split_to(length));
                this.passable -= length;
                this.state.activity.progressed();
                if this.passable == 0 && !matches!(this.end, Some(GuardEnd::Refused)) {
                    this.judge_held();
                    this.note_partial_head();
                }
                return Poll::Ready(Ok(()));
            }
            match &this.end {
                Some(GuardEnd::Eof) => return Poll::Ready(Ok(())),
                // Not the end of the stream: hyper would close before it has written the answer.
                Some(GuardEnd::Refused) => return Poll::Pending,
                Some(GuardEnd::Fault(refusal)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refusal.reason)));
                }
                None => {}
            }
            if let Some(refusal) = this.state.heads.refuse_partial.take() {
                this.refuse(refusal);
                continue;
            }
            let undecided = this.framing.awaits_upgrade();
            if undecided {
                if !this.state.upgrade.poll_holds_back(cx.waker()) {
                    this.framing.upgrade_declined();
                    this.judge_held();
                    this.note_partial_head();
                    continue;
                }
                if this.held.len() >= MAX_UNDECIDED {
                    return Poll::Pending;
                }
            }

            let start = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let read = buf.filled().get(start..).unwrap_or_default();
            if read.is_empty() {
                this.end = Some(GuardEnd::Eof);
                return Poll::Ready(Ok(()));
            }
            if undecided || !this.held.is_empty() {
                this.held.extend_from_slice(read);
                buf.set_filled(start);
                if !undecided {
                    this.judge_held();
                }
                continue;
            }
            // The usual case: check the bytes in hyper's buffer, and move only those away that must be held back.
            let mut passed = 0;
            while let Some(rest) = read.get(passed..).filter(|rest| !rest.is_empty()) {
                let at_head = this.framing.at_head();
                match this.framing.advance(rest) {
                    Ok(Step::Pass(length)) => {
                        passed += length;
                        if at_head {
                            this.head_passed();
                        }
                    }
                    Ok(Step::Wait) => {
                        this.held.extend_from_slice(rest);
                        break;
                    }
                    Err(refusal) if at_head => {
                        this.refuse(refusal);
                        break;
                    }
                    Err(refusal) => {
                        this.end = Some(GuardEnd::Fault(refusal));
                        break;
                    }
                }
            }
            this.note_partial_head();
            buf.set_filled(start + passed);
            if passed > 0 {
                this.state.activity.progressed();
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ClientIo<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ClientIo<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_write(cx, buf);
        this.stalled(cx, outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.stalled(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_flush(cx);
        if outcome.is_ready() && !this.state.activity.write_blocked.get() {
            // hyper flushes constantly; a flush is progress only if a write was blocked before.
            return outcome;
        }
        this.stalled(cx, outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_shutdown(cx);
        this.stalled(cx, outcome)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guard<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
