//! Requests that are refused, at least one for each reason.

use http::StatusCode;

use crate::proxy::http::h1::framing::head::{MAX_FIELDS, MAX_HEAD, MAX_REQUEST_LINE};
use crate::proxy::http::refusal::HttpRefusal;

/// A request that is refused: what of it passes, how it goes on, and the verdict.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) passed: Vec<u8>,
    pub(super) rest: Vec<u8>,
    pub(super) refusal: HttpRefusal,
}

/// One request for each fault. The first byte of a faulty body's rest is the faulty one.
pub(super) fn refused_requests() -> Vec<Refused> {
    let mut requests = Vec::new();
    for (reason, heads) in MALFORMED_HEADS {
        for head in *heads {
            requests.push(refused_head(head, 400, reason));
        }
    }
    for (reason, fields) in UNCLEAR_FRAMINGS {
        for fields in *fields {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
            requests.push(refused_head(&head, 400, reason));
        }
    }
    requests.push(refused_head(
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "Transfer-Encoding is not allowed in HTTP/1.0",
    ));
    for (status, reason, head) in [
        (
            505,
            "only HTTP/1.0 and HTTP/1.1 are supported",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ),
        (
            505,
            "only HTTP/1.0 and HTTP/1.1 are supported",
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        ),
        (
            405,
            "CONNECT is not supported",
            "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        ),
        (414, LONG_LINE, &request_line_of(MAX_REQUEST_LINE + 1)),
        (
            414,
            LONG_LINE,
            &format!("\r\n{}", request_line_of(MAX_REQUEST_LINE + 1)),
        ),
        (414, LONG_LINE, &"G".repeat(MAX_REQUEST_LINE + 1)),
        (431, LARGE_HEAD, &fields_of(MAX_FIELDS + 1)),
        (431, LARGE_HEAD, &head_of(MAX_HEAD + 1)),
        (
            431,
            LARGE_HEAD,
            &format!("GET / HTTP/1.1\r\na: {}", "x".repeat(MAX_HEAD)),
        ),
    ] {
        requests.push(refused_head(head, status, reason));
    }
    for (reason, bodies) in MALFORMED_CHUNKS {
        for (passed, rest) in *bodies {
            requests.push(refused_chunk(passed, rest, reason));
        }
    }
    let extension = format!("1;{}", "x".repeat(4096));
    let extensions = "1;0123456789abcdef\r\na\r\n".repeat(4096 / 16) + "1;";
    for passed in [extension, extensions] {
        requests.push(refused_chunk(&passed, "x", "the chunk extensions are too large"));
    }
    let trailer = format!("0\r\nx:{}", "y".repeat(8190));
    let trailers = format!("0\r\n{}xx", format!("x:{}\r\n", "y".repeat(88)).repeat(91));
    for passed in [trailer, trailers] {
        requests.push(refused_chunk(&passed, "y", "the trailer fields are too large"));
    }
    requests.push(refused_chunk(
        &format!("0\r\n{}", "x:\r\n".repeat(MAX_FIELDS)),
        "x",
        "too many trailer fields",
    ));
    requests
}

fn refused_head(head: &str, status: u16, reason: &'static str) -> Refused {
    Refused {
        passed: Vec::new(),
        rest: head.into(),
        refusal: HttpRefusal {
            status: StatusCode::from_u16(status).expect("valid"),
            reason,
        },
    }
}

fn refused_chunk(passed: &str, rest: &str, reason: &'static str) -> Refused {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    Refused {
        passed: format!("{head}{passed}").into(),
        rest: rest.into(),
        refusal: HttpRefusal::bad_request(reason),
    }
}

/// A request whose request line has this length.
pub(super) fn request_line_of(length: usize) -> String {
    let target = "/".repeat(length - "GET  HTTP/1.1".len());
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// A request with this many header fields.
pub(super) fn fields_of(count: usize) -> String {
    format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count))
}

/// A request whose head has this length.
pub(super) fn head_of(length: usize) -> String {
    let value = "x".repeat(length - "GET / HTTP/1.1\r\na: \r\n\r\n".len());
    format!("GET / HTTP/1.1\r\na: {value}\r\n\r\n")
}

const LONG_LINE: &str = "the request line is too long";
const LARGE_HEAD: &str = "the request's header fields are too large";

