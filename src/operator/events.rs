//! Events: what happened to a farm, once for each change and never for a state that lasts.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder};
use tracing::debug;

use super::metrics::Metrics;
use crate::api::{Condition, ConditionStatus, ConditionType, Reason};
use crate::runtime::cluster::describe;

/// The API server refuses longer notes.
const LONGEST_NOTE: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Happening {
    warning: bool,
    reason: String,
    action: &'static str,
    note: String,
}

impl Happening {
    pub(super) fn normal(reason: impl ToString, action: &'static str, note: impl Into<String>) -> Self {
        Self {
            warning: false,
            reason: reason.to_string(),
            action,
            note: note.into(),
        }
    }

    pub(super) fn warning(reason: impl ToString, action: &'static str, note: impl Into<String>) -> Self {
        Self {
            warning: true,
            reason: reason.to_string(),
            action,
            note: note.into(),
        }
    }
}

/// Publishes events. There is one for all farms, since it joins those that repeat.
pub(super) struct Events {
    recorder: Recorder,
}

impl Events {
    pub(super) fn new(client: Client) -> Self {
        Self {
            recorder: Recorder::new(client, "tlsfarm-operator".into()),
        }
    }

    /// Publishes what happened to `farm`, best effort.
    pub(super) async fn publish(
        &self,
        farm: &ObjectReference,
        happenings: impl IntoIterator<Item = Happening>,
        metrics: &Metrics,
    ) {
        for happening in happenings {
            let event = Event {
                type_: if happening.warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: happening.reason,
                note: Some(shortened(happening.note)),
                action: happening.action.to_owned(),
                secondary: None,
            };
            match self.recorder.publish(&event, farm).await {
                Ok(()) => metrics.wrote("Event"),
                Err(error) => debug!(error = describe(&error), "cannot publish an event"),
            }
        }
    }
}

/// What a change of conditions means to somebody who reads events.
pub(super) fn transitions(before: &[Condition], after: &[Condition]) -> Vec<Happening> {
    after
        .iter()
        .filter_map(|condition| transition(before, condition))
        .collect()
}

fn transition(before: &[Condition], after: &Condition) -> Option<Happening> {
    let last = before.iter().find(|condition| condition.type_ == after.type_);
    if last.is_some_and(|last| (last.status, last.reason) == (after.status, after.reason)) {
        return None;
    }
    match (after.type_, after.status) {
        (ConditionType::Ready, ConditionStatus::True) => Some(Happening::normal(
            after.reason,
            "Reconcile",
            after.message.clone(),
        )),
        // It sums the others up.
        (ConditionType::Ready, _) => None,
        (_, ConditionStatus::False) => {
            let ordinary = match after.reason {
                // The write of the ring told of it.
                Reason::Distributing | Reason::RingRepaired | Reason::ScaledToZero => true,
                // Proxies that are being started for the first time.
                Reason::ProxiesUnavailable => last.is_none_or(|last| last.status != ConditionStatus::True),
                _ => false,
            };
            (!ordinary).then(|| Happening::warning(after.reason, "Reconcile", after.message.clone()))
        }
        _ => None,
    }
}

fn shortened(mut note: String) -> String {
    if note.len() > LONGEST_NOTE {
        let end = (0..=LONGEST_NOTE - "…".len())
            .rev()
            .find(|&end| note.is_char_boundary(end));
        note.truncate(end.unwrap_or_default());
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn condition(type_: ConditionType, status: ConditionStatus, reason: Reason) -> Condition {
        Condition {
            type_,
            status,
            reason,
            message: "why".into(),
            observed_generation: 1,
            last_transition_time: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_state_that_lasts_makes_no_event_and_a_new_reason_does() {
        use ConditionType::CertificatesReady;
        let missing = condition(
            CertificatesReady,
            ConditionStatus::False,
            Reason::CertificateMissing,
        );
        let mismatch = condition(CertificatesReady, ConditionStatus::False, Reason::KeyMismatch);
        assert_eq!(transitions(&[], std::slice::from_ref(&missing)).len(), 1);
        assert_eq!(
            transitions(std::slice::from_ref(&missing), std::slice::from_ref(&missing)),
            []
        );
        let told = transitions(&[missing], &[mismatch]);
        assert_eq!(
            told,
            [Happening::warning(Reason::KeyMismatch, "Reconcile", "why")]
        );
    }

    #[test]
    fn ordinary_work_makes_no_event() {
        let starting = condition(
            ConditionType::Available,
            ConditionStatus::False,
            Reason::ProxiesUnavailable,
        );
        let spreading = condition(
            ConditionType::KeysSynced,
            ConditionStatus::False,
            Reason::Distributing,
        );
        assert_eq!(transitions(&[], &[starting.clone(), spreading]), []);
        let serving = condition(
            ConditionType::Available,
            ConditionStatus::True,
            Reason::ProxiesReady,
        );
        assert_eq!(transitions(&[serving], &[starting]).len(), 1);
    }

    #[test]
    fn long_notes_are_cut_between_characters() {
        let note = shortened("ä".repeat(2000));
        assert!(note.len() <= LONGEST_NOTE && note.ends_with('…'));
    }
}
