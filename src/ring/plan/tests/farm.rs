//! A farm of three proxies that load each ring at different times, with an operator that may be away for days or lose the
//! ring, under any order of events. The same model must find mistakes that are planted in it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::reached::{Case, check};

const PROXIES: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Time passes.
    Pass(i64),
    /// One proxy loads the stored ring.
    Refresh(usize),
    /// The operator receives the report of one proxy.
    Report(usize),
    /// Every proxy loads the stored ring, and the operator receives their reports.
    CatchUp,
    /// The operator plans.
    Reconcile,
    /// Somebody requests a rotation.
    Request,
    /// The Secret was lost, and the operator writes the same keys again.
    Repair,
    /// The Secret was lost while the operator restarted, so it makes new keys.
    Lose,
    /// The operator is away. When it returns, it receives the reports of all proxies.
    Absence(i64),
}

/// How late proxies load a ring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lag {
    /// Within the 24 hours that the operator waits. The operator may be away, and may lose the ring.
    Long,
    /// Within the ten minutes that the operator waits. The operator plans at least every six hours.
    Short,
}

/// A mistake that the model must find.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Bug {
    /// A rotation does not wait for acknowledgements.
    NoWait,
    /// The generation that a proxy has loaded counts instead of the keys that it can decrypt with, and a next key that has
    /// expired is promoted.
    GenerationsCount,
    /// A ring that replaces a lost one has a primary that encrypts.
    RepairSeals,
}

const OPERATOR_PLANS: i64 = 6 * 3600;

struct Farm {
    lag: Lag,
    bug: Option<Bug>,
    policy: RotationPolicy,
    clock: i64,
    planned: i64,
    stored: Rc<Ring>,
    mounted: Vec<Rc<Ring>>,
    reports: Vec<Acknowledgement>,
    behind_since: Option<i64>,
    requested: Option<RotationRequest>,
    requests: u32,
    /// Keys that the operator has lost. Their tickets are lost with them.
    lost: BTreeSet<KeyId>,
    /// When each key last encrypted a ticket on any proxy.
    last_sealed: BTreeMap<KeyId, i64>,
    case: Case,
}

