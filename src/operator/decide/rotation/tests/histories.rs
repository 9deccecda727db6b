//! Whatever happens to a farm's ring, in any order.

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::reached::check;

/// What can happen to a farm's ring.
#[derive(Clone, Debug)]
enum Step {
    /// The operator passes over the farm.
    Pass,
    /// The operator loses its memory.
    Restart,
    /// The ring Secret is deleted.
    Delete,
    /// The ring Secret is overwritten with nonsense.
    Damage,
    /// A key is taken out of the ring Secret.
    Alter,
    /// The ring Secret is restored from a backup.
    Restore(usize),
    /// Somebody else's Secret has its name, or no longer has.
    Usurp(bool),
    /// A proxy's mount is refreshed; it takes the ring only if that is newer than its own.
    Load(usize),
    /// Somebody asks for a rotation.
    Ask(u8),
    /// Time passes, in hundredths of the rotation interval.
    Wait(i64),
    /// The farm is refused, or no longer.
    Refuse(bool),
}

/// Most steps come alone. A burst is a user who asks for rotation after rotation, each of which all proxies load: nothing
/// else fills a ring.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let alone = prop_oneof![
        4 => Just(Step::Pass),
        1 => Just(Step::Restart),
        1 => Just(Step::Delete),
        1 => Just(Step::Damage),
        1 => Just(Step::Alter),
        1 => (0usize..8).prop_map(Step::Restore),
        1 => proptest::bool::weighted(0.25).prop_map(Step::Usurp),
        4 => (0usize..PROXIES).prop_map(Step::Load),
        1 => any::<u8>().prop_map(Step::Ask),
        3 => (1i64..60).prop_map(Step::Wait),
        1 => proptest::bool::weighted(0.25).prop_map(Step::Refuse),
    ];
    let burst = (1u8..40).prop_map(|asked| {
        let loaded = (0..PROXIES).map(Step::Load);
        let rotation = |value| {
            [Step::Usurp(false), Step::Ask(value), Step::Pass]
                .into_iter()
                .chain(loaded.clone())
        };
        (0..asked).flat_map(rotation).collect()
    });
    let some = prop_oneof![60 => alone.prop_map(|step| vec![step]), 1 => burst];
    proptest::collection::vec(some, 1..200).prop_map(|steps| steps.concat())
}

const PROXIES: usize = 3;

/// Short tickets under a key of a whole day: previous keys expire long before the next rotation.
const DAILY: RotationPolicy = RotationPolicy {
    rotation_interval: SignedDuration::from_hours(24),
    lifetime: SignedDuration::from_hours(1),
    ..POLICY
};

fn policies() -> impl Strategy<Value = RotationPolicy> {
    prop_oneof![Just(POLICY), Just(DAILY)]
}

/// A farm's ring, who has seen what of it, and what the operator remembers.
#[derive(Default)]
struct World {
    secret: Option<Result<Ring, String>>,
    backups: Vec<Ring>,
    remembered: Option<Ring>,
    loaded: [Option<u64>; PROXIES],
    in_status: u64,
    clock: i64,
    asked: Option<RotationRequest>,
    usurped: bool,
    refused: bool,
}

