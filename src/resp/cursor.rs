//! Parser for lines and strings in incomplete input.

use super::ProtocolError;

/// Maximum length of a line with a length or a number.
const LONGEST_NUMBER: usize = 24;

/// A position in the input. All methods return None if the input is incomplete.
pub(super) struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    /// Number of bytes consumed.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let byte = *self.input.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// Reads a line, without its end. If `bare` is set, `\n` alone ends a line too.
    pub(super) fn line(&mut self, longest: usize, bare: bool) -> Result<Option<&'a [u8]>, ProtocolError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let window = rest.get(..longest + 2).unwrap_or(rest);
        let Some(length) = window.iter().position(|byte| *byte == b'\n') else {
            return match window.len() < longest + 2 {
                true => Ok(None),
                false => Err(ProtocolError::LongLine),
            };
        };
        let (line, _) = rest.split_at_checked(length).unwrap_or_default();
        self.at += length + 1;
        match line.strip_suffix(b"\r") {
            Some(line) => Ok(Some(line)),
            None if bare => Ok(Some(line)),
            None => Err(ProtocolError::LineEnd),
        }
    }

    /// Reads a line with an integer; fails with `wrong` otherwise.
    pub(super) fn number(&mut self, wrong: ProtocolError) -> Result<Option<i64>, ProtocolError> {
        let Some(line) = self.line(LONGEST_NUMBER, false).map_err(|_| wrong)? else {
            return Ok(None);
        };
        let number = std::str::from_utf8(line).ok().and_then(|text| text.parse().ok());
        number.map(Some).ok_or(wrong)
    }

    /// Reads `length` bytes and a line end.
    pub(super) fn string(&mut self, length: usize) -> Result<Option<&'a [u8]>, ProtocolError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some((string, rest)) = rest.split_at_checked(length) else {
            return Ok(None);
        };
        let end = rest.get(..2).unwrap_or(rest);
        if !b"\r\n".starts_with(end) {
            return Err(ProtocolError::LineEnd);
        }
        if end.len() < 2 {
            return Ok(None);
        }
        self.at += length + 2;
        Ok(Some(string))
    }
}
