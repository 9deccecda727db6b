//! Replies: whatever comes is the same, cut into pieces, as at once; and what was understood is written the same again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tlsfarm::resp::{Protocol, ProtocolError, Reply, ReplyDecoder};

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (cut, bytes) = input;
    let whole = decode(bytes.chunks(bytes.len().max(1)));
    assert_eq!(whole, decode(bytes.chunks(usize::from(cut).max(1))));
    let mut written = Vec::new();
    for reply in &whole.0 {
        reply.encode(Protocol::Resp3, &mut written);
    }
    assert_eq!(decode([written.as_slice()].into_iter()), (whole.0, None));
});

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Reply>, Option<ProtocolError>) {
    let mut decoder = ReplyDecoder::default();
    let mut replies = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.decode() {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => break,
                Err(error) => return (replies, Some(error)),
            }
        }
    }
    (replies, None)
}
