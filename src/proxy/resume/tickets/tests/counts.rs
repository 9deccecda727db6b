//! What is counted of each session, by the names that users see.

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::*;

struct Counted {
    farm: Farm,
    registry: Registry,
}

impl Counted {
    fn new(ring: Option<&Ring>) -> Self {
        let mut registry = Registry::default();
        let farm = Farm {
            keys: Arc::default(),
            metrics: ProxyMetrics::register(&mut registry),
        };
        if let Some(ring) = ring {
            farm.keys.replace(ring, at(0));
        }
        Self { farm, registry }
    }

    /// All outcomes of one counter that are not zero.
    fn outcomes(&self, counter: &str) -> Vec<(String, u64)> {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("encodes");
        let prefix = format!("{counter}_total{{outcome=\"");
        let mut outcomes: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix)?.split_once("\"} "))
            .map(|(outcome, count)| (outcome.to_owned(), count.parse().expect("a number")))
            .filter(|(_, count)| *count > 0)
            .collect();
        outcomes.sort();
        outcomes
    }

    #[track_caller]
    fn assert(&self, counter: &str, expected: &[(&str, u64)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(outcome, count)| ((*outcome).to_owned(), *count))
            .collect();
        assert_eq!(self.outcomes(counter), expected);
    }
}

#[test]
fn every_ticket_that_is_asked_for_is_counted_once() {
    let counted = Counted::new(Some(&ring()));
    let farm = &counted.farm;
    let connection = farm.connection(TicketVersion::Tls13);
    assert!(connection.seal(b"s", at(0)).is_some());
    assert!(connection.seal(&[7; 2000], at(0)).is_none());
    assert!(connection.seal(b"s", at(25 * 3600)).is_none());
    connection.set_certificate_until(at(0));
    assert!(connection.seal(b"s", at(0)).is_none());
    assert!(
        farm.cached(TicketVersion::Tls13, None)
            .seal(b"s", at(0))
            .is_some()
    );
    counted.assert(
        "tickets_issued",
        &[
            ("key_expired", 1),
            ("sealed", 2),
            ("session_expired", 1),
            ("too_large", 1),
        ],
    );

    let counted = Counted::new(None);
    let farm = &counted.farm;
    assert!(farm.connection(TicketVersion::Tls13).seal(b"s", at(0)).is_none());
    for room in [StoreAllowance::NoCache, StoreAllowance::OverBudget] {
        let single_use = ResumptionRules {
            kind: TicketKind::SingleUse,
            ..rules(scope().single_use(), Some(TICKETS), TicketVersion::Tls13)
        };
        let connection = farm.connection_with(single_use, Cached { found: None, room });
        assert!(connection.seal(b"s", at(0)).is_none());
    }
    counted.assert(
        "tickets_issued",
        &[("no_cache", 1), ("no_ring", 1), ("over_budget", 1)],
    );
}

#[test]
fn every_known_session_id_is_counted_once_and_separately() {
    let counted = Counted::new(Some(&ring()));
    let farm = &counted.farm;
    let id = [7; 32];
    let issuer = farm.cached(TicketVersion::Tls12, None);
    assert!(issuer.keep(&id, b"session", at(0)));
    let entry = issuer.take_entries().remove(0);
    let opened_at = |second| {
        let connection = farm.cached(TicketVersion::Tls12, Some((&id, CacheKind::SessionId, &entry)));
        (connection.open_session_id(&id, at(second)).is_some(), connection)
    };
    for (fate, second, opens) in [
        (RESUMED, 1, true),
        (FULL, 1, true),
        (None, 1, true),
        (None, 4 * 3600, false),
    ] {
        let (opened, connection) = opened_at(second);
        assert_eq!(opened, opens);
        connection.settle(fate);
    }
    let unknown = farm.cached(TicketVersion::Tls12, None);
    assert!(unknown.open_session_id(&id, at(1)).is_none());
    counted.assert(
        "session_ids_offered",
        &[("declined", 2), ("expired", 1), ("ok", 1)],
    );
    counted.assert("tickets_offered", &[]);
}

#[test]
fn a_session_is_counted_once_rustls_has_decided_on_it() {
    let counted = Counted::new(Some(&ring()));
    let farm = &counted.farm;
    let ticket = farm
        .connection(TicketVersion::Tls13)
        .seal(b"s", at(0))
        .expect("sealed");
    let connection = farm.connection(TicketVersion::Tls13);
    connection.open(&ticket, at(1)).expect("opened");
    connection.settle(None);
    counted.assert("tickets_offered", &[]);
    connection.settle(RESUMED);
    connection.settle(RESUMED);
    drop(connection);
    counted.assert("tickets_offered", &[("ok", 1)]);
}
