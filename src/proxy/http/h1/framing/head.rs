//! Finds the end of a request head and checks it (RFC 9112 sections 2 to 6).

use http::StatusCode;

use crate::proxy::http::refusal::HttpRefusal;

/// Maximum length of a request line, in bytes.
pub(crate) const MAX_REQUEST_LINE: usize = 8 << 10;
/// Maximum length of a request head, in bytes.
pub(crate) const MAX_HEAD: usize = 64 << 10;
/// Maximum number of header fields in a request.
pub(crate) const MAX_FIELDS: usize = 100;

/// How a request's body is framed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum BodyFraming {
    /// No body.
    None,
    /// `Content-Length`, in bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// Framing information of a checked head.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Head {
    pub(super) body: BodyFraming,
    /// Whether it requests a protocol upgrade (RFC 9110 section 7.8).
    pub(super) upgrade: bool,
}

/// State of the search for the end of a head. Offsets are relative to the first byte of the head.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    scanned: usize,
    line_start: usize,
    /// Lines with content that have ended: the request line and the fields.
    lines: usize,
    /// Empty lines before the request line.
    leading: usize,
    after_cr: bool,
}

impl HeadScan {
    /// Returns the length of the head including the empty line; None while `input` is incomplete.
    pub(super) fn find_end(&mut self, input: &[u8]) -> Result<Option<usize>, HttpRefusal> {
        loop {
            // Bytes from the space upwards are judged later: only control characters have a meaning here.
            let plain = match input.get(self.scanned) {
                Some(_) if self.after_cr => 0,
                _ => input
                    .get(self.scanned..)
                    .unwrap_or_default()
                    .iter()
                    .position(|byte| *byte < b' ')
                    .unwrap_or(input.len() - self.scanned),
            };
            let at = self.scanned + plain;
            let line = at - self.line_start - usize::from(self.after_cr);
            if self.lines == 0 && line > MAX_REQUEST_LINE {
                return Err(HttpRefusal {
                    status: StatusCode::URI_TOO_LONG,
                    reason: "the request line is too long",
                });
            }
            if at >= MAX_HEAD {
                return Err(too_large());
            }
            self.scanned = at;
            let Some(byte) = input.get(at) else {
                return Ok(None);
            };
            self.scanned += 1;
            match (byte, self.after_cr) {
                (b'\n', true) => {
                    self.after_cr = false;
                    let empty = at - 1 == self.line_start;
                    self.line_start = self.scanned;
                    match (empty, self.lines) {
                        // Old clients send one more line end after a body (RFC 9112 section 2.2).
                        (true, 0) if self.leading == 0 => self.leading = 1,
                        (true, 0) => return Err(HttpRefusal::bad_request("the request line is empty")),
                        (true, _) => return Ok(Some(self.scanned)),
                        (false, lines) if lines > MAX_FIELDS => return Err(too_large()),
                        (false, _) => self.lines += 1,
                    }
                }
                (_, true) => return Err(HttpRefusal::bad_request("bare CR in the request head")),
                (b'\r', false) => self.after_cr = true,
                (b'\t', false) => {}
                (b'\n', false) => return Err(HttpRefusal::bad_request("bare LF in the request head")),
                (_, false) => return Err(HttpRefusal::bad_request("control character in the request head")),
            }
        }
    }
}

/// Checks a complete head. Fails with the refusal to answer with.
pub(super) fn check(head: &[u8]) -> Result<Head, HttpRefusal> {
    let mut lines = Lines(head.strip_prefix(b"\r\n").unwrap_or(head));
    let http11 = check_request_line(lines.next().unwrap_or_default())?;

    let mut length: Option<u64> = None;
    let mut chunked = false;
    let (mut upgrade, mut connection_upgrade) = (false, false);
    for line in lines {
        let (name, value) = split_field(line)?;
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let value = parse_length(value)?;
                if length.is_some_and(|length| length != value) {
                    return Err(HttpRefusal::bad_request(
                        "conflicting Content-Length header fields",
                    ));
                }
                length = Some(value);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HttpRefusal::bad_request(
                        "only Transfer-Encoding: chunked is supported",
                    ));
                }
                chunked = true;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => upgrade = true,
            10 if name.eq_ignore_ascii_case(b"connection") => {
                connection_upgrade |= value
                    .split(|byte| *byte == b',')
                    .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
            }
            _ => {}
        }
    }
    let body = match (chunked, length) {
        (true, Some(_)) => {
            return Err(HttpRefusal::bad_request(
                "both Content-Length and Transfer-Encoding are present",
            ));
        }
        (true, None) if !http11 => {
            return Err(HttpRefusal::bad_request(
                "Transfer-Encoding is not allowed in HTTP/1.0",
            ));
        }
        (true, None) => BodyFraming::Chunked,
        (false, Some(length)) => BodyFraming::Length(length),
        (false, None) => BodyFraming::None,
    };
    Ok(Head {
        body,
        upgrade: http11 && upgrade && connection_upgrade,
    })
}

/// A field line's name and its value without the whitespace around it.
pub(super) fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), HttpRefusal> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(HttpRefusal::bad_request("a header line begins with whitespace"));
    }
    let mut parts = line.splitn(2, |byte| *byte == b':');
    let (Some(name), Some(value)) = (parts.next(), parts.next()) else {
        return Err(HttpRefusal::bad_request("a header line has no colon"));
    };
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(HttpRefusal::bad_request("a header name is malformed"));
    }
    Ok((name, value.trim_ascii()))
}

/// Whether a byte is allowed in a token (RFC 9110 section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Checks the request line and tells whether it says HTTP/1.1.
fn check_request_line(line: &[u8]) -> Result<bool, HttpRefusal> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(HttpRefusal::bad_request("the request line is malformed"));
    };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err(HttpRefusal::bad_request("the method is malformed"));
    }
    let http11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(HttpRefusal {
                status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                reason: "only HTTP/1.0 and HTTP/1.1 are supported",
            });
        }
        _ => return Err(HttpRefusal::bad_request("the HTTP version is malformed")),
    };
    if method == b"CONNECT" {
        return Err(HttpRefusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            reason: "CONNECT is not supported",
        });
    }
    let origin_or_absolute = target.starts_with(b"/")
        || starts_with_ignoring_case(target, b"http://")
        || starts_with_ignoring_case(target, b"https://");
    if !origin_or_absolute || target.iter().any(|byte| matches!(byte, b'\t' | b'#' | 0x7f)) {
        return Err(HttpRefusal::bad_request("the request target is malformed"));
    }
    Ok(http11)
}

fn parse_length(value: &[u8]) -> Result<u64, HttpRefusal> {
    // Nineteen digits always fit; no real body has more.
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(HttpRefusal::bad_request("Content-Length is not a number"));
    }
    Ok(value
        .iter()
        .fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

fn starts_with_ignoring_case(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn too_large() -> HttpRefusal {
    HttpRefusal {
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        reason: "the request's header fields are too large",
    }
}

/// The lines of a head whose line ends [`HeadScan`] has checked, up to the empty one.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == b'\r')?;
        let line = self.0.get(..end)?;
        self.0 = self.0.get(end + 2..).unwrap_or_default();
        (!line.is_empty()).then_some(line)
    }
}
