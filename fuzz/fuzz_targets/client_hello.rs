//! ClientHellos: whatever comes is the same, cut into pieces, as at once; rustls reads the same server name; and there is
//! an answer to what cannot be read.
//!
//! The first byte of the input says how long the pieces are, the rest is what comes off the wire.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;
use tlsfarm::proxy::tls::client_hello::{ClientHelloReader, Progress, refusal};

/// Most bytes that are read of a ClientHello. More can exceed the limit in one cut and be whole in another.
const LIMIT: usize = 64 * 1024;

fuzz_target!(|input: &[u8]| {
    let Some((cut, wire)) = input.split_first() else {
        return;
    };
    let whole = read(wire.chunks(wire.len().max(1)));
    let in_pieces = read(wire.chunks(usize::from(*cut).max(1)));
    if wire.len() < LIMIT {
        assert_eq!(whole, in_pieces);
    } else {
        assert!(whole != Progress::Incomplete && in_pieces != Progress::Incomplete);
    }
    match whole {
        Progress::Incomplete => {}
        Progress::Complete(hello) => {
            if let Some(theirs) = name_by_rustls(wire) {
                assert_eq!(theirs, hello.server_name);
            }
        }
        Progress::Unreadable => assert!(!refusal(wire).is_empty()),
    }
});

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Progress {
    let mut reader = ClientHelloReader::default();
    for piece in pieces {
        match reader.feed(piece) {
            Progress::Incomplete => {}
            end => return end,
        }
    }
    Progress::Incomplete
}

/// The name that rustls finds, in the form that ours has; None where rustls refuses the whole.
fn name_by_rustls(wire: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    let mut rest = wire;
    while acceptor.read_tls(&mut rest).ok()? > 0 {
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            let name = hello.server_name();
            return Some(name.map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()));
        }
    }
    None
}
