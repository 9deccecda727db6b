//! A farm of three proxies that load each ring late and at different times, under any order of events.

use std::collections::BTreeMap;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::reached::{Case, check};
use crate::ring::KeyId;

const PROXIES: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Time passes.
    Pass(i64),
    /// One proxy's mount catches up with the Secret.
    Refresh(usize),
    /// The operator hears from one proxy.
    Hear(usize),
    /// Every mount catches up, and the operator learns it.
    CatchUp,
    /// The operator looks at the ring.
    Reconcile,
    /// Somebody asks for a rotation.
    Ask,
    /// The Secret was lost, and the operator writes the same keys again.
    Repair,
}

/// How late proxies may load a ring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lag {
    /// As late as they like: the operator waits for them for more than a year.
    Any,
    /// Within the ten minutes for which the operator waits. The operator itself looks at least every six hours.
    WithinPatience,
}

const OPERATOR_LOOKS: i64 = 6 * 3600;

struct Farm {
    lag: Lag,
    policy: RotationPolicy,
    clock: i64,
    looked: i64,
    stored: Rc<Ring>,
    mounted: Vec<Rc<Ring>>,
    heard: [Option<u64>; PROXIES],
    behind_since: Option<i64>,
    asked: Option<RotationRequest>,
    requests: u32,
    /// When each key last sealed a ticket on any proxy.
    last_sealed: BTreeMap<KeyId, i64>,
    case: Case,
}

