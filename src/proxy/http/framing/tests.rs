//! Verdicts over raw bytes, and that they never depend on how the bytes are split.

use proptest::prelude::*;

use super::*;

/// What passes of `input` when it arrives in pieces that end at `cuts`, and the verdict on the rest.
fn judge(input: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<Refusal>) {
    let mut framing = Framing::default();
    let (mut passed, mut held) = (Vec::new(), Vec::new());
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
    ends.push(input.len());
    ends.sort_unstable();
    let mut start = 0;
    for end in ends {
        held.extend_from_slice(&input[start..end]);
        start = end;
        while !held.is_empty() {
            match framing.advance(&held) {
                Ok(Step::Pass(length)) => passed.extend(held.drain(..length)),
                Ok(Step::Wait) => break,
                Err(refusal) => return (passed, Some(refusal)),
            }
        }
    }
    (passed, None)
}

/// Whether a request and the one after it pass whole.
fn passes(head: &str, body: &str) {
    let input = format!("{head}\r\n\r\n{body}GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    let (passed, refusal) = judge(input.as_bytes(), &[]);
    assert_eq!(refusal, None, "{head:?} {body:?}");
    assert_eq!(passed, input.as_bytes(), "{head:?} {body:?}");
}

/// Whether nothing of a request passes, with this status.
fn refused(input: impl AsRef<[u8]>, status: u16) {
    let input = input.as_ref();
    let text = String::from_utf8_lossy(&input[..input.len().min(120)]).into_owned();
    let (passed, refusal) = judge(input, &[]);
    assert_eq!(
        refusal.map(|refusal| refusal.status.as_u16()),
        Some(status),
        "{text:?}"
    );
    assert!(passed.is_empty(), "{text:?}");
}

#[test]
fn good_requests_pass_whole() {
    passes("GET / HTTP/1.1\r\nHost: a", "");
    passes("\r\nGET / HTTP/1.1\r\nHost: a", "");
    passes("GET HTTP://a/b?c=d HTTP/1.1\r\nHost:a", "");
    passes(
        "GET / HTTP/1.0\r\nX-Tab:\ta\tb \r\nX-Empty:\r\nX-Latin: \u{e9}",
        "",
    );
    passes("POST / HTTP/1.1\r\nContent-Length: 6", "\r\n\r\nx\0");
    passes("POST / HTTP/1.1\r\nContent-Length: 2\r\ncontent-length: 2", "ab");
    passes("POST / HTTP/1.1\r\nContent-Length: 0", "");
    passes(
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked",
        "3\r\nabc\r\n0\r\n\r\n",
    );
    passes(
        "POST / HTTP/1.1\r\nTransfer-Encoding:\tchunked ",
        "0000000000000001;a=b;c\r\na\r\n0\r\n\r\n",
    );
    passes(
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked",
        "A;x=\"y\"\r\n0123456789\r\n000\r\nX-Trailer: 1\r\nY:\r\n\r\n",
    );
}

#[test]
fn two_framings_or_an_unclear_one_are_refused() {
    for fields in [
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 1",
        "Content-Length: 1\r\nContent-Length: 2",
        "Content-Length: +1",
        "Content-Length: -1",
        "Content-Length: 1 1",
        "Content-Length: 1, 1",
        "Content-Length: 1,",
        "Content-Length:",
        "Content-Length: 0x1",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding:",
    ] {
        refused(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"), 400);
    }
    refused(
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    );
}

#[test]
fn lines_with_more_than_one_reading_are_refused() {
    for head in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\rX: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\x0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n b: c\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\tHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\n: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost\r\n\r\n",
        "GET / HTTP/1.1\r\nX(y): a\r\n\r\n",
        "GET / HTTP/1.1\r\nX\u{e9}: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET /\tHTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET x HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.10\r\nHost: a\r\n\r\n",
        "GET /\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00",
    ] {
        refused(head, 400);
    }
    refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505);
    refused("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405);
}

#[test]
fn limits_hold_to_the_byte() {
    let line = |length: usize| {
        let target = "/".repeat(length - "GET  HTTP/1.1".len());
        format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
    };
    assert_eq!(judge(line(MAX_REQUEST_LINE).as_bytes(), &[]).1, None);
    refused(line(MAX_REQUEST_LINE + 1), 414);
    refused("G".repeat(MAX_REQUEST_LINE + 1), 414);

    let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert_eq!(judge(fields(MAX_FIELDS).as_bytes(), &[]).1, None);
    refused(fields(MAX_FIELDS + 1), 431);

    let head = |length: usize| {
        let value = "x".repeat(length - "GET / HTTP/1.1\r\na: \r\n\r\n".len());
        format!("GET / HTTP/1.1\r\na: {value}\r\n\r\n")
    };
    assert_eq!(judge(head(MAX_HEAD).as_bytes(), &[]).1, None);
    refused(head(MAX_HEAD + 1), 431);
    refused(format!("GET / HTTP/1.1\r\na: {}", "x".repeat(MAX_HEAD)), 431);
}

#[test]
fn malformed_chunks_are_refused_where_they_are() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (good, bad) in [
        ("", "\r\n"),
        ("", "g\r\n"),
        ("", " 1\r\n"),
        ("", "+1\r\n"),
        ("1", " \r\na\r\n"),
        ("0", "x1\r\n"),
        ("1", "_0\r\n"),
        ("1", "\na\r\n"),
        ("1\r", "a\r\n"),
        ("0000000000000000", "1\r\n"),
        ("1;a", "\n"),
        ("1;a", "\0"),
        ("1\r\na", "b\r\n"),
        ("1\r\na", "\n"),
        ("1\r\na\r", "\r"),
        ("0\r\n", " x: y\r\n"),
        ("0\r\n", ": y\r\n"),
        ("0\r\nx", " : y\r\n"),
        ("0\r\nx", "\r\n"),
        ("0\r\nx: y", "\n"),
        ("0\r\nx: y\r\n", " folded\r\n"),
        ("0\r\n\r", "x"),
    ] {
        let input = format!("{head}{good}{bad}");
        let (passed, refusal) = judge(input.as_bytes(), &[]);
        assert_eq!(
            refusal.map(|refusal| refusal.status.as_u16()),
            Some(400),
            "{good:?} {bad:?}"
        );
        assert_eq!(passed, format!("{head}{good}").into_bytes(), "{good:?} {bad:?}");
    }
}

