//! Requests: arrays of strings, and inline requests.

use std::io::Write;
use std::ops::Range;

use zeroize::Zeroizing;

use super::cursor::Cursor;
use super::reply::{write_bulk_head, write_line_end};
use super::{LONGEST_ARGUMENT, LONGEST_INLINE, LONGEST_REQUEST, MOST_ARGUMENTS, ProtocolError};

/// Decoder of requests. Between calls it keeps no data except an allocated argument list.
#[derive(Debug, Default)]
pub struct RequestDecoder {
    arguments: Vec<Range<usize>>,
}

/// One request: command name and arguments, borrowed from the input.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    input: &'a [u8],
    arguments: &'a [Range<usize>],
}

impl RequestDecoder {
    /// Decodes the first request in `input` and returns it with its length in bytes; None if it is incomplete. An empty
    /// request gets no reply.
    ///
    /// # Errors
    ///
    /// Fails on a protocol error, after which the connection must be closed.
    pub fn decode<'a>(&'a mut self, input: &'a [u8]) -> Result<Option<(Request<'a>, usize)>, ProtocolError> {
        self.arguments.clear();
        let length = match input.first() {
            None => return Ok(None),
            Some(b'*') => self.array(input)?,
            Some(_) => self.inline(input)?,
        };
        match length {
            Some(length) => {
                let arguments = &self.arguments;
                Ok(Some((Request { input, arguments }, length)))
            }
            None if input.len() >= LONGEST_REQUEST => Err(ProtocolError::LongRequest),
            None => Ok(None),
        }
    }

    fn array(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let mut cursor = Cursor::new(input);
        cursor.byte();
        let Some(count) = cursor.number(ProtocolError::ArrayLength)? else {
            return Ok(None);
        };
        if count > MOST_ARGUMENTS as i64 {
            return Err(ProtocolError::ArrayLength);
        }
        // As in Redis, a count of zero or less is not a request.
        for _ in 0..count {
            match cursor.byte() {
                Some(b'$') => {}
                Some(other) => return Err(ProtocolError::NotBulk(other)),
                None => return Ok(None),
            }
            let Some(length) = cursor.number(ProtocolError::BulkLength)? else {
                return Ok(None);
            };
            let length = usize::try_from(length).map_err(|_| ProtocolError::BulkLength)?;
            if length > LONGEST_ARGUMENT {
                return Err(ProtocolError::BulkLength);
            }
            let begin = cursor.position();
            if cursor.string(length)?.is_none() {
                return Ok(None);
            }
            self.arguments.push(begin..begin + length);
        }
        Ok(Some(cursor.position()))
    }

    fn inline(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let mut cursor = Cursor::new(input);
        let Some(line) = cursor.line(LONGEST_INLINE, true)? else {
            return Ok(None);
        };
        if line.contains(&b'"') || line.contains(&b'\'') {
            return Err(ProtocolError::Quotes);
        }
        let mut begin = 0;
        for word in line.split(u8::is_ascii_whitespace) {
            let end = begin + word.len();
            if !word.is_empty() {
                if self.arguments.len() == MOST_ARGUMENTS {
                    return Err(ProtocolError::ArrayLength);
                }
                self.arguments.push(begin..end);
            }
            begin = end + 1;
        }
        Ok(Some(cursor.position()))
    }
}

impl<'a> Request<'a> {
    /// Number of arguments, including the command name.
    pub fn len(&self) -> usize {
        self.arguments.len()
    }

    /// Whether the request is empty.
    pub fn is_empty(&self) -> bool {
        self.arguments.is_empty()
    }

    /// Returns an argument; the first is the command name.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        self.input.get(self.arguments.get(index)?.clone())
    }
}

/// Encodes a request as an array of strings.
pub fn encode_request(arguments: &[&[u8]], out: &mut Vec<u8>) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "*{}", arguments.len());
    write_line_end(out);
    for argument in arguments {
        write_bulk_head(argument.len(), out);
        out.extend_from_slice(argument);
        write_line_end(out);
    }
}

