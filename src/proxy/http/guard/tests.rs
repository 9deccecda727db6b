//! What hyper gets to read never depends on how the bytes arrive or on how much room it has for them.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::proxy::http::Client;
use crate::proxy::http::framing::{Framing, Step};

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

proptest! {
    #[test]
    fn arrival_and_room_change_nothing(
        requests in prop::collection::vec(piece(), 0..6),
        cuts in prop::collection::vec(any::<usize>(), 0..20),
        room in 1usize..200,
    ) {
        let input = requests.concat();
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
        ends.push(input.len());
        ends.sort_unstable();
        let mut start = 0;
        let pieces: Vec<Vec<u8>> = ends
            .iter()
            .map(|end| input[std::mem::replace(&mut start, *end)..*end].to_vec())
            .collect();
        prop_assert_eq!(read_all(&pieces, room), expected(&input));
    }
}