#[test]
fn what_surrounds_chunks_is_bounded() {
    let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let verdict = |body: String| judge(format!("{head}{body}").as_bytes(), &[]).1;
    assert_eq!(verdict(format!("1;{}\r\n", "x".repeat(4096))), None);
    assert!(verdict(format!("1;{}\r\n", "x".repeat(4097))).is_some());
    assert!(verdict("1;0123456789abcdef\r\na\r\n".repeat(300)).is_some());
    assert!(verdict(format!("0\r\nx: {}", "y".repeat(8192))).is_some());
    assert!(verdict(format!("0\r\n{}", "x:\r\n".repeat(MAX_FIELDS + 1))).is_some());
}

#[test]
fn nothing_passes_until_an_upgrade_is_decided() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut framing = Framing::default();
    assert_eq!(framing.advance(head), Ok(Step::Pass(head.len())));
    assert!(framing.awaits_upgrade());
    assert_eq!(framing.advance(b"\x81\x00"), Ok(Step::Wait));
    framing.upgrade_declined();
    assert!(framing.advance(b"\x81\x00").is_err());

    for other in [
        "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: upgrade\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\n",
    ] {
        let mut framing = Framing::default();
        assert_eq!(framing.advance(other.as_bytes()), Ok(Step::Pass(other.len())));
        assert!(!framing.awaits_upgrade(), "{other:?}");
    }
}

/// Pieces from which streams are made that are often, but not always, good.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => Just(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        2 => Just(b"POST / HTTP/1.1\r\nContent-Length: 7\r\n\r\n1234567".to_vec()),
        2 => Just(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()),
        2 => Just(b"5;x=y\r\nabcde\r\n".to_vec()),
        2 => Just(b"0\r\nx: y\r\n\r\n".to_vec()),
        1 => Just(b"\r\n".to_vec()),
        1 => Just(b"a: b\r\n".to_vec()),
        1 => (0usize..9000).prop_map(|length| vec![b'x'; length]),
        1 => (0usize..110).prop_map(|count| b"a: b\r\n".repeat(count)),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #[test]
    fn splits_change_nothing(
        pieces in prop::collection::vec(piece(), 0..8),
        cuts in prop::collection::vec(any::<usize>(), 0..30),
    ) {
        let input = pieces.concat();
        let whole = judge(&input, &[]);
        prop_assert_eq!(&judge(&input, &cuts), &whole);
        prop_assert!(input.starts_with(&whole.0));
    }

    #[test]
    fn single_bytes_change_nothing(pieces in prop::collection::vec(piece(), 0..3)) {
        let input = pieces.concat();
        let cuts: Vec<usize> = (0..input.len()).collect();
        prop_assert_eq!(judge(&input, &cuts), judge(&input, &[]));
    }
}
