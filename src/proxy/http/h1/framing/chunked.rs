//! Parser for chunked bodies (RFC 9112 section 7.1).

use super::head::{MAX_FIELDS, is_token};

/// Maximum number of bytes of chunk extensions in one body.
const MAX_EXTENSIONS: usize = 4 << 10;
/// Maximum number of bytes of trailer fields.
const MAX_TRAILERS: usize = 8 << 10;

/// Parser state within a chunked body.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    state: State,
    extensions: usize,
    trailers: usize,
    fields: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Size { size: u64, digits: u8 },
    Extension { size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

impl Default for State {
    fn default() -> Self {
        Self::Size { size: 0, digits: 0 }
    }
}

/// Result of [`Chunked::advance`].
pub(super) enum Progress {
    /// All input was consumed; the body continues.
    All,
    /// The body ended after this number of bytes.
    End(usize),
    /// An invalid byte follows after this number of valid ones.
    Fault(usize, &'static str),
}

impl Chunked {
    /// Parses the next bytes of the body. After a fault, the next input begins with the invalid byte again.
    pub(super) fn advance(&mut self, input: &[u8]) -> Progress {
        let mut at = 0;
        while let Some(byte) = input.get(at) {
            if let State::Data { left } = self.state {
                let rest = input.len() - at;
                // At most the rest of the input, so it fits a usize.
                let taken = usize::try_from(left).map_or(rest, |left| left.min(rest));
                at += taken;
                let left = left - taken as u64;
                self.state = if left == 0 {
                    State::DataCr
                } else {
                    State::Data { left }
                };
                continue;
            }
            match self.next(*byte) {
                Ok(Some(state)) => self.state = state,
                Ok(None) => return Progress::End(at + 1),
                Err(reason) => return Progress::Fault(at, reason),
            }
            at += 1;
        }
        Progress::All
    }

    /// Returns the state after `byte`; None if it is the last byte of the body. An error changes no state, so that the
    /// same byte fails again.
    fn next(&mut self, byte: u8) -> Result<Option<State>, &'static str> {
        let state = match (self.state, byte) {
            (State::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == 16 {
                    return Err("a chunk size has too many digits");
                }
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                State::Size {
                    size: (size << 4) + digit,
                    digits: digits + 1,
                }
            }
            (State::Size { size, digits: 1.. }, b'\r') => State::SizeLf { size },
            (State::Size { size, digits: 1.. }, b';') => State::Extension { size },
            (State::Size { .. }, _) => return Err("a chunk size is malformed"),
            (State::Extension { size }, b'\r') => State::SizeLf { size },
            (State::Extension { size }, b'\t' | b' '..) => {
                if self.extensions == MAX_EXTENSIONS {
                    return Err("the chunk extensions are too large");
                }
                self.extensions += 1;
                State::Extension { size }
            }
            (State::Extension { .. }, _) => return Err("control character in a chunk extension"),
            (State::SizeLf { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLf { size }, b'\n') => State::Data { left: size },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::default(),
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart, _) if is_token(byte) => {
                if self.fields == MAX_FIELDS {
                    return Err("too many trailer fields");
                }
                self.fields += 1;
                self.trailer_byte(State::TrailerName)?
            }
            (State::TrailerName, b':') => self.trailer_byte(State::TrailerValue)?,
            (State::TrailerName, _) if is_token(byte) => self.trailer_byte(State::TrailerName)?,
            (State::TrailerStart | State::TrailerName, _) => return Err("a trailer field is malformed"),
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, b'\t' | b' '..) => self.trailer_byte(State::TrailerValue)?,
            (State::TrailerValue, _) => return Err("control character in a trailer field"),
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => return Ok(None),
            // Data never reaches this function: advance() consumes it.
            (
                State::SizeLf { .. }
                | State::Data { .. }
                | State::DataCr
                | State::DataLf
                | State::TrailerLf
                | State::EndLf,
                _,
            ) => return Err("missing line end after a chunk"),
        };
        Ok(Some(state))
    }

    fn trailer_byte(&mut self, state: State) -> Result<State, &'static str> {
        if self.trailers == MAX_TRAILERS {
            return Err("the trailer fields are too large");
        }
        self.trailers += 1;
        Ok(state)
    }
}
