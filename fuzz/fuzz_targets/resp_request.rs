//! Requests: whatever comes, whole or in pieces, ends in requests, an error, or a wait for more.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tlsfarm::resp::{LONGEST_REQUEST, RequestDecoder, encode_request};

fuzz_target!(|input: &[u8]| {
    let mut decoder = RequestDecoder::default();
    let mut rest = input;
    while let Ok(Some((request, length))) = decoder.decode(rest) {
        assert!((1..=rest.len()).contains(&length));
        let arguments: Vec<&[u8]> = (0..request.len())
            .filter_map(|index| request.get(index))
            .collect();
        assert_eq!(arguments.len(), request.len());
        if !arguments.is_empty() {
            same_again(&arguments);
        }
        // What is there in part only is never taken for the whole.
        let mut early = RequestDecoder::default();
        assert!(matches!(early.decode(&rest[..length - 1]), Ok(None)));
        rest = &rest[length..];
    }
    if let Ok(None) = decoder.decode(rest) {
        assert!(rest.len() < LONGEST_REQUEST);
    }
});

fn same_again(arguments: &[&[u8]]) {
    let mut bytes = Vec::new();
    encode_request(arguments, &mut bytes);
    let mut decoder = RequestDecoder::default();
    let decoded = decoder.decode(&bytes).expect("well formed");
    let (request, length) = decoded.expect("whole");
    assert_eq!(length, bytes.len());
    assert!((0..request.len()).all(|index| request.get(index) == arguments.get(index).copied()));
    assert_eq!(request.len(), arguments.len());
}