/// Encodes a request as an array of strings, in a buffer of the exact size, so that no copy is left in memory.
pub(crate) fn encoded_request(arguments: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    const LONGEST_HEAD: usize = 24;
    let length: usize = arguments
        .iter()
        .map(|argument| argument.len() + LONGEST_HEAD)
        .sum();
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + LONGEST_HEAD));
    encode_request(arguments, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The arguments of the first request, and how long it is.
    type Decoded = Option<(Vec<Vec<u8>>, usize)>;

    fn decode(input: &[u8]) -> Result<Decoded, ProtocolError> {
        let mut decoder = RequestDecoder::default();
        let decoded = decoder.decode(input)?;
        Ok(decoded.map(|(request, length)| {
            let arguments = (0..request.len()).map(|index| request.get(index).expect("counted").to_vec());
            (arguments.collect(), length)
        }))
    }

    proptest! {
        #[test]
        fn encoded_requests_are_decoded_and_their_prefixes_are_incomplete(
            arguments in vec(vec(any::<u8>(), 0..64), 1..=MOST_ARGUMENTS),
            rest in vec(any::<u8>(), 0..16),
        ) {
            let mut bytes = Vec::new();
            let borrowed: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
            encode_request(&borrowed, &mut bytes);
            for length in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..length]), Ok(None));
            }
            let length = bytes.len();
            bytes.extend(rest);
            prop_assert_eq!(decode(&bytes), Ok(Some((arguments, length))));
        }

        #[test]
        fn any_input_is_a_request_an_error_or_incomplete(bytes in vec(any::<u8>(), 0..256)) {
            if let Ok(Some((_, length))) = decode(&bytes) {
                prop_assert!((1..=bytes.len()).contains(&length));
            }
        }

        #[test]
        fn an_error_does_not_depend_on_how_the_bytes_arrive(text in "[*$0-9a\r\n-]{0,40}") {
            let bytes = text.as_bytes();
            let first = (0..=bytes.len()).find_map(|length| decode(&bytes[..length]).transpose());
            prop_assert_eq!(first, decode(bytes).transpose());
        }
    }

    #[test]
    fn inline_commands_are_requests() {
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|word| word.as_bytes().to_vec())
                .collect::<Vec<_>>()
        };
        assert_eq!(decode(b"PING\r\nGET"), Ok(Some((words(&["PING"]), 6))));
        assert_eq!(
            decode(b"  get  a\tb \n"),
            Ok(Some((words(&["get", "a", "b"]), 12)))
        );
        assert_eq!(decode(b"\r\n"), Ok(Some((words(&[]), 2))));
        assert_eq!(decode(b"get 'a b'\r\n"), Err(ProtocolError::Quotes));
        assert_eq!(decode(&[b'x'; LONGEST_INLINE]), Ok(None));
        assert_eq!(decode(&[b'x'; LONGEST_INLINE + 2]), Err(ProtocolError::LongLine));
        let many = "x ".repeat(MOST_ARGUMENTS + 1) + "\n";
        assert_eq!(decode(many.as_bytes()), Err(ProtocolError::ArrayLength));
    }

    #[test]
    fn limits_are_applied_before_anything_has_arrived() {
        assert_eq!(decode(b"*65\r\n"), Err(ProtocolError::ArrayLength));
        assert_eq!(
            decode(b"*9999999999999999999999999999"),
            Err(ProtocolError::ArrayLength)
        );
        assert_eq!(decode(b"*1\r\n$1073741824\r\n"), Err(ProtocolError::BulkLength));
        assert_eq!(decode(b"*1\r\n$-1\r\n"), Err(ProtocolError::BulkLength));
        assert_eq!(decode(b"*2\r\n*1\r\n"), Err(ProtocolError::NotBulk(b'*')));
        assert_eq!(decode(b"*1\n"), Err(ProtocolError::ArrayLength));
        assert_eq!(decode(b"*1\r\n$1\r\nab"), Err(ProtocolError::LineEnd));
        assert_eq!(decode(b"*-1\r\n"), Ok(Some((Vec::new(), 5))));
    }

    #[test]
    fn a_request_that_is_too_long_as_a_whole_is_refused() {
        let half = vec![b'x'; LONGEST_REQUEST / 2 + 1];
        let mut bytes = Vec::new();
        encode_request(&[&half, &half], &mut bytes);
        assert_eq!(decode(&bytes[..LONGEST_REQUEST - 1]), Ok(None));
        assert_eq!(decode(&bytes[..LONGEST_REQUEST]), Err(ProtocolError::LongRequest));
    }
}
