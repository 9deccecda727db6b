//! Queue of requests that have been sent and have no reply yet.

use std::collections::VecDeque;
use std::time::Instant;

use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::error::CacheError;
use crate::resp::Reply;

/// A request queued for the task.
pub(super) struct PendingRequest {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    pub(super) expects: Expects,
    pub(super) asked: Instant,
    pub(super) deadline: Instant,
    pub(super) answer: ReplySender,
}

/// Channel for the result. The receiver may have been dropped.
pub(super) type ReplySender = oneshot::Sender<Result<Reply, CacheError>>;

/// Expected type of a reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Expects {
    /// A value or null.
    Value,
    /// This word.
    Word(&'static str),
    /// Any reply, including errors.
    Anything,
}

impl Expects {
    /// Checks a reply against the expected type.
    pub(super) fn judge(self, reply: Reply) -> Result<Reply, CacheError> {
        match (self, reply) {
            (Self::Anything, reply) | (Self::Value, reply @ (Reply::Bulk(_) | Reply::Null)) => Ok(reply),
            (_, Reply::Error(text)) => Err(CacheError::Refused(presentable(&text))),
            (Self::Word(word), Reply::Simple(said)) if said == word => Ok(Reply::Simple(said)),
            _ => Err(CacheError::Garbled),
        }
    }
}

/// The server's error message without quoted parts of the request, which may contain a key.
fn presentable(text: &str) -> String {
    const LONGEST: usize = 120;
    let text = text.split_once(", with args").map_or(text, |(before, _)| before);
    text.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}

/// The receiver of a reply.
pub(super) enum Waiting {
    /// A caller.
    Caller(Expects, ReplySender),
    /// The client itself, to probe an idle connection.
    Probe,
    /// The client itself, as the trial of the breaker.
    Trial,
    /// None: the request timed out.
    Nobody,
}

struct Sent {
    asked: Instant,
    deadline: Instant,
    waiting: Waiting,
}

/// The queue. All requests have the same time limit, so deadlines are in order and expired requests are at the front.
#[derive(Default)]
pub(super) struct Outstanding {
    queue: VecDeque<Sent>,
    run_out: usize,
}

impl Outstanding {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn push(&mut self, asked: Instant, deadline: Instant, waiting: Waiting) {
        self.queue.push_back(Sent {
            asked,
            deadline,
            waiting,
        });
    }

    /// Removes and returns the receiver of the next reply; None if no request is waiting.
    pub(super) fn replied(&mut self) -> Option<Waiting> {
        let sent = self.queue.pop_front()?;
        self.run_out = self.run_out.saturating_sub(1);
        Some(sent.waiting)
    }

    /// Returns the next request that timed out. Its reply may still arrive.
    pub(super) fn next_run_out(&mut self, now: Instant) -> Option<Waiting> {
        let sent = self.queue.get_mut(self.run_out)?;
        if sent.deadline > now {
            return None;
        }
        self.run_out += 1;
        Some(std::mem::replace(&mut sent.waiting, Waiting::Nobody))
    }

