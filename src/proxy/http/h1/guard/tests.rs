//! What hyper gets to read never depends on how the bytes arrive or on how much room it has for them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use proptest::prelude::*;

use super::*;
use wire::{Guarded, Read, Wakes, bytes};

mod wire;
mod writing;
use crate::proxy::http::Client;
use crate::proxy::http::h1::framing::{Framing, Step};
use crate::reached::check;

/// Gives each piece in a read of its own, then the end.
struct Pieces(VecDeque<Vec<u8>>);

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(mut piece) = self.0.pop_front() else {
            return Poll::Ready(Ok(()));
        };
        let rest = piece.split_off(piece.len().min(buf.remaining()));
        buf.put_slice(&piece);
        if !rest.is_empty() {
            self.0.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

/// How reading ended.
#[derive(Debug, Eq, PartialEq)]
enum Ending {
    Eof,
    Waits,
    Fault,
}

/// Reads everything from a guard with buffers of the given size.
fn read_all(pieces: &[Vec<u8>], room: usize) -> (Vec<u8>, Ending) {
    let client = Client {
        peer: "192.0.2.7:1".parse().expect("valid"),
        tls: None,
    };
    let state = ConnectionState::new(client);
    let pieces = Pieces(pieces.iter().filter(|piece| !piece.is_empty()).cloned().collect());
    let io = ClientIo::new(pieces, Rc::clone(&state), Duration::from_secs(1));
    let mut guard = Guard::new(io, state);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut read = Vec::new();
    loop {
        let mut room = vec![0; room];
        let mut buf = ReadBuf::new(&mut room);
        match Pin::new(&mut guard).poll_read(&mut cx, &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return (read, Ending::Eof),
            Poll::Ready(Ok(())) => read.extend_from_slice(buf.filled()),
            Poll::Ready(Err(_)) => return (read, Ending::Fault),
            Poll::Pending => return (read, Ending::Waits),
        }
    }
}

/// What the state machine alone says about the whole input.
fn expected(input: &[u8]) -> (Vec<u8>, Ending) {
    let mut framing = Framing::default();
    let mut passed = 0;
    while passed < input.len() {
        let at_head = framing.at_head();
        match framing.advance(&input[passed..]) {
            Ok(Step::Pass(length)) => passed += length,
            Ok(Step::Wait) => break,
            Err(_) if at_head => return ([&input[..passed], REFUSED_HEAD].concat(), Ending::Waits),
            Err(_) => return (input[..passed].to_vec(), Ending::Fault),
        }
    }
    (input[..passed].to_vec(), Ending::Eof)
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let request = |text: &str| Just(text.as_bytes().to_vec());
    prop_oneof![
        3 => request("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        2 => request("POST / HTTP/1.1\r\nContent-Length: 7\r\n\r\n1234567"),
        2 => request("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        1 => request("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc0\r\n\r\n"),
        1 => request("GET / HTTP/1.1\n\n"),
        1 => request("GET / HTTP/1.1\r\n"),
        1 => prop::collection::vec(any::<u8>(), 0..8),
    ]
}

/// Requests and parts of them. Measured: 49 % of the cases pass whole, 37 % end with a refused head and 14 % with a faulty
/// body.
#[test]
fn the_verdict_does_not_depend_on_arrival_or_buffer_space() {
    let inputs = (
        prop::collection::vec(piece(), 0..6),
        prop::collection::vec(any::<usize>(), 0..20),
        1usize..200,
    );
    let floors = [("all passes", 23), ("a refused head", 18), ("a faulty body", 7)];
    check(512, inputs, &floors, |(requests, cuts, room), case| {
        let input = requests.concat();
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
        ends.push(input.len());
        ends.sort_unstable();
        let mut start = 0;
        let pieces: Vec<Vec<u8>> = ends
            .iter()
            .map(|end| input[std::mem::replace(&mut start, *end)..*end].to_vec())
            .collect();
        let expected = expected(&input);
        case.reaches(match expected.1 {
            Ending::Eof => "all passes",
            Ending::Waits => "a refused head",
            Ending::Fault => "a faulty body",
        });
        prop_assert_eq!(read_all(&pieces, room), expected);
        Ok(())
    });
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const REFUSED: &str = "GET / HTTP/1.1\r\nconnection: close\r\n\r\n";
const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
const CHUNKED: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_head_passes_when_it_is_complete_and_its_time_counts_from_its_first_byte() {
    let mut guarded = Guarded::new();
    assert_eq!(guarded.read(), Read::Waits);
    assert_eq!(
        guarded.state.heads.partial_since.get(),
        None,
        "nothing of a head has come"
    );
    for part in ["GET / HTTP/1.1\r\n", "Host: a\r\n"] {
        guarded.arrives(part);
        assert_eq!(guarded.read(), Read::Waits);
    }
    let begun = guarded.state.heads.partial_since.get().expect("a head has begun");
    assert!(begun.elapsed() < Duration::from_secs(20));
    guarded.arrives(&format!("\r\n{GET}GET"));
    assert_eq!(guarded.read(), bytes(GET));
    assert_eq!(guarded.state.heads.partial_since.get(), None);
    assert_eq!(guarded.read(), bytes(GET));
    let next = guarded
        .state
        .heads
        .partial_since
        .get()
        .expect("the third head has begun");
    assert!(next >= begun);
    assert_eq!(guarded.read(), Read::Waits);
    guarded.arrives(" / ");
    assert_eq!(guarded.read(), Read::Waits);
    assert_eq!(
        guarded.state.heads.partial_since.get(),
        Some(next),
        "a head is not given more time"
    );
}

#[test]
fn a_complete_but_unread_request_is_not_treated_as_incomplete() {
    let mut pipelined = Guarded::new();
    pipelined.arrives("GET");
    assert_eq!(pipelined.read(), Read::Waits);
    pipelined.arrives(&format!("{}{GET}", &GET[3..]));
    let mut declined = Guarded::new();
    declined.arrives(&format!("{UPGRADE}{GET}"));
    assert_eq!(declined.read(), bytes(UPGRADE));
    assert_eq!(declined.read(), Read::Waits);
    declined.state.upgrade.decline(0);
    for (mut guarded, requests) in [(pipelined, 2), (declined, 1)] {
        for _ in 0..requests {
            assert_eq!(guarded.read(), bytes(GET));
            assert_eq!(guarded.state.heads.partial_since.get(), None);
        }
        assert_eq!(guarded.read(), Read::Waits);
        assert_eq!(
            guarded.state.heads.partial_since.get(),
            None,
            "the connection is idle"
        );
    }
}

#[test]
fn bodies_are_not_held_back_and_not_treated_as_heads() {
    let mut guarded = Guarded::new();
    guarded.arrives("POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nab");
    assert_eq!(
        guarded.read(),
        bytes("POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nab")
    );
    guarded.arrives("c");
    assert_eq!(guarded.read(), bytes("c"));
    assert_eq!(guarded.state.heads.partial_since.get(), None);
    guarded.arrives("defGET");
    assert_eq!(guarded.read(), bytes("def"));
    assert!(guarded.state.heads.partial_since.get().is_some());
}

#[test]
fn reading_is_progress() {
    let mut guarded = Guarded::new();
    let long_ago = Instant::now() - Duration::from_secs(60);
    for (text, passes) in [
        (GET, true),
        ("GET /", false),
        (" HTTP/1.1\r\nHost: a\r\n\r\n", true),
    ] {
        guarded.state.activity.last_progress.set(long_ago);
        guarded.arrives(text);
        assert_eq!(guarded.read() != Read::Waits, passes, "{text:?}");
        assert_eq!(
            guarded.state.activity.last_progress.get() > long_ago,
            passes,
            "{text:?}"
        );
    }
}

#[test]
fn a_full_buffer_is_not_end_of_stream() {
    let mut guarded = Guarded::new();
    guarded.arrives(GET);
    guarded.ends(Ok(()));
    assert_eq!(
        guarded.read_into(0, Waker::noop()),
        Read::Eof,
        "that is: no bytes"
    );
    assert_eq!(guarded.read(), bytes(GET));
    assert_eq!(guarded.read(), Read::Eof);
}

#[test]
fn end_of_stream_follows_all_passable_bytes_and_repeats() {
    let mut guarded = Guarded::new();
    guarded.arrives(&format!("{GET}GET"));
    guarded.ends(Ok(()));
    assert_eq!(guarded.read(), bytes(GET));
    assert_eq!(guarded.read(), Read::Eof, "half a head is not a request");
    guarded.arrives(GET);
    assert_eq!(guarded.read(), Read::Eof);

    let mut guarded = Guarded::new();
    guarded.ends(Err(io::ErrorKind::ConnectionReset.into()));
    assert!(matches!(
        guarded.read(),
        Read::Fault(io::ErrorKind::ConnectionReset, _)
    ));
}

#[test]
fn a_refused_head_is_replaced_and_nothing_follows_it() {
    let bad = format!("x HTTP/1.1\n{GET}");
    for parts in [
        vec![format!("{GET}GET /{bad}")],
        vec![GET.into(), format!("GET /{bad}")],
        vec![format!("{GET}GET /"), bad],
    ] {
        let mut guarded = Guarded::new();
        let mut reads = Vec::new();
        for part in parts {
            guarded.arrives(&part);
            while let Read::Bytes(read) = guarded.read() {
                reads.push(read);
            }
        }
        assert_eq!(reads, [GET, REFUSED]);
        guarded.arrives(GET);
        guarded.ends(Ok(()));
        assert_eq!(guarded.read(), Read::Waits, "the answer ends the connection");
        let refusal = HttpRefusal::bad_request("bare LF in the request head");
        assert_eq!(guarded.state.heads.next_request(), Ok(0));
        assert_eq!(guarded.state.heads.next_request(), Err(refusal));
    }
}

#[test]
fn a_refused_head_is_replaced_completely_even_in_small_buffers() {
    let mut guarded = Guarded::new();
    guarded.arrives("GET\n");
    let mut read = String::new();
    while let Read::Bytes(part) = guarded.read_into(7, Waker::noop()) {
        assert!(part.len() <= 7);
        read.push_str(&part);
    }
    assert_eq!(read, REFUSED);
}

#[test]
fn a_head_that_takes_too_long_is_refused_once() {
    let refusal = HttpRefusal::bad_request("too late");
    let mut guarded = Guarded::new();
    guarded.arrives("GET / HT");
    assert_eq!(guarded.read(), Read::Waits);
    guarded.state.heads.refuse_partial.set(Some(refusal));
    assert_eq!(guarded.read(), bytes(REFUSED));
    assert_eq!(guarded.state.heads.refuse_partial.get(), None);
    assert_eq!(guarded.read(), Read::Waits);
    assert_eq!(guarded.state.heads.next_request(), Err(refusal));
}

#[test]
fn a_fault_in_a_body_is_an_error_after_its_good_bytes() {
    let good = format!("{CHUNKED}3\r\nabc");
    for parts in [
        vec![format!("{good}x{GET}")],
        vec![good.clone(), format!("x{GET}")],
    ] {
        let mut guarded = Guarded::new();
        guarded.arrives(&parts[0]);
        assert_eq!(guarded.read(), bytes(&good));
        if let Some(rest) = parts.get(1) {
            guarded.arrives(rest);
        }
        let fault = Read::Fault(
            io::ErrorKind::InvalidData,
            "missing line end after a chunk".into(),
        );
        assert_eq!(guarded.read(), fault);
        guarded.arrives(GET);
        assert_eq!(guarded.read(), fault, "there is no way on");
        assert_eq!(
            guarded.state.heads.next_request(),
            Ok(0),
            "the request itself is not refused"
        );
    }
}

#[test]
fn a_fault_in_a_body_that_was_held_back_is_an_error_too() {
    let mut guarded = Guarded::new();
    guarded.arrives("POST");
    assert_eq!(guarded.read(), Read::Waits);
    guarded.arrives(&format!("{}x{GET}", &CHUNKED[4..]));
    assert_eq!(guarded.read(), bytes(CHUNKED));
    let fault = Read::Fault(io::ErrorKind::InvalidData, "a chunk size is malformed".into());
    assert_eq!(guarded.read(), fault);
    assert_eq!(guarded.read(), fault);
}

#[test]
fn bytes_after_an_upgrade_are_held_until_it_is_declined() {
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut guarded = Guarded::new();
    guarded.arrives(&format!("{UPGRADE}{GET}"));
    assert_eq!(guarded.read(), bytes(UPGRADE));
    assert!(guarded.state.upgrade.is_awaited_by(0));
    assert_eq!(guarded.read_into(1000, &waker), Read::Waits);
    guarded.arrives(&format!("{GET}GET"));
    assert_eq!(guarded.read_into(1000, &waker), Read::Waits);
    assert_eq!(
        guarded.state.heads.partial_since.get(),
        None,
        "the bytes may not be a head at all"
    );
    assert_eq!(wakes.0.load(Ordering::Relaxed), 0);

    guarded.state.upgrade.decline(1);
    assert!(
        guarded.state.upgrade.is_awaited_by(0),
        "another request decides nothing"
    );
    guarded.state.upgrade.decline(0);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    assert_eq!(guarded.read(), bytes(GET));
    assert_eq!(guarded.read(), bytes(GET));
    assert!(
        guarded.state.heads.partial_since.get().is_some(),
        "the rest is a head"
    );
    assert_eq!(guarded.read(), Read::Waits);
    guarded.arrives(" / HTTP/1.1\r\nHost: b\r\n\r\n");
    assert_eq!(guarded.read(), bytes("GET / HTTP/1.1\r\nHost: b\r\n\r\n"));
}

#[test]
fn a_head_begun_during_an_undecided_upgrade_is_timed_from_the_decision() {
    let mut guarded = Guarded::new();
    guarded.arrives(&format!("{UPGRADE}GET"));
    assert_eq!(guarded.read(), bytes(UPGRADE));
    assert_eq!(guarded.read(), Read::Waits);
    assert_eq!(guarded.state.heads.partial_since.get(), None);
    guarded.state.upgrade.decline(0);
    assert_eq!(guarded.read(), Read::Waits);
    assert!(guarded.state.heads.partial_since.get().is_some());
}

#[test]
fn bytes_after_a_declined_upgrade_are_checked() {
    let mut guarded = Guarded::new();
    guarded.arrives(UPGRADE);
    assert_eq!(guarded.read(), bytes(UPGRADE));
    guarded.arrives("\x01\x02");
    assert_eq!(guarded.read(), Read::Waits);
    guarded.state.upgrade.decline(0);
    assert_eq!(guarded.read(), bytes(REFUSED));
    assert_eq!(guarded.state.heads.next_request(), Ok(0));
    assert_eq!(
        guarded.state.heads.next_request(),
        Err(HttpRefusal::bad_request("control character in the request head"))
    );
}

#[test]
fn bytes_after_an_accepted_upgrade_pass_unchanged() {
    let mut guarded = Guarded::new();
    guarded.arrives(&format!("{UPGRADE}\x01"));
    assert_eq!(guarded.read(), bytes(UPGRADE));
    guarded.arrives("\x02\n");
    assert_eq!(guarded.read(), Read::Waits);
    let (io, held) = guarded.guard.into_parts();
    assert_eq!(held, "\x01\x02\n");
    assert!(io.io.0.borrow().arriving.is_empty());
}

#[test]
fn bytes_held_during_an_undecided_upgrade_are_limited() {
    let mut guarded = Guarded::new();
    guarded.arrives(UPGRADE);
    assert_eq!(guarded.read(), bytes(UPGRADE));
    guarded.arrives(&"x".repeat(MAX_UNDECIDED - 1));
    assert_eq!(guarded.read(), Read::Waits);
    guarded.arrives("xyz");
    assert_eq!(guarded.read_into(1, Waker::noop()), Read::Waits);
    assert_eq!(guarded.wire.0.borrow().arriving, b"yz", "one was still read");
    assert_eq!(guarded.read(), Read::Waits);
    assert_eq!(guarded.wire.0.borrow().arriving, b"yz", "and no more");
}
