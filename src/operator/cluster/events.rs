//! Kubernetes Events: one for each change of a farm, none for a lasting state.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder};
use tracing::debug;

use crate::api::{Condition, ConditionStatus, ConditionType, Reason};
use crate::operator::metrics::OperatorMetrics;
use crate::runtime::kubernetes::describe;

/// Maximum length of a note, in bytes; the API server rejects longer ones.
const LONGEST_NOTE: usize = 1024;

/// A Kubernetes Event to publish.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct NewEvent {
    warning: bool,
    reason: String,
    action: &'static str,
    note: String,
}

impl NewEvent {
    pub(crate) fn normal(reason: impl ToString, action: &'static str, note: impl Into<String>) -> Self {
        Self {
            warning: false,
            reason: reason.to_string(),
            action,
            note: note.into(),
        }
    }

    pub(crate) fn warning(reason: impl ToString, action: &'static str, note: impl Into<String>) -> Self {
        Self {
            warning: true,
            reason: reason.to_string(),
            action,
            note: note.into(),
        }
    }
}

/// Publishes Events. One instance serves all farms, because it aggregates repeated Events.
pub(crate) struct Events {
    recorder: Recorder,
}

impl Events {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            recorder: Recorder::new(client, "tlsfarm-operator".into()),
        }
    }

    /// Publishes Events about `farm`. Errors are only logged.
    pub(crate) async fn publish(
        &self,
        farm: &ObjectReference,
        events: impl IntoIterator<Item = NewEvent>,
        metrics: &OperatorMetrics,
    ) {
        for event in events {
            let event = Event {
                type_: if event.warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: event.reason,
                note: Some(shortened(event.note)),
                action: event.action.to_owned(),
                secondary: None,
            };
            match self.recorder.publish(&event, farm).await {
                Ok(()) => metrics.wrote("Event"),
                Err(error) => debug!(error = describe(&error), "failed to publish an event"),
            }
        }
    }
}

/// Returns the Events for a change of conditions.
pub(crate) fn transitions(before: &[Condition], after: &[Condition]) -> Vec<NewEvent> {
    changed(before, after)
        .filter_map(|condition| transition(before, condition))
        .collect()
}

/// The conditions in `after` whose status or reason differs from `before`.
pub(crate) fn changed<'a>(
    before: &'a [Condition],
    after: &'a [Condition],
) -> impl Iterator<Item = &'a Condition> {
    after.iter().filter(|condition| {
        let same = |last: &Condition| {
            (last.type_, last.status, last.reason) == (condition.type_, condition.status, condition.reason)
        };
        !before.iter().any(same)
    })
}

