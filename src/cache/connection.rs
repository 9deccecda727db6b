//! One connection: requests in, replies out, in order.
//!
//! Requests that arrive together are answered together: one read, one write. Data is read into a buffer that all
//! connections share; a connection keeps only what could not be processed at once, so that an idle connection holds no
//! buffers. While the client does not read its replies, nothing more is read from it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesOrdered;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use zeroize::Zeroize;

use super::metrics::Origin;
use super::node::{ClientSession, Node, NodeAnswer};
use crate::resp::{ProtocolError, Reply, RequestDecoder, WipedBuffer};

/// Maximum bytes per read.
const INPUT: usize = 16 * 1024;

/// Bytes of buffered replies above which they are sent before more requests are processed.
const OUTPUT: usize = 64 * 1024;

/// Maximum number of concurrent requests to peers per connection.
const MOST_RUNNING: usize = 64;

/// Maximum number of consecutive reads before the task yields to other connections.
const MOST_ROUNDS: usize = 8;

/// Time limit for sending the last replies of a connection at shutdown.
const FAREWELL: Duration = Duration::from_millis(500);

/// State shared by all connections of a process.
pub(crate) struct Common {
    pub(crate) node: Rc<Node>,
    /// Cancelled when connections have to close.
    pub(crate) stop: CancellationToken,
    scratch: RefCell<Scratch>,
    /// Memory of the buffers of all connections, in bytes, and its limit.
    held: Cell<usize>,
    most_held: usize,
}

/// Shared buffers for the data read and the replies written in one poll.
struct Scratch {
    input: Box<[u8]>,
    output: Vec<u8>,
    decoder: RequestDecoder,
}

impl Common {
    /// `most_held` limits the memory of pending requests and replies of all connections together, in bytes.
    pub(crate) fn new(node: Rc<Node>, stop: CancellationToken, most_held: usize) -> Self {
        let scratch = Scratch {
            input: vec![0; INPUT].into(),
            output: Vec::with_capacity(2 * OUTPUT),
            decoder: RequestDecoder::default(),
        };
        Self {
            node,
            stop,
            scratch: RefCell::new(scratch),
            held: Cell::new(0),
            most_held,
        }
    }
}

/// Serves a connection until it closes.
pub(crate) async fn serve<S>(stream: S, origin: Origin, common: Rc<Common>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stop = common.stop.clone();
    let mut connection = Connection::new(stream, origin, common);
    let ended = tokio::select! {
        biased;
        ended = poll_fn(|cx| connection.poll(cx)) => ended,
        () = stop.cancelled() => {
            connection.closing = true;
            let farewell = timeout(FAREWELL, poll_fn(|cx| connection.poll(cx))).await;
            farewell.unwrap_or(Ok(()))
        }
    };
    match ended {
        Ok(()) => {}
        Err(End::Io(error)) => debug!(%error, "connection failed"),
        Err(End::Crowded) => connection.common.node.metrics.crowded_out(),
    }
}

struct Connection<S> {
    stream: S,
    common: Rc<Common>,
    session: ClientSession,
    /// Input that has not been processed yet.
    kept: WipedBuffer,
    /// Whether the kept input may contain complete requests.
    stalled: bool,
    /// Replies that have not been written yet.
    unsent: WipedBuffer,
    /// Whether the stream has to be flushed.
    unflushed: bool,
    /// Pending replies after those, in the order of the requests.
    running: FuturesOrdered<LocalBoxFuture<'static, Reply>>,
    /// Whether the connection closes after the pending replies.
    closing: bool,
    /// Share of this connection in `Common::held`.
    held: usize,
}

/// Why a connection is closed.
enum End {
    Io(io::Error),
    Crowded,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn new(stream: S, origin: Origin, common: Rc<Common>) -> Self {
        Self {
            stream,
            session: common.node.session(origin),
            common,
            kept: WipedBuffer::default(),
            stalled: false,
            unsent: WipedBuffer::default(),
            unflushed: false,
            running: FuturesOrdered::new(),
            closing: false,
            held: 0,
        }
    }

