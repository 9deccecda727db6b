//! One established connection: sends requests in batches, receives replies, enforces time limits.

use std::future::poll_fn;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep_until};
use zeroize::{Zeroize, Zeroizing};

use super::error::{CacheError, OWNER_IS_SILENT};
use super::health::HealthRecorder;
use super::outstanding::{Expects, Outstanding, PendingRequest, ReplySender, Waiting};
use crate::resp::breaker::BreakerState;
use crate::resp::{Reply, ReplyDecoder};

/// Maximum number of requests without a reply. Further requests stay in the bounded queue.
const MOST_OUTSTANDING: usize = 1024;

/// Size of a batch in bytes after which no more requests are added.
const FULL_BATCH: usize = 16 * 1024;

/// Idle time after which a connection is probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A connection is closed if its oldest reply is overdue for this duration and for this number of time limits.
const STALLED: (Duration, u32) = (Duration::from_secs(1), 10);

/// A `PING`, as a request.
pub(super) const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// Why a connection was closed.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum LinkEnd {
    /// All clients were dropped.
    Unused,
    /// The connection failed, for this reason.
    Broken(String),
}

/// An established connection, on which the server has already replied.
pub(super) struct Link<'a, S> {
    stream: S,
    decoder: ReplyDecoder,
    timeout: Duration,
    keeper: &'a mut HealthRecorder,
    requests: &'a mut mpsc::Receiver<PendingRequest>,
    outstanding: Outstanding,
    /// Bytes to write.
    batch: Zeroizing<Vec<u8>>,
    written: usize,
    flushed: bool,
    received: Zeroizing<Vec<u8>>,
    last_sent: Instant,
    /// One timer for all time limits. It may fire early, never late.
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Link<'a, S> {
    /// Wraps a connection. `decoder` may contain bytes that were already received.
    pub(super) fn new(
        stream: S,
        decoder: ReplyDecoder,
        timeout: Duration,
        keeper: &'a mut HealthRecorder,
        requests: &'a mut mpsc::Receiver<PendingRequest>,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            decoder,
            timeout,
            keeper,
            requests,
            outstanding: Outstanding::default(),
            batch: Zeroizing::default(),
            written: 0,
            flushed: true,
            received: Zeroizing::new(vec![0; 4096]),
            last_sent: now,
            timer: Box::pin(sleep_until((now + PROBE_INTERVAL).into())),
            timer_at: now + PROBE_INTERVAL,
        }
    }

    /// Serves requests until the connection closes. Requests without a reply then fail.
    pub(super) async fn run(mut self) -> LinkEnd {
        let end = poll_fn(|cx| self.poll(cx)).await;
        while let Some(waiting) = self.outstanding.replied() {
            if let Waiting::Caller(_, answer) = waiting {
                // Sending fails if the caller has stopped waiting, here and below.
                let _ = answer.send(Err(CacheError::Lost));
            }
        }
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkEnd> {
        loop {
            if self.take_requests(cx).is_break() {
                return Poll::Ready(LinkEnd::Unused);
            }
            let is_full = self.batch.len() >= FULL_BATCH;
            match self.poll_write(cx) {
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(LinkEnd::Broken(format!("write failed: {error}")));
                }
                // More requests may be queued than fit the batch, and nothing would wake this task for them.
                Poll::Ready(Ok(())) if is_full => continue,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
            match self.poll_read(cx) {
                // There may be room for more requests now.
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Pending => match self.poll_timer(cx) {
                    // A probe may have to be written now.
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(end)) => return Poll::Ready(end),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// Moves queued requests into the batch. Breaks if all clients were dropped.
    fn take_requests(&mut self, cx: &mut Context<'_>) -> ControlFlow<()> {
        while self.outstanding.len() < MOST_OUTSTANDING && self.batch.len() < FULL_BATCH {
            match self.requests.poll_recv(cx) {
                // The request timed out while the first connection was being made.
                Poll::Ready(Some(request)) if request.answer.is_closed() => {}
                Poll::Ready(Some(request)) => {
                    let waiting = Waiting::Caller(request.expects, request.answer);
                    self.send(&request.bytes, request.asked, request.deadline, waiting);
                }
                Poll::Ready(None) => return ControlFlow::Break(()),
                Poll::Pending => break,
            }
        }
        ControlFlow::Continue(())
    }

    fn send(&mut self, bytes: &[u8], asked: Instant, deadline: Instant, waiting: Waiting) {
        if self.batch.capacity() - self.batch.len() < bytes.len() {
            // Reallocation would leave an unwiped copy; grow into a new `Zeroizing` buffer instead.
            let needed = (self.batch.len() + bytes.len()).next_power_of_two();
            let mut grown = Zeroizing::new(Vec::with_capacity(needed));
            grown.extend_from_slice(&self.batch);
            self.batch = grown;
        }
        self.batch.extend_from_slice(bytes);
        self.last_sent = asked;
        self.outstanding.push(asked, deadline, waiting);
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.batch.get(self.written..).filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            self.flushed = false;
        }
        // Wipe only the used part: the capacity may be large.
        self.batch.as_mut_slice().zeroize();
        self.batch.clear();
        self.written = 0;
        if !self.flushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and delivers the replies.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkEnd>> {
        let mut buffer = ReadBuf::new(&mut self.received);
        match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
            Err(error) => return Poll::Ready(Err(LinkEnd::Broken(format!("read failed: {error}")))),
            Ok(()) if buffer.filled().is_empty() => {
                return Poll::Ready(Err(LinkEnd::Broken("closed by the server".into())));
            }
            Ok(()) => {}
        }
        self.decoder.push(buffer.filled());
        buffer.filled_mut().zeroize();
        let now = Instant::now();
        loop {
            match self.decoder.decode() {
                Ok(None) => return Poll::Ready(Ok(())),
                Ok(Some(reply)) => match self.outstanding.replied() {
                    Some(waiting) => self.hand_out(reply, waiting, now)?,
                    None => return Poll::Ready(Err(self.garbled("no request was waiting for it"))),
                },
                Err(error) => return Poll::Ready(Err(self.garbled(&error.to_string()))),
            }
        }
    }

    fn hand_out(&mut self, reply: Reply, waiting: Waiting, now: Instant) -> Result<(), LinkEnd> {
        match waiting {
            Waiting::Caller(expects, answer) => self.answer(expects.judge(reply), answer, now),
            Waiting::Nobody => {
                self.keeper.metrics().answered_late();
                Ok(())
            }
            Waiting::Probe => match Expects::Word("PONG").judge(reply) {
                // An answered PING does not count as success: it does not outweigh failed requests.
                Ok(_) => Ok(()),
                Err(CacheError::Garbled) => Err(self.garbled("expected PONG")),
                Err(error) => {
                    self.keeper.failed(now, || error.to_string());
                    Ok(())
                }
            },
            Waiting::Trial => {
                let outcome = Expects::Word("PONG").judge(reply);
                self.keeper.end_trial(outcome.is_ok(), now);
                match outcome {
                    Err(CacheError::Garbled) => Err(self.garbled("expected PONG")),
                    _ => Ok(()),
                }
            }
        }
    }

    fn answer(
        &mut self,
        outcome: Result<Reply, CacheError>,
        answer: ReplySender,
        now: Instant,
    ) -> Result<(), LinkEnd> {
        let ended = match &outcome {
            Ok(Reply::Error(text)) if tells_of_the_server(text) => {
                let word = text.split(' ').next().unwrap_or_default();
                self.keeper
                    .failed(now, || format!("the cache rejects requests: {word}"));
                Ok(())
            }
            Ok(_) => {
                self.keeper.succeeded(now);
                Ok(())
            }
            // This cache answered; the owner of the key, another cache, did not.
            Err(CacheError::Refused(why)) if why == OWNER_IS_SILENT => {
                self.keeper.succeeded(now);
                Ok(())
            }
            Err(CacheError::Garbled) => Err(LinkEnd::Broken(garbled("unexpected content"))),
            Err(error) => {
                self.keeper.failed(now, || error.to_string());
                Ok(())
            }
        };
        let _ = answer.send(outcome);
        ended
    }

    /// Ends the connection after an invalid reply; fails the next waiting request.
    fn garbled(&mut self, what: &str) -> LinkEnd {
        if let Some(Waiting::Caller(_, answer)) = self.outstanding.replied() {
            let _ = answer.send(Err(CacheError::Garbled));
        }
        LinkEnd::Broken(garbled(what))
    }

    /// Handles expired time limits; ready if there was one, so that the caller polls again.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkEnd>> {
        let due = self.next_due();
        if due < self.timer_at {
            self.set_timer(due);
        }
        ready!(self.timer.as_mut().poll(cx));
        let now = Instant::now();
        while let Some(waiting) = self.outstanding.next_run_out(now) {
            self.run_out(waiting, now);
        }
        if self.stalls_at().is_some_and(|at| at <= now) {
            return Poll::Ready(Err(LinkEnd::Broken("the server stopped responding".into())));
        }
        if self.keeper.begin_trial(now) {
            self.send(PING, now, now + self.timeout, Waiting::Trial);
        } else if self.idle_until() <= now {
            self.send(PING, now, now + self.timeout, Waiting::Probe);
        }
        self.set_timer(self.next_due());
        Poll::Ready(Ok(()))
    }

    fn run_out(&mut self, waiting: Waiting, now: Instant) {
        let timeout = self.timeout;
        match waiting {
            Waiting::Trial => self.keeper.end_trial(false, now),
            Waiting::Nobody => {}
            Waiting::Caller(..) | Waiting::Probe => {
                self.keeper
                    .failed(now, || format!("the cache took longer than {timeout:?} to reply"));
            }
        }
        if let Waiting::Caller(_, answer) = waiting {
            let _ = answer.send(Err(CacheError::Timeout));
        }
    }

    fn set_timer(&mut self, at: Instant) {
        self.timer_at = at;
        self.timer.as_mut().reset(at.into());
    }

    fn next_due(&self) -> Instant {
        let trial = self.keeper.breaker().trial_at();
        [self.outstanding.next_deadline(), self.stalls_at(), trial]
            .into_iter()
            .flatten()
            .fold(self.idle_until(), Instant::min)
    }

    fn stalls_at(&self) -> Option<Instant> {
        let (least, limits) = STALLED;
        let patience = least.max(self.timeout * limits);
        self.outstanding.oldest().map(|asked| asked + patience)
    }

    /// Time of the next probe of an idle connection. Only with a closed breaker: otherwise trials are sent.
    fn idle_until(&self) -> Instant {
        match self.keeper.breaker().state() {
            BreakerState::Closed => self.last_sent + PROBE_INTERVAL,
            BreakerState::HalfOpen | BreakerState::Open => Instant::now() + PROBE_INTERVAL,
        }
    }
}

fn garbled(what: &str) -> String {
    format!("invalid reply: {what}")
}

/// Whether an error reply is caused by the state of the server, not by the request (`ERR`, `WRONGTYPE`).
fn tells_of_the_server(error: &str) -> bool {
    !error.starts_with("ERR ") && !error.starts_with("WRONGTYPE ")
}
