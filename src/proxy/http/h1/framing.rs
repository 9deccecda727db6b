//! Where each HTTP/1 request begins and ends, judged strictly (RFC 9112).
//!
//! hyper's parser forgives what peers behind it may read differently: bare line feeds, a request with both
//! `Content-Length` and `Transfer-Encoding`, and more. Every such difference is a way to smuggle a request past a proxy,
//! so this machine looks at the bytes first and lets only those pass that have exactly one reading.
//!
//! It is incremental and pure: however the bytes are split, the same ones pass and the same verdict is reached.

mod chunked;
mod head;

use self::chunked::{Chunked, Progress};
use self::head::{BodyFraming, HeadScan};
pub(crate) use self::head::{MAX_FIELDS, MAX_REQUEST_LINE};
use crate::proxy::http::refusal::HttpRefusal;

/// What to do with the bytes that were shown to [`Framing::advance`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// This many of them may pass, at least one. Show the rest again.
    Pass(usize),
    /// They must wait: they are the beginning of a head, to be shown again with what follows, or it is undecided which
    /// protocol they belong to.
    Wait,
}

/// Follows the requests on one connection.
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
    /// Looks at the bytes that follow those which have passed. After [`Step::Wait`] `input` must begin with the same
    /// bytes as before.
    ///
    /// # Errors
    ///
    /// The bytes have no single reading or exceed a limit. The connection cannot go on.
    pub fn advance(&mut self, input: &[u8]) -> Result<Step, HttpRefusal> {
        let result = self.step(input);
        if let Err(refusal) = result {
            self.phase = Phase::Refused(refusal);
        }
        result
    }

    /// Whether the next byte begins a request's head or continues one that has not passed yet.
    pub fn at_head(&self) -> bool {
        matches!(self.phase, Phase::Head(_))
    }

    /// Whether nothing may pass before it is decided which protocol follows.
    pub fn awaits_upgrade(&self) -> bool {
        matches!(self.phase, Phase::AwaitUpgrade)
    }

    /// The request that asked for another protocol did not get it: what follows is the next request.
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
                // As much of the input as belongs to the body: at most its length, so it fits a usize.
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