const MALFORMED_HEADS: &[(&str, &[&str])] = &[
    (
        "bare LF in the request head",
        &[
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    ),
    (
        "bare CR in the request head",
        &[
            "GET / HTTP/1.1\r\nHost: a\r\rX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\rX: b\n\r\n",
            "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    ),
    (
        "control character in the request head",
        &[
            "GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\x0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\x1f\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00",
        ],
    ),
    (
        "a header line begins with whitespace",
        &[
            "GET / HTTP/1.1\r\nHost: a\r\n b: c\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\tHost: a\r\n\r\n",
        ],
    ),
    (
        "a header name is malformed",
        &[
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\n: a\r\n\r\n",
            "GET / HTTP/1.1\r\nX(y): a\r\n\r\n",
            "GET / HTTP/1.1\r\nX\x7f: a\r\n\r\n",
            "GET / HTTP/1.1\r\nX\u{e9}: a\r\n\r\n",
        ],
    ),
    ("a header line has no colon", &["GET / HTTP/1.1\r\nHost\r\n\r\n"]),
    (
        "the request line is malformed",
        &[
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET /\tHTTP/1.1\r\nHost: a\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\r\n\r\n",
        ],
    ),
    (
        "the request line is empty",
        &["\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"],
    ),
    (
        "the method is malformed",
        &[
            "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
            " / HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    ),
    (
        "the HTTP version is malformed",
        &[
            "GET / http/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.10\r\nHost: a\r\n\r\n",
            "GET / HTTP/x.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.x\r\nHost: a\r\n\r\n",
            "GET / \r\nHost: a\r\n\r\n",
        ],
    ),
    (
        "the request target is malformed",
        &[
            "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a\x7fb HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    ),
];

const UNCLEAR_FRAMINGS: &[(&str, &[&str])] = &[
    (
        "both Content-Length and Transfer-Encoding are present",
        &[
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 0",
        ],
    ),
    (
        "conflicting Content-Length header fields",
        &["Content-Length: 1\r\nContent-Length: 2"],
    ),
    (
        "Content-Length is not a number",
        &[
            "Content-Length: +1",
            "Content-Length: -1",
            "Content-Length: 1 1",
            "Content-Length: 1, 1",
            "Content-Length: 1,",
            "Content-Length:",
            "Content-Length: 0x1",
            "Content-Length: 00000000000000000001",
            "Content-Length: 99999999999999999999",
        ],
    ),
    (
        "only Transfer-Encoding: chunked is supported",
        &[
            "Transfer-Encoding: gzip",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding:",
        ],
    ),
];

const MALFORMED_CHUNKS: &[(&str, &[(&str, &str)])] = &[
    (
        "a chunk size is malformed",
        &[
            ("", "\r\n"),
            ("", ";a\r\n"),
            ("", "g\r\n"),
            ("", " 1\r\n"),
            ("", "+1\r\n"),
            ("1", " \r\na\r\n"),
            ("0", "x1\r\n"),
            ("1", "_0\r\n"),
            ("1", "\na\r\n"),
        ],
    ),
    (
        "a chunk size has too many digits",
        &[("0000000000000000", "1\r\n"), ("ffffffffffffffff", "f\r\n")],
    ),
    (
        "control character in a chunk extension",
        &[("1;a", "\n"), ("1;a", "\0"), ("1;a\t", "\x1f")],
    ),
    (
        "missing line end after a chunk",
        &[
            ("1\r", "a\r\n"),
            ("1;a\r", "a\r\n"),
            ("1\r\na", "b\r\n"),
            ("1\r\na", "\n"),
            ("1\r\na\r", "\r"),
            ("0\r\nx: y\r", "x"),
            ("0\r\n\r", "x"),
        ],
    ),
    (
        "a trailer field is malformed",
        &[
            ("0\r\n", " x: y\r\n"),
            ("0\r\n", ": y\r\n"),
            ("0\r\nx", " : y\r\n"),
            ("0\r\nx", "\r\n"),
            ("0\r\nx: y\r\n", " folded\r\n"),
        ],
    ),
    (
        "control character in a trailer field",
        &[("0\r\nx: y", "\n"), ("0\r\nx:", "\0"), ("0\r\nx:\t", "\x1f")],
    ),
];
