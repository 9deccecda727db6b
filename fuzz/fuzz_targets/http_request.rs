//! HTTP/1 requests: the same bytes pass whole or in pieces, and hyper finds in what passed the same requests with the
//! same bodies, or refuses to go on. A request that only one of the two sees could be smuggled past the other.
//!
//! The first byte of the input says how long the pieces are, the rest is what comes off the wire.

#![no_main]

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use tlsfarm::proxy::http::framing::{Framing, Refusal, Step};
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().build().expect("a runtime");
}

/// As large as hyper's buffer in the proxy, so that hyper holds every head that the proxy passes.
const READ_BUFFER: usize = 128 * 1024;

/// A request line, and the body as far as it came.
#[derive(Debug, Eq, PartialEq)]
struct Seen {
    line: String,
    body: Vec<u8>,
    complete: bool,
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
    assert!(theirs.len() <= ours.len(), "hyper sees {theirs:?} in {ours:?}");
    for (theirs, ours) in theirs.iter().zip(&ours) {
        // hyper writes the scheme of an absolute target in lower case.
        assert!(
            theirs.line.eq_ignore_ascii_case(&ours.line),
            "{theirs:?} {ours:?}"
        );
        if theirs.complete {
            assert!(ours.complete);
            assert_eq!(theirs.body, ours.body);
        }
    }
});

/// What the framing made of a stream.
#[derive(Default)]
struct Judged {
    passed: Vec<u8>,
    refusal: Option<Refusal>,
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
            let head = std::str::from_utf8(&self.passed[start..*head_end]).map_or_else(
                |_| String::from_utf8_lossy(&self.passed[start..*head_end]).into_owned(),
                str::to_owned,
            );
            let body = &self.passed[*head_end..*body_end];
            start = *body_end;
            let chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding:");
            let line = head.trim_start_matches("\r\n").split("\r\n").next();
            requests.push(Seen {
                line: without_version(line.expect("there is a first line")),
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

fn without_version(line: &str) -> String {
    line.rsplit_once(' ').expect("a version").0.to_owned()
}

/// The data of a complete body in chunks.
fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").expect("a line");
        let line = std::str::from_utf8(&rest[..end]).unwrap_or_default();
        let size = line.split(';').next().expect("a size");
        // Extensions need not be UTF-8.
        let size: String = match size.is_empty() {
            true => rest
                .iter()
                .take_while(|b| b.is_ascii_hexdigit())
                .map(|b| char::from(*b))
                .collect(),
            false => size.to_owned(),
        };
        let size = usize::from_str_radix(&size, 16).expect("a size that passed");
        rest = &rest[end + 2..];
        if size == 0 {
            return data;
        }
        data.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

async fn read_by_hyper(passed: &[u8]) -> Vec<Seen> {
    let (mut client, server) = tokio::io::duplex(passed.len().max(1));
    client
        .write_all(passed)
        .await
        .expect("there is room for all of it");
    client.shutdown().await.expect("it is memory");
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let seen = Rc::clone(&seen);
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            let number = seen.borrow().len();
            seen.borrow_mut().push(Seen {
                line,
                body: Vec::new(),
                complete: false,
            });
            if let Ok(body) = request.into_body().collect().await {
                let last = &mut seen.borrow_mut()[number];
                last.body = body.to_bytes().into();
                last.complete = true;
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
    let _ = tokio::join!(connection, drain);
    seen.take()
}
