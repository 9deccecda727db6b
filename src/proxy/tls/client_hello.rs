//! Parses the ClientHello before rustls: the TLS configuration depends on the host, and so on the server name, and
//! rustls needs the configuration first.
//!
//! The reader keeps every byte, so that rustls later processes exactly what the client sent. It is incremental, bounded
//! and performs no I/O. Invalid input goes to [`refusal`], where rustls selects the alert.

use std::io::Read;

use rustls::server::Acceptor;

/// Maximum size of a ClientHello on the wire in bytes, including record headers.
const MAX_WIRE: usize = 64 * 1024;

/// Maximum size of a ClientHello in bytes. Real ones, with post-quantum key shares and several tickets, stay below 8
/// KiB.
const MAX_MESSAGE: usize = 16 * 1024;

/// Maximum number of TLS 1.3 tickets examined: clients offer one, and some offer two.
const MOST_IDENTITIES: usize = 2;

/// Maximum size of a plaintext record (RFC 9846 section 5.1).
const MAX_RECORD: usize = 16 * 1024;

const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const TLS13: u16 = 0x0304;

mod extension {
    pub(crate) const SERVER_NAME: u16 = 0;
    pub(crate) const EXTENDED_MASTER_SECRET: u16 = 23;
    pub(crate) const SESSION_TICKET: u16 = 35;
    pub(crate) const PRE_SHARED_KEY: u16 = 41;
    pub(crate) const SUPPORTED_VERSIONS: u16 = 43;
}

/// The fields of a ClientHello that determine host and ticket policy.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientHello {
    /// Server name (RFC 6066 section 3) in lower case and without a trailing dot.
    pub server_name: Option<String>,
    /// Whether the client supports TLS 1.3, which rustls then negotiates.
    pub offers_tls13: bool,
    /// Whether the client supports the extended master secret (RFC 7627).
    pub extended_master_secret: bool,
    /// The session id, if it has 32 bytes. TLS 1.3 clients send a random one.
    pub session_id: Option<SessionName>,
    /// The session ticket extension of TLS 1.2 (RFC 5077), if present.
    pub ticket: Option<TicketOffer>,
    /// The first examined TLS 1.3 ticket that has the length of a single-use ticket.
    pub single_use: Option<SessionName>,
}

/// A session id or a single-use ticket: random bytes.
pub type SessionName = [u8; 32];

/// The session ticket extension of a TLS 1.2 client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TicketOffer {
    /// Empty: the client accepts a ticket.
    Empty,
    /// The client offers a ticket.
    Ticket,
}

/// Result of reading a ClientHello.
#[derive(Debug, Eq, PartialEq)]
pub enum Progress {
    /// More input is needed.
    Incomplete,
    /// The ClientHello is complete.
    Complete(ClientHello),
    /// The input is not a valid ClientHello, or exceeds a limit.
    Unreadable,
}

/// Incremental reader of a ClientHello.
#[derive(Default)]
pub struct ClientHelloReader {
    wire: Vec<u8>,
    /// Number of bytes of `wire` that have been parsed.
    taken: usize,
    /// Remaining bytes of the current record.
    record_left: usize,
    message: Vec<u8>,
}

impl ClientHelloReader {
    /// Parses the next bytes from the wire.
    pub fn feed(&mut self, bytes: &[u8]) -> Progress {
        self.wire.extend_from_slice(bytes);
        loop {
            if self.record_left == 0 {
                let untaken = self.wire.get(self.taken..).unwrap_or_default();
                let Some(&[kind, major, _, high, low]) = untaken.first_chunk::<RECORD_HEADER>() else {
                    return self.incomplete();
                };
                let length = usize::from(u16::from_be_bytes([high, low]));
                if kind != HANDSHAKE || major != 3 || length == 0 || length > MAX_RECORD {
                    return Progress::Unreadable;
                }
                self.taken += RECORD_HEADER;
                self.record_left = length;
            }
            let available = self.wire.get(self.taken..).unwrap_or_default();
            let part = available.get(..self.record_left).unwrap_or(available);
            if part.is_empty() {
                return self.incomplete();
            }
            self.message.extend_from_slice(part);
            self.taken += part.len();
            self.record_left -= part.len();
            match message_length(&self.message) {
                Some(length) if length > MAX_MESSAGE => return Progress::Unreadable,
                Some(length) if self.message.len() >= length => {
                    let body = self.message.get(MESSAGE_HEADER..length).unwrap_or_default();
                    return parse(body).map_or(Progress::Unreadable, Progress::Complete);
                }
                _ if self.message.first() != Some(&CLIENT_HELLO) => return Progress::Unreadable,
                _ => {}
            }
        }
    }