impl Farm {
    fn new(lag: Lag, rotation_interval: SignedDuration, bug: Option<Bug>) -> Self {
        let max_unacked_wait = match lag {
            Lag::Long => SignedDuration::from_hours(24),
            Lag::Short => POLICY.max_unacked_wait,
        };
        let policy = RotationPolicy {
            rotation_interval,
            max_unacked_wait,
            ..POLICY
        };
        let stored = Rc::new(Ring::new(1, secret(), secret(), &policy, at(0)));
        let mut farm = Self {
            lag,
            bug,
            policy,
            clock: 0,
            planned: 0,
            mounted: vec![stored.clone(); PROXIES],
            stored,
            reports: Vec::new(),
            behind_since: None,
            requested: None,
            requests: 0,
            lost: BTreeSet::new(),
            last_sealed: BTreeMap::new(),
            case: Case::default(),
        };
        farm.reports = (0..PROXIES).map(|n| farm.report(n)).collect();
        farm
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Pass(seconds) => self.pass(seconds)?,
            Step::Refresh(n) => self.mounted[n] = Rc::clone(&self.stored),
            Step::Report(n) => self.reports[n] = self.report(n),
            Step::CatchUp => self.catch_up(),
            Step::Reconcile => self.reconcile()?,
            Step::Request => {
                self.requests += 1;
                self.requested = Some(request(&self.requests.to_string(), self.clock));
            }
            Step::Repair => {
                let generation = self.stored.generation + 1;
                self.write(|ring, now| ring.reissued(generation, now));
            }
            Step::Lose if self.lag == Lag::Long => self.lose(),
            Step::Absence(seconds) if self.lag == Lag::Long => {
                self.pass(seconds)?;
                self.reports = (0..PROXIES).map(|n| self.report(n)).collect();
            }
            Step::Lose | Step::Absence(_) => {}
        }
        self.check()
    }

    /// What a proxy reports now: by its clock, keys may have expired since it loaded its ring.
    fn report(&self, n: usize) -> Acknowledgement {
        let (ring, now) = (&self.mounted[n], at(self.clock));
        let open = ring.keys().filter(|key| now < key.open_until).map(|key| key.id);
        Acknowledgement {
            proxy: format!("proxy-{n}"),
            generation: Some(ring.generation),
            opens: (self.bug != Some(Bug::GenerationsCount)).then(|| open.collect()),
        }
    }

    fn lose(&mut self) {
        self.case.reaches("loses the ring");
        self.lost.extend(self.stored.keys().map(|key| key.id));
        let (generation, policy, now) = (self.stored.generation + 1, self.policy, at(self.clock));
        let fresh = Ring::new(generation, secret(), secret(), &policy, now);
        self.stored = Rc::new(match self.bug {
            Some(Bug::RepairSeals) => fresh,
            _ => fresh.without_sealing(now),
        });
    }

    /// Lets time pass in which every proxy loads a ring within the time that the operator waits.
    fn pass(&mut self, seconds: i64) -> Result<(), TestCaseError> {
        let end = self.clock + seconds;
        while self.clock < end {
            let wait = self.policy.max_unacked_wait.as_secs();
            let too_late = self.behind_since.map(|since| since + wait);
            let plans = self.lag == Lag::Short && self.planned + OPERATOR_PLANS <= end;
            if let Some(too_late) = too_late.filter(|too_late| *too_late <= end) {
                self.clock = self.clock.max(too_late - 1);
                self.check()?;
                self.catch_up();
            } else if plans {
                self.clock = self.planned + OPERATOR_PLANS;
                self.reconcile()?;
            } else {
                break;
            }
            self.check()?;
        }
        self.clock = end;
        Ok(())
    }

    /// Records since when not all proxies have loaded the stored ring and reported it.
    fn note_lag(&mut self) {
        let current = self.stored.generation;
        let all_current = self.mounted.iter().all(|ring| ring.generation == current)
            && self
                .reports
                .iter()
                .all(|report| report.generation == Some(current));
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
        self.reports = (0..PROXIES).map(|n| self.report(n)).collect();
    }

    fn plan_at(&self, now: Timestamp) -> Plan {
        let plan = |ring: &Ring| plan(ring, &self.policy, self.requested.as_ref(), &self.reports, now);
        match (self.bug, plan(&self.stored)) {
            (Some(Bug::NoWait), Plan::Wait { .. }) => Plan::Rotate {
                request: None,
                late: Vec::new(),
            },
            (Some(Bug::GenerationsCount), Plan::Renew) => {
                let mut ring = (*self.stored).clone();
                ring.next.open_until = now + SignedDuration::from_hours(1000);
                plan(&ring)
            }
            (_, planned) => planned,
        }
    }

    fn reconcile(&mut self) -> Result<(), TestCaseError> {
        self.planned = self.clock;
        let (now, policy) = (at(self.clock), self.policy);
        let planned = self.plan_at(now);
        match planned {
            Plan::Rotate { request, late } => {
                prop_assert!(late.is_empty(), "a proxy was late although none is");
                self.case.reaches(match &request {
                    _ if !self.stored.may_seal(now) => "promotes the first key that may encrypt",
                    Some(_) => "rotates on request",
                    None => "rotates on schedule",
                });
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
            Plan::Renew => {
                self.case.reaches("renews a next key");
                self.write(|ring, now| ring.with_next(secret(), &policy, now));
                prop_assert!(!matches!(self.plan_at(now), Plan::Renew));
            }
            Plan::Clamp => prop_assert!(false, "no clock is wrong here"),
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
                prop_assert!(!matches!(then, Plan::Keep { .. } | Plan::Wait { .. }), "{then:?}");
            }
            Plan::Full { until } => {
                self.case.reaches("is full");
                prop_assert_eq!(self.stored.keys().count(), MAX_KEYS);
                prop_assert!(until > now);
                let then = self.plan_at(until);
                prop_assert!(matches!(then, Plan::Rotate { .. } | Plan::Renew), "{then:?}");
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        self.note_lag();
        let now = at(self.clock);
        prop_assert!(self.stored.keys().count() <= MAX_KEYS);
        let mut in_use = self.mounted.clone();
        in_use.dedup_by(|one, other| Rc::ptr_eq(one, other));
        let sealing = in_use.iter().filter(|ring| ring.may_seal(now));
        for key in sealing
            .map(|ring| ring.primary.id)
            .filter(|id| !self.lost.contains(id))
        {
            for opener in &in_use {
                let opens = opener.keys().any(|one| one.id == key && now < one.open_until);
                prop_assert!(opens, "a proxy encrypts with a key that another does not have");
            }
        }
        match self.lag {
            Lag::Short => self.check_tickets(&in_use),
            Lag::Long => Ok(()),
        }
    }

    /// Every ticket can be decrypted on every proxy for its whole lifetime.
    fn check_tickets(&mut self, in_use: &[Rc<Ring>]) -> Result<(), TestCaseError> {
        let now = at(self.clock);
        for sealer in in_use {
            prop_assert!(sealer.may_seal(now), "a proxy issues no tickets");
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
        4 => (0..PROXIES).prop_map(Step::Report),
        2 => Just(Step::CatchUp),
        6 => Just(Step::Reconcile),
        1 => Just(Step::Request),
        1 => Just(Step::Repair),
        1 => Just(Step::Lose),
        1 => (3600i64..100 * 3600).prop_map(Step::Absence),
    ];
    // Rotations are requested all the time, so that the ring fills up.
    let busy = prop_oneof![
        20 => (1i64..20).prop_map(Step::Pass),
        2 => (16_000i64..20_000).prop_map(Step::Pass),
        20 => (0..PROXIES).prop_map(Step::Refresh),
        20 => (0..PROXIES).prop_map(Step::Report),
        80 => Just(Step::CatchUp),
        80 => Just(Step::Reconcile),
        80 => Just(Step::Request),
    ];
    let steps = prop_oneof![
        proptest::collection::vec(quiet, 1..400),
        proptest::collection::vec(busy, 200..900),
    ];
    let lag = prop_oneof![Just(Lag::Long), Just(Lag::Short)];
    // Shorter than tickets last, and longer, so that keys expire between rotations.
    let interval = prop_oneof![Just(1), Just(24)].prop_map(SignedDuration::from_hours);
    (lag, interval, steps)
}

/// S4 of the requirements: at every instant, every proxy can decrypt with the key that any proxy encrypts with, after any
/// lag within the operator's patience, any absence of the operator, and the loss of the ring, except tickets of keys that
/// nobody has any more; and if the lag is short, every ticket lasts for its lifetime.
#[test]
fn every_proxy_can_decrypt_what_any_proxy_encrypts() {
    let floors = [
        ("keeps", 49),                                  // 98
        ("waits", 42),                                  // 84 to 91
        ("rotates on schedule", 12),                    // 31 to 46
        ("rotates on request", 40),                     // 88
        ("drops expired keys", 3),                      // 14 to 20
        ("is full", 12),                                // 33 to 38
        ("loses the ring", 6),                          // 14 to 27
        ("promotes the first key that may encrypt", 6), // 12 to 27
        ("renews a next key", 5),                       // 10 to 25
    ];
    check(128, farms(), &floors, |(lag, interval, steps), case| {
        let mut farm = Farm::new(lag, interval, None);
        for step in steps {
            farm.step(step)?;
        }
        *case = farm.case;
        Ok(())
    });
}

#[test]
fn the_model_finds_planted_bugs() {
    for bug in [Bug::NoWait, Bug::GenerationsCount, Bug::RepairSeals] {
        let config = Config {
            failure_persistence: None,
            max_shrink_iters: 0,
            ..Config::with_cases(2000)
        };
        let outcome = TestRunner::new(config).run(&farms(), |(lag, interval, steps)| {
            let mut farm = Farm::new(lag, interval, Some(bug));
            steps.into_iter().try_for_each(|step| farm.step(step))
        });
        let error = outcome
            .err()
            .unwrap_or_else(|| panic!("the model did not find {bug:?}"))
            .to_string();
        assert!(error.contains("another does not have"), "{bug:?}: {error:.200}");
    }
}