    /// Drives the connection; completes when it is closed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        for _ in 0..MOST_ROUNDS {
            self.collect(cx);
            let sent = self.poll_send(cx)?;
            self.account()?;
            ready!(sent);
            if self.running.len() >= MOST_RUNNING || (self.closing && !self.running.is_empty()) {
                return Poll::Pending;
            }
            if self.closing {
                return Pin::new(&mut self.stream).poll_shutdown(cx).map_err(End::Io);
            }
            if self.stalled {
                self.resume(cx)?;
            } else {
                ready!(self.poll_receive(cx))?;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Collects completed replies of other caches, in order.
    fn collect(&mut self, cx: &mut Context<'_>) {
        while self.unsent.as_slice().len() < OUTPUT
            && let Poll::Ready(Some(reply)) = self.running.poll_next_unpin(cx)
        {
            let output = &mut self.common.scratch.borrow_mut().output;
            reply.encode(self.session.protocol(), output);
            self.unsent.push(output);
            wipe(output);
        }
    }

    /// Completes when all replies have been written and flushed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, self.unsent.as_slice()))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.consume(written);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and processes the input.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let common = Rc::clone(&self.common);
        let mut scratch = common.scratch.borrow_mut();
        let Scratch {
            input,
            output,
            decoder,
        } = &mut *scratch;
        let mut buffer = ReadBuf::new(input);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)).map_err(End::Io)?;
        let received = buffer.filled_mut();
        if received.is_empty() {
            self.closing = true;
            return Poll::Ready(Ok(()));
        }
        if self.kept.is_empty() {
            let done = self.answer_all(received, decoder, output);
            self.kept.push(received.get(done..).unwrap_or_default());
            received.zeroize();
            self.send_at_once(cx, output)?;
        } else {
            self.kept.push(received);
            received.zeroize();
            self.answer_kept(cx, decoder, output)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Processes input that was received earlier.
    fn resume(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let common = Rc::clone(&self.common);
        let mut scratch = common.scratch.borrow_mut();
        let Scratch { output, decoder, .. } = &mut *scratch;
        self.answer_kept(cx, decoder, output)
    }

    fn answer_kept(
        &mut self,
        cx: &mut Context<'_>,
        decoder: &mut RequestDecoder,
        output: &mut Vec<u8>,
    ) -> io::Result<()> {
        let kept = std::mem::take(&mut self.kept);
        let done = self.answer_all(kept.as_slice(), decoder, output);
        self.kept = kept;
        self.kept.consume(done);
        self.send_at_once(cx, output)
    }

    /// Processes the requests in `input` until the output limit is reached; returns the number of bytes consumed.
    fn answer_all(&mut self, input: &[u8], decoder: &mut RequestDecoder, output: &mut Vec<u8>) -> usize {
        let node = Rc::clone(&self.common.node);
        let begin = Instant::now();
        let (mut done, mut answered) = (0, 0);
        self.stalled = true;
        while output.len() < OUTPUT && self.running.len() < MOST_RUNNING && !self.closing {
            let rest = input.get(done..).unwrap_or_default();
            let (request, length) = match decoder.decode(rest) {
                Ok(Some(decoded)) => decoded,
                Ok(None) => {
                    self.stalled = false;
                    break;
                }
                Err(error) => {
                    self.broken(error, output);
                    break;
                }
            };
            done += length;
            if request.is_empty() {
                continue;
            }
            match node.answer(&mut self.session, request, begin) {
                NodeAnswer::Now(reply) => {
                    self.reply(reply, output);
                    answered += 1;
                }
                NodeAnswer::Later(reply) => self.running.push_back(reply),
                NodeAnswer::Last(reply) => {
                    self.reply(reply, output);
                    self.closing = true;
                }
            }
        }
        if answered > 0 {
            let duration = begin.elapsed();
            (0..answered).for_each(|_| node.metrics.took(duration));
        }
        done
    }

    fn reply(&mut self, reply: Reply, output: &mut Vec<u8>) {
        match self.running.is_empty() {
            true => reply.encode(self.session.protocol(), output),
            false => self.running.push_back(Box::pin(std::future::ready(reply))),
        }
    }

    fn broken(&mut self, error: ProtocolError, output: &mut Vec<u8>) {
        debug!(%error, "protocol error, closing the connection");
        self.common.node.metrics.protocol_broken();
        self.reply(Reply::Error(format!("ERR {error}").into()), output);
        self.closing = true;
    }

    /// Writes as much as possible without blocking, and keeps the rest.
    fn send_at_once(&mut self, cx: &mut Context<'_>, output: &mut Vec<u8>) -> io::Result<()> {
        let mut sent = 0;
        if self.unsent.is_empty()
            && !output.is_empty()
            && let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, output)
        {
            sent = written?;
            self.unflushed = true;
        }
        self.unsent.push(output.get(sent..).unwrap_or_default());
        wipe(output);
        Ok(())
    }

    /// Updates the memory accounting. Fails if the limit of all connections is exceeded.
    fn account(&mut self) -> Result<(), End> {
        let held = self.kept.capacity() + self.unsent.capacity();
        let all = self.common.held.get() - self.held + held;
        let grown = held > self.held;
        self.held = held;
        self.common.held.set(all);
        match grown && all > self.common.most_held {
            true => Err(End::Crowded),
            false => Ok(()),
        }
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.common.held.set(self.common.held.get() - self.held);
    }
}

/// Zeroes and clears a vector, keeping its allocation.
fn wipe(bytes: &mut Vec<u8>) {
    bytes.as_mut_slice().zeroize();
    bytes.clear();
}
