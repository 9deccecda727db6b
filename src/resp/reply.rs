//! Replies in RESP2 and RESP3.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;

use zeroize::Zeroizing;

use super::buffer::WipedBuffer;
use super::cursor::Cursor;
use super::{LONGEST_ARGUMENT, ProtocolError};

/// Maximum length of a line in a reply.
const LONGEST_LINE: usize = 1024;

/// Protocol version of a client.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Protocol {
    /// RESP2, the initial version.
    #[default]
    Resp2,
    /// RESP3, after `HELLO 3`.
    Resp3,
}

/// One reply.
#[derive(Clone, Eq, PartialEq)]
pub enum Reply {
    /// A simple string, such as `OK`.
    Simple(Cow<'static, str>),
    /// An error; the first word is its type.
    Error(Cow<'static, str>),
    /// An integer.
    Integer(i64),
    /// A bulk string.
    Bulk(Zeroizing<Vec<u8>>),
    /// Null.
    Null,
    /// An array of replies.
    Array(Vec<Reply>),
    /// A map; an array of pairs in RESP2.
    Map(Vec<(Reply, Reply)>),
}

impl Reply {
    /// `OK`.
    pub const OK: Self = Self::Simple(Cow::Borrowed("OK"));

    /// Creates a bulk string.
    pub fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Bulk(Zeroizing::new(text.as_ref().to_vec()))
    }

    /// Appends the reply to `out`.
    pub fn encode(&self, protocol: Protocol, out: &mut Vec<u8>) {
        match self {
            Self::Simple(text) => write_line(b'+', text, out),
            Self::Error(text) => write_line(b'-', text, out),
            Self::Integer(number) => write_number(b':', *number, out),
            Self::Bulk(bytes) => {
                write_bulk_head(bytes.len(), out);
                out.extend_from_slice(bytes);
                write_line_end(out);
            }
            Self::Null => out.extend_from_slice(match protocol {
                Protocol::Resp2 => b"$-1\r\n",
                Protocol::Resp3 => b"_\r\n",
            }),
            Self::Array(replies) => {
                write_number(b'*', replies.len() as i64, out);
                replies.iter().for_each(|reply| reply.encode(protocol, out));
            }
            Self::Map(pairs) => {
                match protocol {
                    Protocol::Resp2 => write_number(b'*', pairs.len() as i64 * 2, out),
                    Protocol::Resp3 => write_number(b'%', pairs.len() as i64, out),
                }
                for (name, reply) in pairs {
                    name.encode(protocol, out);
                    reply.encode(protocol, out);
                }
            }
        }
    }
}

/// Formats type and length only, because values are secret.
impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Simple(text) => write!(f, "Simple({text:?})"),
            Self::Error(text) => write!(f, "Error({text:?})"),
            Self::Integer(number) => write!(f, "Integer({number})"),
            Self::Bulk(bytes) => write!(f, "Bulk({} bytes)", bytes.len()),
            Self::Null => write!(f, "Null"),
            Self::Array(replies) => f.debug_tuple("Array").field(replies).finish(),
            Self::Map(pairs) => f.debug_tuple("Map").field(pairs).finish(),
        }
    }
}

/// Incremental decoder of replies.
#[derive(Default)]
pub struct ReplyDecoder {
    received: WipedBuffer,
}

impl ReplyDecoder {
    /// Adds received bytes. Decode all replies before the next call, so that the memory stays bounded.
    pub fn push(&mut self, bytes: &[u8]) {
        self.received.push(bytes);
    }

    /// Decodes the next reply; None if it is incomplete. Supports only replies to commands on one key: no arrays and no
    /// maps.
    ///
    /// # Errors
    ///
    /// Fails on a protocol error, after which the connection must be closed.
    pub fn decode(&mut self) -> Result<Option<Reply>, ProtocolError> {
        let mut cursor = Cursor::new(self.received.as_slice());
        let Some(reply) = decode(&mut cursor)? else {
            return Ok(None);
        };
        let length = cursor.position();
        self.received.consume(length);
        Ok(Some(reply))
    }
}

fn decode(cursor: &mut Cursor<'_>) -> Result<Option<Reply>, ProtocolError> {
    let Some(kind) = cursor.byte() else {
        return Ok(None);
    };
    match kind {
        b'+' => Ok(text(cursor)?.map(Reply::Simple)),
        b'-' => Ok(text(cursor)?.map(Reply::Error)),
        b':' => Ok(cursor.number(ProtocolError::ReplyContent)?.map(Reply::Integer)),
        b'_' => match cursor.line(0, false)? {
            Some(_) => Ok(Some(Reply::Null)),
            None => Ok(None),
        },
        b'$' => match cursor.number(ProtocolError::BulkLength)? {
            None => Ok(None),
            Some(-1) => Ok(Some(Reply::Null)),
            Some(length) => {
                let length = usize::try_from(length).map_err(|_| ProtocolError::BulkLength)?;
                if length > LONGEST_ARGUMENT {
                    return Err(ProtocolError::BulkLength);
                }
                let bytes = cursor.string(length)?;
                Ok(bytes.map(|bytes| Reply::Bulk(Zeroizing::new(bytes.to_vec()))))
            }
        },
        other => Err(ProtocolError::ReplyType(other)),
    }
}

