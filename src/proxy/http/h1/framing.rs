//! Strict parser for the boundaries of HTTP/1 requests (RFC 9112).
//!
//! hyper's parser accepts input that backends may interpret differently: bare line feeds, a request with both
//! `Content-Length` and `Transfer-Encoding`, and more. Every such difference allows request smuggling, so this state
//! machine checks the bytes first and passes only unambiguous requests.
//!
//! It is incremental and pure: the result does not depend on how the bytes are split.

mod chunked;
mod head;

use self::chunked::{Chunked, Progress};
use self::head::{BodyFraming, HeadScan};
pub(crate) use self::head::{MAX_FIELDS, MAX_REQUEST_LINE};
use crate::proxy::http::refusal::HttpRefusal;

/// What to do with the input of [`Framing::advance`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Pass this number of bytes, at least one. Call again with the rest.
    Pass(usize),
    /// Hold the bytes: the head is incomplete, so call again with more input, or a protocol upgrade is undecided.
    Wait,
}

/// Framing state of one connection.
#[derive(Debug, Default)]
pub struct Framing {
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Head(HeadScan),
    Length(u64),
    Chunked(Chunked),
    AwaitUpgrade,
    Refused(HttpRefusal),
}

impl Default for Phase {
    fn default() -> Self {
        Self::Head(HeadScan::default())
    }
}

impl Framing {
    /// Checks the bytes after those that have passed. After [`Step::Wait`] `input` must begin with the same bytes as
    /// before.
    ///
    /// # Errors
    ///
    /// Fails if the bytes are malformed or ambiguous, or exceed a limit. The connection must be closed.
    pub fn advance(&mut self, input: &[u8]) -> Result<Step, HttpRefusal> {
        let result = self.step(input);
        if let Err(refusal) = result {
            self.phase = Phase::Refused(refusal);
        }
        result
    }

    /// Whether the next byte belongs to a request head that has not passed yet.
    pub fn at_head(&self) -> bool {
        matches!(self.phase, Phase::Head(_))
    }

    /// Whether a protocol upgrade is undecided, so that nothing may pass.
    pub fn awaits_upgrade(&self) -> bool {
        matches!(self.phase, Phase::AwaitUpgrade)
    }

    /// The upgrade was declined: the next request follows.
    pub fn upgrade_declined(&mut self) {
        if self.awaits_upgrade() {
            self.phase = Phase::default();
        }
    }

    fn step(&mut self, input: &[u8]) -> Result<Step, HttpRefusal> {
        match &mut self.phase {
            Phase::Refused(refusal) => Err(*refusal),
            Phase::AwaitUpgrade => Ok(Step::Wait),
            _ if input.is_empty() => Ok(Step::Wait),
            Phase::Head(scan) => {
                let Some(end) = scan.find_end(input)? else {
                    return Ok(Step::Wait);
                };
                let head = head::check(input.get(..end).unwrap_or_default())?;
                self.phase = match head.body {
                    BodyFraming::None if head.upgrade => Phase::AwaitUpgrade,
                    BodyFraming::None | BodyFraming::Length(0) => Phase::default(),
                    BodyFraming::Length(length) => Phase::Length(length),
                    BodyFraming::Chunked => Phase::Chunked(Chunked::default()),
                };
                Ok(Step::Pass(end))
            }
            Phase::Length(left) => {
                // The part of the input that belongs to the body: at most the length of the input, so it fits a usize.
                let taken = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= taken as u64;
                if *left == 0 {
                    self.phase = Phase::default();
                }
                Ok(Step::Pass(taken))
            }
            Phase::Chunked(chunked) => {
                let passed = match chunked.advance(input) {
                    Progress::All => input.len(),
                    Progress::End(passed) => {
                        self.phase = Phase::default();
                        passed
                    }
                    Progress::Fault(0, reason) => return Err(HttpRefusal::bad_request(reason)),
                    Progress::Fault(passed, _) => passed,
                };
                Ok(Step::Pass(passed))
            }
        }
    }
}

#[cfg(test)]
mod tests;