    /// The next deadline.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.queue.get(self.run_out).map(|sent| sent.deadline)
    }

    /// Time of the oldest request.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.queue.front().map(|sent| sent.asked)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::reached::check;
    use crate::resp::client::OWNER_IS_SILENT;

    fn caller(answer: ReplySender) -> Waiting {
        Waiting::Caller(Expects::Value, answer)
    }

    /// The connection compares it with what came.
    #[test]
    fn the_error_for_an_owner_that_is_silent_reaches_the_caller_unchanged() {
        let reply = Reply::Error(OWNER_IS_SILENT.into());
        let refused = Err(CacheError::Refused(OWNER_IS_SILENT.to_owned()));
        assert_eq!(Expects::Word("OK").judge(reply), refused);
    }

    #[test]
    fn a_reply_that_comes_late_leaves_the_others_in_order() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut outstanding = Outstanding::default();
        let (first, mut first_answer) = oneshot::channel();
        let (second, mut second_answer) = oneshot::channel();
        outstanding.push(at(0), at(5), caller(first));
        outstanding.push(at(3), at(8), caller(second));
        assert!(outstanding.next_run_out(at(4)).is_none());
        let Some(Waiting::Caller(_, answer)) = outstanding.next_run_out(at(5)) else {
            panic!("the first ran out");
        };
        answer.send(Err(CacheError::Timeout)).expect("awaited");
        assert!(outstanding.next_run_out(at(5)).is_none());
        assert_eq!(outstanding.next_deadline(), Some(at(8)));
        assert_eq!(
            outstanding.oldest(),
            Some(at(0)),
            "its reply still blocks the others"
        );

        assert!(matches!(outstanding.replied(), Some(Waiting::Nobody)));
        let Some(Waiting::Caller(expects, answer)) = outstanding.replied() else {
            panic!("the second is due");
        };
        answer.send(expects.judge(Reply::Null)).expect("awaited");
        assert!(outstanding.replied().is_none() && outstanding.next_run_out(at(99)).is_none());
        assert_eq!(
            first_answer.try_recv().expect("answered"),
            Err(CacheError::Timeout)
        );
        assert_eq!(second_answer.try_recv().expect("answered"), Ok(Reply::Null));
    }

    /// What may happen to the queue.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push,
        Reply,
        Wait(u64),
    }

    fn kind(waiting: &Waiting) -> &'static str {
        match waiting {
            Waiting::Caller(..) => "caller",
            Waiting::Probe => "probe",
            Waiting::Trial => "trial",
            Waiting::Nobody => "nobody",
        }
    }

    /// Measured: 95 % of the cases have replies in time, 99 % late ones, 97 % several that run out together, 90 % one that runs
    /// out behind others that have, and 75 % replies that nobody asked for.
    #[test]
    fn each_request_gets_its_own_reply_or_runs_out_once() {
        const LIMIT: Duration = Duration::from_millis(20);
        let step = prop_oneof![
            4 => Just(Step::Push),
            3 => Just(Step::Reply),
            2 => (0u64..30).prop_map(Step::Wait),
        ];
        let floors = [
            ("a reply in time", 48),
            ("a reply that is late", 48),
            ("a reply that nobody asked for", 38),
            ("several that run out together", 48),
            ("one that runs out behind others that have", 45),
        ];
        check(128, vec(step, 20..200), &floors, |steps, case| {
            let mut outstanding = Outstanding::default();
            // When each was asked, and whether its time has run out.
            let mut model: VecDeque<(Instant, bool)> = VecDeque::new();
            let mut now = Instant::now();
            for step in steps {
                match step {
                    Step::Push => {
                        outstanding.push(now, now + LIMIT, Waiting::Probe);
                        model.push_back((now, false));
                    }
                    Step::Reply => {
                        let expected = model.pop_front().map(|(_, late)| match late {
                            true => "nobody",
                            false => "probe",
                        });
                        case.reaches(match expected {
                            None => "a reply that nobody asked for",
                            Some("nobody") => "a reply that is late",
                            Some(_) => "a reply in time",
                        });
                        prop_assert_eq!(outstanding.replied().as_ref().map(kind), expected);
                    }
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                }
                let had_run_out = model.iter().any(|(_, late)| *late);
                let mut due = 0;
                for (asked, late) in &mut model {
                    if !*late && *asked + LIMIT <= now {
                        (*late, due) = (true, due + 1);
                    }
                }
                case.reaches_if(due > 1, "several that run out together");
                case.reaches_if(
                    due > 0 && had_run_out,
                    "one that runs out behind others that have",
                );
                for _ in 0..due {
                    prop_assert_eq!(outstanding.next_run_out(now).as_ref().map(kind), Some("probe"));
                }
                prop_assert!(outstanding.next_run_out(now).is_none());
                prop_assert_eq!(outstanding.len(), model.len());
                prop_assert_eq!(outstanding.oldest(), model.front().map(|(asked, _)| *asked));
                let next = model.iter().find(|(_, late)| !late);
                prop_assert_eq!(outstanding.next_deadline(), next.map(|(asked, _)| *asked + LIMIT));
            }
            Ok(())
        });
    }

    #[test]
    fn error_texts_of_a_server_are_cleaned_and_truncated() {
        let refused = |text: &str| Expects::Value.judge(Reply::Error(text.to_owned().into()));
        let shown = |text: &str| Err(CacheError::Refused(text.into()));
        assert_eq!(refused("OOM at\x07 last"), shown("OOM at last"));
        assert_eq!(refused(&"x".repeat(500)), shown(&"x".repeat(120)));
    }

    #[test]
    fn replies_of_an_unexpected_type_are_garbled() {
        let ok = Reply::Simple("OK".into());
        assert_eq!(Expects::Word("OK").judge(ok.clone()), Ok(ok.clone()));
        assert_eq!(Expects::Word("PONG").judge(ok.clone()), Err(CacheError::Garbled));
        assert_eq!(Expects::Value.judge(ok), Err(CacheError::Garbled));
        assert_eq!(Expects::Value.judge(Reply::Integer(1)), Err(CacheError::Garbled));
        let error = Reply::Error("ERR unknown command 'X', with args beginning with: 'a key'".into());
        assert_eq!(Expects::Anything.judge(error.clone()), Ok(error.clone()));
        assert_eq!(
            Expects::Value.judge(error),
            Err(CacheError::Refused("ERR unknown command 'X'".into()))
        );
    }
}
