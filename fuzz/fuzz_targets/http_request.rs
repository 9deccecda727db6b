//! HTTP/1 requests: the same bytes pass whole or in pieces, and hyper finds in what passed the same requests with the
//! same bodies, or refuses them. A request that only one of the two sees could be smuggled past the other.
//!
//! The first byte of the input says how long the pieces are, the rest is what comes off the wire.

#![no_main]

use std::cell::RefCell;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri, Version};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use tlsfarm::proxy::http::h1::framing::{Framing, Step};
use tlsfarm::proxy::http::refusal::HttpRefusal;
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().build().expect("a runtime");
}

/// As large as hyper's buffer in the proxy, so that hyper holds every head that the proxy passes.
const READ_BUFFER: usize = 128 * 1024;

/// A request as far as it came.
#[derive(Debug)]
struct Seen {
    /// Method and target.
    line: String,
    body: Vec<u8>,
    complete: bool,
}

/// What hyper made of a stream.
#[derive(Default)]
struct Read {
    requests: Vec<Seen>,
    /// It has a reason to read no further: it refused something, or a request said that it is the last one.
    stops: bool,
    /// The stream ended within a body.
    wants_more: bool,
}

fuzz_target!(|input: &[u8]| {
    let Some((cut, wire)) = input.split_first() else {
        return;
    };
    let whole = judge(wire.chunks(wire.len().max(1)));
    let pieces = judge(wire.chunks(usize::from(*cut).max(1)));
    assert_eq!(whole.passed, pieces.passed);
    assert_eq!(whole.refusal, pieces.refusal);
    assert_eq!(whole.bodies, pieces.bodies);
    assert!(wire.starts_with(&whole.passed));

    let ours = whole.requests();
    let theirs = RUNTIME.with(|runtime| runtime.block_on(read_by_hyper(&whole.passed)));
    for (theirs, ours) in theirs.requests.iter().zip(&ours) {
        assert_eq!(theirs.line, ours.line);
        if theirs.complete {
            assert!(ours.complete);
            assert_eq!(theirs.body, ours.body);
        }
    }
    let (seen, passed) = (theirs.requests.len(), ours.len());
    assert!(seen <= passed, "hyper sees {seen} requests in {passed}");
    assert!(
        seen == passed || theirs.stops,
        "hyper sees {seen} requests in {passed}"
    );
    let last_is_complete = ours.last().is_none_or(|last| last.complete);
    assert!(
        !theirs.wants_more || !last_is_complete,
        "hyper waits for more of a body that is complete"
    );
});

/// What the framing made of a stream.
#[derive(Default)]
struct Judged {
    passed: Vec<u8>,
    refusal: Option<HttpRefusal>,
    /// Where in `passed` each head ends and its body ends, and whether the body is complete.
    bodies: Vec<(usize, usize, bool)>,
}

fn judge<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Judged {
    let mut framing = Framing::default();
    let mut judged = Judged::default();
    let mut held = Vec::new();
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            if framing.awaits_upgrade() {
                framing.upgrade_declined();
            }
            let at_head = framing.at_head();
            match framing.advance(&held) {
                Ok(Step::Pass(length)) => {
                    assert!((1..=held.len()).contains(&length));
                    judged.passed.extend(held.drain(..length));
                    let end = judged.passed.len();
                    let complete = framing.at_head() || framing.awaits_upgrade();
                    match judged.bodies.last_mut() {
                        Some(last) if !at_head => (last.1, last.2) = (end, complete),
                        _ => judged.bodies.push((end, end, complete)),
                    }
                }
                Ok(Step::Wait) => break,
                Err(refusal) => {
                    judged.refusal = Some(refusal);
                    return judged;
                }
            }
        }
    }
    judged
}

impl Judged {
    fn requests(&self) -> Vec<Seen> {
        let mut start = 0;
        let mut requests = Vec::new();
        for (head_end, body_end, complete) in &self.bodies {
            let head = String::from_utf8_lossy(&self.passed[start..*head_end]);
            let body = &self.passed[*head_end..*body_end];
            start = *body_end;
            let chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding:");
            let line = head.trim_start_matches("\r\n").split("\r\n").next();
            requests.push(Seen {
                line: as_hyper_writes(line.expect("there is a first line")),
                body: match (chunked, complete) {
                    (true, true) => unchunk(body),
                    (true, false) => Vec::new(),
                    (false, _) => body.to_vec(),
                },
                complete: *complete,
            });
        }
        requests
    }
}

/// Method and target, the target in the form that hyper gives it. It is left as it is where hyper refuses it.
fn as_hyper_writes(line: &str) -> String {
    let (line, _) = line.rsplit_once(' ').expect("a version");
    let (method, target) = line.split_once(' ').expect("a target");
    target
        .parse::<Uri>()
        .map_or_else(|_| line.to_owned(), |target| format!("{method} {target}"))
}

/// The data of a complete body in chunks.
fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = std::str::from_utf8(&rest[..digits]).expect("digits");
        let size = usize::from_str_radix(size, 16).expect("a size that passed");
        let line = rest.windows(2).position(|pair| pair == b"\r\n").expect("a line");
        rest = &rest[line + 2..];
        if size == 0 {
            return data;
        }
        data.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

async fn read_by_hyper(passed: &[u8]) -> Read {
    let (mut client, server) = tokio::io::duplex(passed.len().max(1));
    client
        .write_all(passed)
        .await
        .expect("there is room for all of it");
    client.shutdown().await.expect("it is memory");
    let read = Rc::new(RefCell::new(Read::default()));
    let service = service_fn(|request: Request<Incoming>| {
        let read = Rc::clone(&read);
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            read.borrow_mut().stops |= says_close(&request);
            read.borrow_mut().requests.push(Seen {
                line,
                body: Vec::new(),
                complete: false,
            });
            let body = request.into_body().collect().await;
            let read = &mut *read.borrow_mut();
            let last = read.requests.last_mut().expect("it was pushed");
            match body {
                Ok(body) => (last.body, last.complete) = (body.to_bytes().into(), true),
                Err(error) if is_end_of_stream(&error) => read.wants_more = true,
                Err(_) => read.stops = true,
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let connection = http1::Builder::new()
        .max_buf_size(READ_BUFFER)
        .half_close(true)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(server), service);
    let drain = async {
        // What hyper answers is of no interest, but must not stop it.
        let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
    };
    let (ended, ()) = tokio::join!(connection, drain);
    let mut read = read.take();
    read.stops |= ended.is_err_and(|error| error.is_parse());
    read
}

/// Whether a request is the last one of its connection (RFC 9112 section 9.3).
fn says_close(request: &Request<Incoming>) -> bool {
    let mut options = request.headers().get_all("connection").iter();
    request.version() == Version::HTTP_10
        || options.any(|options| {
            options
                .as_bytes()
                .to_ascii_lowercase()
                .windows(5)
                .any(|word| word == b"close")
        })
}

fn is_end_of_stream(error: &hyper::Error) -> bool {
    let io = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>());
    error.is_incomplete_message() || io.is_some_and(|io| io.kind() == io::ErrorKind::UnexpectedEof)
}