fn text(cursor: &mut Cursor<'_>) -> Result<Option<Cow<'static, str>>, ProtocolError> {
    let Some(line) = cursor.line(LONGEST_LINE, false)? else {
        return Ok(None);
    };
    // A stray CR could be taken for a line end when the text is passed on.
    let text = std::str::from_utf8(line).ok().filter(|text| !text.contains('\r'));
    let text = text.ok_or(ProtocolError::ReplyContent)?;
    Ok(Some(Cow::Owned(text.to_owned())))
}

/// Writes the header of a bulk string; the string and [`write_line_end`] must follow.
pub(super) fn write_bulk_head(length: usize, out: &mut Vec<u8>) {
    write_number(b'$', length as i64, out);
}

/// The end of a line.
pub(super) fn write_line_end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

fn write_number(kind: u8, number: i64, out: &mut Vec<u8>) {
    out.push(kind);
    // Writing to a vector cannot fail.
    let _ = write!(out, "{number}");
    write_line_end(out);
}

/// Writes a line; line ends within the text are replaced.
fn write_line(kind: u8, text: &str, out: &mut Vec<u8>) {
    out.push(kind);
    let one_line = text.bytes().map(|byte| match byte {
        b'\r' | b'\n' => b' ',
        other => other,
    });
    out.extend(one_line);
    write_line_end(out);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn scalar() -> impl Strategy<Value = Reply> {
        prop_oneof![
            "[ -~]{0,40}".prop_map(|text| Reply::Simple(text.into())),
            "[ -~]{0,40}".prop_map(|text| Reply::Error(text.into())),
            any::<i64>().prop_map(Reply::Integer),
            vec(any::<u8>(), 0..200).prop_map(Reply::text),
            Just(Reply::Null),
        ]
    }

    proptest! {
        #[test]
        fn replies_survive_the_wire_however_they_are_cut(
            replies in vec(scalar(), 0..8),
            cut in 1usize..50,
            protocol in prop_oneof![Just(Protocol::Resp2), Just(Protocol::Resp3)],
        ) {
            let mut bytes = Vec::new();
            replies.iter().for_each(|reply| reply.encode(protocol, &mut bytes));
            let mut decoder = ReplyDecoder::default();
            let mut decoded = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(reply) = decoder.decode().expect("well formed") {
                    decoded.push(reply);
                }
            }
            prop_assert_eq!(decoded, replies);
        }

        #[test]
        fn any_input_is_a_reply_an_error_or_incomplete(bytes in vec(any::<u8>(), 0..256)) {
            let mut decoder = ReplyDecoder::default();
            decoder.push(&bytes);
            let mut most = bytes.len();
            while let Ok(Some(_)) = decoder.decode() {
                most -= 1;
            }
            prop_assert!(decoder.received.as_slice().len() <= most);
        }
    }

    fn encoded(reply: &Reply, protocol: Protocol) -> String {
        let mut bytes = Vec::new();
        reply.encode(protocol, &mut bytes);
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn collections_are_written_as_each_protocol_has_them() {
        let map = Reply::Map(vec![(Reply::text("a"), Reply::Null)]);
        assert_eq!(encoded(&map, Protocol::Resp2), "*2\r\n$1\r\na\r\n$-1\r\n");
        assert_eq!(encoded(&map, Protocol::Resp3), "%1\r\n$1\r\na\r\n_\r\n");
        let array = Reply::Array(vec![Reply::Integer(-7)]);
        assert_eq!(encoded(&array, Protocol::Resp3), "*1\r\n:-7\r\n");
    }

    #[test]
    fn a_text_cannot_become_two_replies() {
        let reply = Reply::Error("ERR no\r\n+OK".into());
        assert_eq!(encoded(&reply, Protocol::Resp2), "-ERR no  +OK\r\n");
    }

    #[test]
    fn debug_output_hides_values() {
        let shown = format!("{:?}", Reply::Array(vec![Reply::text("secret")]));
        assert!(!shown.contains("secret") && shown.contains("6 bytes"), "{shown}");
    }

    #[test]
    fn limits_are_applied_before_anything_has_arrived() {
        let refused = |bytes: &[u8]| {
            let mut decoder = ReplyDecoder::default();
            decoder.push(bytes);
            decoder.decode().expect_err("refused")
        };
        assert_eq!(refused(b"$1073741824\r\n"), ProtocolError::BulkLength);
        assert_eq!(refused(b"$-2\r\n"), ProtocolError::BulkLength);
        assert_eq!(refused(b"*1\r\n"), ProtocolError::ReplyType(b'*'));
        assert_eq!(refused(&[b'+'; LONGEST_LINE + 3]), ProtocolError::LongLine);
        assert_eq!(refused(b"+\xff\r\n"), ProtocolError::ReplyContent);
        assert_eq!(refused(b"-ERR \r+OK\r\n"), ProtocolError::ReplyContent);
        assert_eq!(refused(b":1 \r\n"), ProtocolError::ReplyContent);
    }
}