impl World {
    /// Lets `step` happen. Returns what the operator decided, if it passed, in a word.
    fn happens(
        &mut self,
        step: Step,
        policy: &RotationPolicy,
    ) -> Result<Option<&'static str>, TestCaseError> {
        match step {
            Step::Pass => return self.pass(policy).map(Some),
            Step::Restart => self.remembered = None,
            Step::Delete => self.secret = None,
            Step::Damage => self.secret = self.secret.take().map(|_| Err("nonsense".into())),
            Step::Alter => {
                if let Some(Ok(ring)) = &mut self.secret {
                    ring.previous.pop();
                }
            }
            Step::Restore(n) => {
                if let Some(old) = self.backups.get(n) {
                    self.secret = Some(Ok(old.clone()));
                }
            }
            Step::Usurp(usurped) => self.usurped = usurped,
            Step::Load(n) => {
                if let Some(Ok(ring)) = self.secret.as_ref().filter(|_| !self.usurped) {
                    self.loaded[n] = self.loaded[n].max(Some(ring.generation));
                }
            }
            Step::Ask(value) => {
                let (value, seen_at) = (value.to_string(), at(self.clock));
                self.asked = Some(RotationRequest { value, seen_at });
            }
            Step::Wait(hundredths) => self.clock += policy.rotation_interval.as_secs() / 100 * hundredths,
            Step::Refuse(refused) => self.refused = refused,
        }
        Ok(None)
    }

    fn pass(&mut self, policy: &RotationPolicy) -> Result<&'static str, TestCaseError> {
        let now = at(self.clock);
        let proxies: Vec<_> = (0..)
            .zip(self.loaded)
            .map(|(n, generation)| {
                // Every ring that was ever written.
                let mut rings = self.backups.iter();
                let loaded = rings.find(|ring| Some(ring.generation) == generation);
                let open = |ring: &Ring| {
                    let open = ring.keys().filter(|key| now < key.open_until);
                    open.map(|key| key.id).collect()
                };
                Acknowledgement {
                    proxy: format!("proxy-{n}"),
                    generation,
                    opens: loaded.map(open),
                }
            })
            .collect();
        let behind = |ring: &Ring| {
            let behind = proxies.iter().filter(|proxy| !proxy.opens(ring.next.id, ring));
            behind.map(|proxy| proxy.proxy.clone()).collect::<Vec<_>>()
        };
        let newest = self.loaded.iter().flatten().copied().max().unwrap_or_default();
        let seen = self.remembered.as_ref().map_or(0, |ring| ring.generation);
        let generation = newest.max(seen).max(self.in_status);
        let stored = match self.secret.clone() {
            _ if self.usurped => StoredRing::Foreign(Ownership::Foreign),
            None => StoredRing::Missing,
            Some(Err(why)) => StoredRing::Damaged(why, version()),
            Some(Ok(ring)) => good(&ring),
        };
        let known = KnownRing {
            ring: self.remembered.as_ref(),
            generation,
        };
        let decision = decide(
            stored,
            known,
            !self.refused,
            policy,
            self.asked.as_ref(),
            &proxies,
            now,
        );
        let reached = match decision.expect("randomness") {
            Decision::None => {
                let is_new = self.secret.is_none() && generation == 0;
                prop_assert!(self.usurped || (self.refused && is_new));
                return Ok(if self.usurped {
                    "None, usurped"
                } else {
                    "None, refused"
                });
            }
            Decision::UnknownFormat(_) => panic!("no other release is about"),
            Decision::Keep(ring, plan) => {
                prop_assert!(!self.usurped && ring.generation >= generation);
                prop_assert_eq!(Some(&Ok((*ring).clone())), self.secret.as_ref());
                let reached = match plan {
                    Plan::Keep { until } => {
                        prop_assert!(until > now);
                        "Keep"
                    }
                    Plan::Wait { missing, until } => {
                        prop_assert!(until > now);
                        prop_assert_eq!(missing, behind(&ring));
                        "Keep, waits"
                    }
                    Plan::Full { .. } => "Keep, full",
                    carried_out => panic!("{carried_out:?} was not carried out"),
                };
                self.remembered = Some(*ring);
                reached
            }
            Decision::Write(ring, version, change) => {
                prop_assert!(!self.usurped && ring.generation > generation);
                prop_assert_eq!(
                    version.is_some(),
                    self.secret.is_some(),
                    "it replaces what was read"
                );
                let still_open = |ring: &Ring| -> Vec<_> {
                    ring.keys()
                        .filter(|key| now < key.open_until)
                        .map(|key| key.id)
                        .collect()
                };
                let reached = match (&change, &self.secret) {
                    (Change::Created, _) => {
                        prop_assert!(self.secret.is_none() && generation == 0 && !self.refused);
                        "Created"
                    }
                    (Change::Repaired(_), _) => match &self.remembered {
                        Some(last) => {
                            let ids = |ring: &Ring| ring.keys().map(|key| key.id).collect::<Vec<_>>();
                            prop_assert_eq!(ids(last), ids(&ring));
                            "Repaired, same keys"
                        }
                        None => {
                            let all_confirmed =
                                proxies.iter().all(|proxy| proxy.opens(ring.primary.id, &ring));
                            prop_assert!(
                                all_confirmed || !ring.may_seal(now),
                                "an unconfirmed key encrypts"
                            );
                            "Repaired, new keys"
                        }
                    },
                    (Change::Rotated { late }, Some(Ok(before))) => {
                        prop_assert_eq!(late, &behind(before));
                        prop_assert_eq!(&ring.primary.id, &before.next.id);
                        if late.is_empty() {
                            "Rotated"
                        } else {
                            "Rotated, late"
                        }
                    }
                    (Change::Expired, Some(Ok(before))) => {
                        prop_assert_eq!(still_open(&ring), still_open(before));
                        prop_assert_eq!(ring.keys().count(), still_open(&ring).len());
                        "Expired"
                    }
                    (Change::Renewed, Some(Ok(before))) => {
                        prop_assert_ne!(&ring.next.id, &before.next.id);
                        prop_assert_eq!(&ring.primary.id, &before.primary.id);
                        "Renewed"
                    }
                    _ => panic!("{change:?} of a ring that cannot be read"),
                };
                self.backups.push((*ring).clone());
                self.secret = Some(Ok((*ring).clone()));
                self.remembered = Some(*ring);
                reached
            }
        };
        self.in_status = self
            .in_status
            .max(self.remembered.as_ref().map_or(0, |ring| ring.generation));
        Ok(reached)
    }
}

/// Whatever happens to the Secret and to the operator, one pass makes a ring that every proxy takes, and which holds the
/// keys of the last one if the operator had seen that.
///
/// Beside each floor stands the share that was measured. About half of it is asked for.
#[test]
fn every_ring_that_is_written_is_newer_than_any_that_a_proxy_has() {
    let floors = [
        ("None, refused", 17),       // 35 to 43
        ("None, usurped", 30),       // 55 to 61
        ("Keep", 31),                // 64 to 66
        ("Keep, waits", 35),         // 70
        ("Keep, full", 13),          // 27 to 32
        ("Created", 46),             // 92
        ("Renewed", 1),              // 4 to 6
        ("Repaired, same keys", 40), // 79
        ("Repaired, new keys", 35),  // 70 to 74
        ("Rotated", 34),             // 69
        ("Rotated, late", 23),       // 47
        ("Expired", 8),              // 19 to 22
    ];
    let histories = (any::<bool>(), steps(), policies());
    check(256, histories, &floors, |(refused, steps, policy), case| {
        let mut world = World {
            refused,
            ..World::default()
        };
        for step in steps {
            if let Some(decided) = world.happens(step, &policy)? {
                case.reaches(decided);
            }
        }
        Ok(())
    });
}
