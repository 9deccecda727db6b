//! Lingering close: lets the client read everything that was sent before the connection is closed.
//!
//! Closing a connection with unread bytes from the client sends a reset, and a reset discards what the client has not
//! read yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long to keep reading after everything was sent.
const LINGER: Duration = Duration::from_secs(1);

/// Maximum number of bytes to read and discard.
const LINGER_BYTES: usize = 256 << 10;

/// A connection whose shutdown sends FIN and then reads and discards input until the client closes or a limit is
/// reached.
pub(crate) struct Lingering<IO> {
    io: IO,
    rest: Unread,
}

/// Remaining steps before the connection may be dropped.
enum Unread {
    /// It has not been shut down.
    Shutdown,
    /// Reading up to this number of bytes until the timer expires.
    Read(usize, Pin<Box<Sleep>>),
    /// Nothing.
    Done,
}

impl<IO> Lingering<IO> {
    /// Wraps `io`.
    pub(crate) fn new(io: IO) -> Self {
        Self {
            io,
            rest: Unread::Shutdown,
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Lingering<IO> {
    /// Completes when the client has closed or a limit is reached.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Unread::Read(left, limit) = &mut self.rest else {
            return Poll::Ready(());
        };
        let mut bytes = [0; 4096];
        while *left > 0 && limit.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => *left = left.saturating_sub(buf.filled().len()),
                // The client closed or reading failed; either way there is nothing left to discard.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Lingering<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.rest, Unread::Shutdown) {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            this.rest = Unread::Read(LINGER_BYTES, Box::pin(sleep(LINGER)));
        }
        ready!(this.poll_rest(cx));
        this.rest = Unread::Done;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn remaining_input_is_read_until_the_client_closes() {
        let (ours, mut theirs) = duplex(1024);
        let closing = tokio::spawn(async move { Lingering::new(ours).shutdown().await });
        assert_eq!(theirs.read(&mut [0]).await.expect("an end"), 0);
        theirs.write_all(&[0; 50_000]).await.expect("taken");
        assert!(!closing.is_finished());
        drop(theirs);
        closing.await.expect("no panic").expect("closed");
    }

    #[tokio::test]
    async fn a_client_that_keeps_sending_is_closed_at_the_limit() {
        let (ours, mut theirs) = duplex(1024);
        let begun = Instant::now();
        let closing = tokio::spawn(async move { Lingering::new(ours).shutdown().await });
        while theirs.write_all(&[0; 1000]).await.is_ok() {}
        closing.await.expect("no panic").expect("closed");
        assert!(begun.elapsed() < LINGER, "so many bytes come at once");

        let (ours, _silent) = duplex(1024);
        Lingering::new(ours).shutdown().await.expect("closed");
        assert!(begun.elapsed() >= LINGER);
    }
}