    /// Returns all bytes read from the wire, for rustls.
    pub fn into_wire(self) -> Vec<u8> {
        self.wire
    }

    fn incomplete(&self) -> Progress {
        if self.wire.len() < MAX_WIRE {
            Progress::Incomplete
        } else {
            Progress::Unreadable
        }
    }
}

/// Returns the fatal alert for an invalid ClientHello, as bytes.
pub fn refusal(wire: &[u8]) -> Vec<u8> {
    let mut acceptor = Acceptor::default();
    let mut rest = wire;
    loop {
        match acceptor.read_tls(rest.by_ref()) {
            Ok(0) | Err(_) => return fatal_alert(Alert::DecodeError),
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(None) => {}
            // Our own limit was exceeded, not one of TLS.
            Ok(Some(_)) => return fatal_alert(Alert::DecodeError),
            Err((_, mut alert)) => {
                let mut bytes = Vec::new();
                return match alert.write(&mut bytes) {
                    Ok(written) if written > 0 => bytes,
                    _ => fatal_alert(Alert::DecodeError),
                };
            }
        }
    }
}

/// Alerts that are sent without rustls (RFC 9846 section 6.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Alert {
    /// No usable certificate.
    HandshakeFailure = 40,
    /// The input is not a valid ClientHello.
    DecodeError = 50,
    /// The server name is unknown or missing.
    UnrecognizedName = 112,
}

/// Encodes a fatal alert as a plaintext record.
pub(crate) fn fatal_alert(alert: Alert) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, alert as u8]
}

fn message_length(message: &[u8]) -> Option<usize> {
    let &[kind, high, middle, low] = message.first_chunk::<MESSAGE_HEADER>()?;
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    (kind == CLIENT_HELLO).then_some(MESSAGE_HEADER + length)
}

/// Reads a ClientHello without its header (RFC 9846 section 4.1.2).
fn parse(body: &[u8]) -> Result<ClientHello, Malformed> {
    let mut hello = ClientHello::default();
    let mut body = Cursor(body);
    body.take(2 + 32)?;
    hello.session_id = body.vector8()?.0.try_into().ok();
    body.vector16()?; // cipher suites
    body.vector8()?; // compression methods
    if body.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = body.vector16()?;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut content = extensions.vector16()?;
        match kind {
            extension::SERVER_NAME => hello.server_name = server_name(content)?,
            extension::EXTENDED_MASTER_SECRET => hello.extended_master_secret = true,
            extension::SESSION_TICKET => {
                hello.ticket = Some(match content.0.is_empty() {
                    true => TicketOffer::Empty,
                    false => TicketOffer::Ticket,
                });
            }
            extension::PRE_SHARED_KEY => {
                let mut identities = content.vector16()?;
                for _ in 0..MOST_IDENTITIES {
                    if identities.0.is_empty() || hello.single_use.is_some() {
                        break;
                    }
                    hello.single_use = identities.vector16()?.0.try_into().ok();
                    identities.take(4)?; // age
                }
            }
            extension::SUPPORTED_VERSIONS => {
                let mut versions = content.vector8()?;
                while !versions.0.is_empty() {
                    hello.offers_tls13 |= versions.u16()? == TLS13;
                }
            }
            _ => {}
        }
    }
    Ok(hello)
}

/// Parses the host name in a server name list, which has at most one (RFC 6066 section 3). None if the list begins with
/// a name of another type.
fn server_name(mut content: Cursor<'_>) -> Result<Option<String>, Malformed> {
    const HOST_NAME: u8 = 0;
    let mut names = content.vector16()?;
    if names.u8()? != HOST_NAME {
        return Ok(None);
    }
    let name = std::str::from_utf8(names.vector16()?.0).map_err(|_| Malformed)?;
    let name = name.strip_suffix('.').unwrap_or(name);
    match !name.is_empty() && name.is_ascii() {
        true => Ok(Some(name.to_ascii_lowercase())),
        false => Err(Malformed),
    }
}

/// The message is truncated or malformed.
#[derive(Debug, Eq, PartialEq)]
struct Malformed;

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take(1)?.first().copied().ok_or(Malformed)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?.first_chunk().ok_or(Malformed)?;
        Ok(u16::from_be_bytes(*bytes))
    }

    fn vector8(&mut self) -> Result<Cursor<'a>, Malformed> {
        let length = self.u8()?;
        self.take(length.into()).map(Cursor)
    }

    fn vector16(&mut self) -> Result<Cursor<'a>, Malformed> {
        let length = self.u16()?;
        self.take(length.into()).map(Cursor)
    }
}

#[cfg(test)]
mod tests;