impl Farm {
    fn new(lag: Lag, rotation_interval: SignedDuration) -> Self {
        let max_unacked_wait = match lag {
            Lag::Any => SignedDuration::from_hours(10_000),
            Lag::WithinPatience => POLICY.max_unacked_wait,
        };
        let policy = RotationPolicy {
            rotation_interval,
            max_unacked_wait,
            ..POLICY
        };
        let stored = Rc::new(Ring::new(1, secret(), secret(), &policy, at(0)));
        Self {
            lag,
            policy,
            clock: 0,
            looked: 0,
            mounted: vec![stored.clone(); PROXIES],
            stored,
            heard: [Some(1); PROXIES],
            behind_since: None,
            asked: None,
            requests: 0,
            last_sealed: BTreeMap::new(),
            case: Case::default(),
        }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Pass(seconds) => self.pass(seconds)?,
            Step::Refresh(n) => self.mounted[n] = Rc::clone(&self.stored),
            Step::Hear(n) => self.heard[n] = Some(self.mounted[n].generation),
            Step::CatchUp => self.catch_up(),
            Step::Reconcile => self.reconcile()?,
            Step::Ask => {
                self.requests += 1;
                self.asked = Some(request(&self.requests.to_string(), self.clock));
            }
            Step::Repair => {
                let generation = self.stored.generation + 1;
                self.write(|ring, now| ring.reissued(generation, now));
            }
        }
        self.check()
    }

    fn pass(&mut self, seconds: i64) -> Result<(), TestCaseError> {
        let end = self.clock + seconds;
        if self.lag == Lag::WithinPatience {
            while self.clock < end {
                let patience = self.policy.max_unacked_wait.as_secs();
                let too_late = self.behind_since.map(|since| since + patience);
                if let Some(too_late) = too_late.filter(|too_late| *too_late <= end) {
                    self.clock = self.clock.max(too_late - 1);
                    self.check()?;
                    self.catch_up();
                } else if self.looked + OPERATOR_LOOKS <= end {
                    self.clock = self.looked + OPERATOR_LOOKS;
                    self.reconcile()?;
                } else {
                    break;
                }
                self.check()?;
            }
        }
        self.clock = end;
        Ok(())
    }

    /// Keeps account of the first change that not all proxies have acknowledged.
    fn note_lag(&mut self) {
        let current = |ring: &Rc<Ring>| ring.generation == self.stored.generation;
        let all_current = self.mounted.iter().all(current)
            && self
                .heard
                .iter()
                .all(|heard| *heard == Some(self.stored.generation));
        self.behind_since = match self.behind_since {
            _ if all_current => None,
            None => Some(self.clock),
            since => since,
        };
    }

    fn write(&mut self, change: impl FnOnce(Ring, Timestamp) -> Ring) {
        self.stored = Rc::new(change((*self.stored).clone(), at(self.clock)));
    }

    fn catch_up(&mut self) {
        self.mounted.fill(Rc::clone(&self.stored));
        self.heard = [Some(self.stored.generation); PROXIES];
    }

    fn plan_at(&self, now: Timestamp) -> Plan {
        plan(
            &self.stored,
            &self.policy,
            self.asked.as_ref(),
            &proxies(&self.heard),
            now,
        )
    }

    fn reconcile(&mut self) -> Result<(), TestCaseError> {
        self.looked = self.clock;
        let now = at(self.clock);
        match self.plan_at(now) {
            Plan::Rotate { request, late } => {
                prop_assert!(late.is_empty(), "nobody exhausts the operator's patience");
                self.case.reaches(match &request {
                    Some(_) => "rotates on request",
                    None => "rotates on schedule",
                });
                let policy = self.policy;
                self.write(|ring, now| ring.rotated(secret(), request.as_ref(), &policy, now));
                if request.is_some() {
                    let again = matches!(self.plan_at(now), Plan::Rotate { .. } | Plan::Wait { .. });
                    prop_assert!(!again, "a request was carried out twice");
                }
            }
            Plan::Expire => {
                self.case.reaches("drops expired keys");
                let before = self.stored.previous.len();
                self.write(Ring::without_expired);
                prop_assert!(self.stored.previous.len() < before, "written for nothing");
                prop_assert!(!matches!(self.plan_at(now), Plan::Expire));
            }
            Plan::Keep { until } => {
                self.case.reaches("keeps");
                prop_assert!(until > now);
                let then = self.plan_at(until);
                prop_assert!(!matches!(then, Plan::Keep { .. }), "{then:?}");
            }
            Plan::Wait { missing, until } => {
                self.case.reaches("waits");
                prop_assert!(!missing.is_empty());
                prop_assert!(until > now);
                let then = self.plan_at(until);
                prop_assert!(
                    matches!(then, Plan::Rotate { .. } | Plan::Full { .. }),
                    "{then:?}"
                );
            }
            Plan::Full { until } => {
                self.case.reaches("is full");
                prop_assert_eq!(self.stored.keys().count(), MAX_KEYS);
                prop_assert!(until > now);
                let then = self.plan_at(until);
                prop_assert!(matches!(then, Plan::Rotate { .. }), "{then:?}");
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        self.note_lag();
        prop_assert!(self.stored.keys().count() <= MAX_KEYS);
        let mut in_use = self.mounted.clone();
        in_use.dedup_by(|one, other| Rc::ptr_eq(one, other));
        for sealer in &in_use {
            for opener in &in_use {
                let known = opener.keys().any(|key| key.id == sealer.primary.id);
                prop_assert!(known, "a proxy seals what another cannot open");
            }
        }
        if self.lag == Lag::WithinPatience {
            self.check_tickets(&in_use)?;
        }
        Ok(())
    }

    /// Every ticket opens on every proxy for its whole lifetime.
    fn check_tickets(&mut self, in_use: &[Rc<Ring>]) -> Result<(), TestCaseError> {
        let now = at(self.clock);
        for sealer in in_use {
            prop_assert!(now < sealer.primary.seal_until, "a proxy may seal no more");
            self.last_sealed.insert(sealer.primary.id, self.clock);
        }
        let lifetime = self.policy.lifetime.as_secs();
        self.last_sealed
            .retain(|_, sealed| self.clock < *sealed + lifetime);
        for id in self.last_sealed.keys() {
            for opener in in_use {
                let opens = opener.keys().any(|key| key.id == *id && now < key.open_until);
                prop_assert!(opens, "a ticket does not last for its lifetime");
            }
        }
        Ok(())
    }
}

fn farms() -> impl Strategy<Value = (Lag, SignedDuration, Vec<Step>)> {
    let quiet = prop_oneof![
        4 => (1i64..400).prop_map(Step::Pass),
        2 => (400i64..20_000).prop_map(Step::Pass),
        4 => (0..PROXIES).prop_map(Step::Refresh),
        4 => (0..PROXIES).prop_map(Step::Hear),
        2 => Just(Step::CatchUp),
        6 => Just(Step::Reconcile),
        1 => Just(Step::Ask),
        1 => Just(Step::Repair),
    ];
    // A farm with constant rotation requests, so that its ring fills up.
    let busy = prop_oneof![
        20 => (1i64..20).prop_map(Step::Pass),
        2 => (16_000i64..20_000).prop_map(Step::Pass),
        20 => (0..PROXIES).prop_map(Step::Refresh),
        20 => (0..PROXIES).prop_map(Step::Hear),
        80 => Just(Step::CatchUp),
        80 => Just(Step::Reconcile),
        80 => Just(Step::Ask),
    ];
    let steps = prop_oneof![
        proptest::collection::vec(quiet, 1..400),
        proptest::collection::vec(busy, 200..900),
    ];
    let lag = prop_oneof![Just(Lag::Any), Just(Lag::WithinPatience)];
    // Shorter than tickets last, and longer, so that keys expire between rotations.
    let interval = prop_oneof![Just(1), Just(24)].prop_map(SignedDuration::from_hours);
    (lag, interval, steps)
}

/// S4 of the requirements: at every instant the primary of any proxy is in the ring of every other, with any lag, as long
/// as nobody exhausts the operator's patience; and where all load each change within that, every ticket lasts.
///
/// Measured: 99 % of the farms keep their ring for a while, 95 % wait for proxies and 98 % rotate on request; 27 to 38 % rotate
/// on schedule, 18 % drop expired keys, and 26 to 39 % have a full ring at least once.
#[test]
fn no_proxy_ever_seals_what_another_cannot_open() {
    let floors = [
        ("keeps", 50),
        ("waits", 47),
        ("rotates on schedule", 16),
        ("rotates on request", 48),
        ("drops expired keys", 4),
        ("is full", 9),
    ];
    check(128, farms(), &floors, |(lag, interval, steps), case| {
        let mut farm = Farm::new(lag, interval);
        for step in steps {
            farm.step(step)?;
        }
        *case = farm.case;
        Ok(())
    });
}