fn transition(before: &[Condition], after: &Condition) -> Option<NewEvent> {
    let last = before.iter().find(|condition| condition.type_ == after.type_);
    match (after.type_, after.status) {
        (ConditionType::Ready, ConditionStatus::True) => {
            Some(NewEvent::normal(after.reason, "Reconcile", after.message.clone()))
        }
        // Ready only summarizes conditions that have their own events.
        (ConditionType::Ready, _) => None,
        (_, ConditionStatus::False) => {
            let ordinary = match after.reason {
                // Ordinary, or already reported by the event of the ring write.
                Reason::Distributing | Reason::RingRepaired | Reason::ScaledToZero => true,
                // The proxies are starting for the first time.
                Reason::ProxiesUnavailable => last.is_none_or(|last| last.status != ConditionStatus::True),
                _ => false,
            };
            (!ordinary).then(|| NewEvent::warning(after.reason, "Reconcile", after.message.clone()))
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
    fn an_unchanged_condition_makes_no_event_and_a_new_reason_does() {
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
        let events = transitions(&[missing], &[mismatch]);
        assert_eq!(
            events,
            [NewEvent::warning(Reason::KeyMismatch, "Reconcile", "why")]
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

    /// Events of a change from one type, status and reason to another; `None` before a new condition.
    fn events(
        type_: ConditionType,
        before: Option<(ConditionStatus, Reason)>,
        after: (ConditionStatus, Reason),
    ) -> Vec<NewEvent> {
        let before: Vec<Condition> = before
            .map(|(status, reason)| condition(type_, status, reason))
            .into_iter()
            .collect();
        transitions(&before, &[condition(type_, after.0, after.1)])
    }

    #[test]
    fn only_becoming_ready_is_an_event_since_other_conditions_report_failures() {
        use ConditionStatus::{False, True};
        let ready = [NewEvent::normal(Reason::FarmReady, "Reconcile", "why")];
        let before = Some((False, Reason::Progressing));
        assert_eq!(
            events(ConditionType::Ready, before, (True, Reason::FarmReady)),
            ready
        );
        assert_eq!(
            events(ConditionType::Ready, None, (True, Reason::FarmReady)),
            ready
        );
        let same = Some((True, Reason::FarmReady));
        assert_eq!(events(ConditionType::Ready, same, (True, Reason::FarmReady)), []);
        assert_eq!(
            events(ConditionType::Ready, same, (False, Reason::BackendNotFound)),
            []
        );
    }

    #[test]
    fn a_condition_that_becomes_false_is_a_warning_except_in_ordinary_work() {
        use ConditionStatus::{False, True, Unknown};
        for (type_, good, bad) in [
            (ConditionType::Accepted, Reason::Valid, Reason::HostnameConflict),
            (
                ConditionType::CertificatesReady,
                Reason::CertificatesLoaded,
                Reason::CertificateExpired,
            ),
            (
                ConditionType::BackendsReady,
                Reason::BackendsResolved,
                Reason::BackendNotFound,
            ),
            (
                ConditionType::Available,
                Reason::ProxiesReady,
                Reason::ProxiesUnavailable,
            ),
            (
                ConditionType::KeysSynced,
                Reason::Acknowledged,
                Reason::AcknowledgementOverdue,
            ),
            (
                ConditionType::SessionCacheReady,
                Reason::CacheReachable,
                Reason::CacheUnreachable,
            ),
            (
                ConditionType::TrustedProxiesSafe,
                Reason::NodesNotTrusted,
                Reason::NodesTrusted,
            ),
        ] {
            let warning = [NewEvent::warning(bad, "Reconcile", "why")];
            assert_eq!(
                events(type_, Some((True, good)), (False, bad)),
                warning,
                "{type_}"
            );
            assert_eq!(events(type_, Some((False, bad)), (True, good)), [], "{type_}");
            assert_eq!(
                events(type_, Some((True, good)), (Unknown, Reason::Pending)),
                [],
                "{type_}"
            );
        }
        for reason in [Reason::Distributing, Reason::RingRepaired] {
            let synced = Some((True, Reason::Acknowledged));
            assert_eq!(events(ConditionType::KeysSynced, synced, (False, reason)), []);
        }
        let serving = Some((True, Reason::ProxiesReady));
        assert_eq!(
            events(ConditionType::Available, serving, (False, Reason::ScaledToZero)),
            []
        );
        let scaled_up = Some((False, Reason::ScaledToZero));
        assert_eq!(
            events(
                ConditionType::Available,
                scaled_up,
                (False, Reason::ProxiesUnavailable)
            ),
            []
        );
    }

    #[test]
    fn notes_within_the_api_limit_are_not_truncated() {
        let longest = "x".repeat(LONGEST_NOTE);
        assert_eq!(shortened(longest.clone()), longest);
        assert_eq!(shortened(longest + "x"), "x".repeat(LONGEST_NOTE - 3) + "…");
    }

    #[test]
    fn long_notes_are_truncated_at_a_character_boundary() {
        let note = shortened("ä".repeat(2000));
        assert!(note.len() <= LONGEST_NOTE && note.ends_with('…'));
    }
}
