//! What to write into the ring Secret, if anything. Pure but for the randomness of new keys.

use jiff::Timestamp;

use super::ring_secret::Stored;
use super::secret::Version;
use crate::api::{TLSFarm, Tickets};
use crate::ring::{
    Acknowledgement, KeySecret, Plan, RandomnessError, Ring, RotationPolicy, RotationRequest, plan,
};

/// A request's value is kept in the ring document, which is bounded; a longer one is told by its fingerprint.
const LONGEST_REQUEST: usize = 128;

/// What the operator knows of a farm's ring besides the Secret.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known<'a> {
    /// The ring that it last saw or wrote.
    pub(super) ring: Option<&'a Ring>,
    /// The highest generation that memory, status or any proxy speaks of; 0 when none does.
    pub(super) generation: u64,
}

/// What to do with the ring Secret.
#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    /// Keep the stored ring; its plan says what it waits for.
    Keep(Box<Ring>, Plan),
    /// There is no ring, and none may be made for a farm that was never accepted.
    None,
    /// Write this ring.
    Write(Box<Ring>, Option<Version>, Change),
}

/// Why a ring is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// The farm had none.
    Created,
    /// The Secret was missing, damaged or rolled back, as the text says.
    Repaired(String),
    /// A rotation, without waiting any longer for the proxies named.
    Rotated { late: Vec<String> },
    /// Keys that no ticket needs any more were dropped.
    Expired,
}

/// The farm's rotation policy.
pub(super) fn policy(tickets: &Tickets) -> RotationPolicy {
    RotationPolicy {
        rotation_interval: tickets.rotation_interval.as_signed(),
        lifetime: tickets.lifetime.as_signed(),
        max_unacked_wait: tickets.max_unacked_wait.as_signed(),
    }
}

/// The rotation that the farm's annotation asks for. `before` is what the last pass saw.
pub(super) fn requested(
    farm: &TLSFarm,
    before: Option<&RotationRequest>,
    now: Timestamp,
) -> Option<RotationRequest> {
    let annotation = farm
        .metadata
        .annotations
        .as_ref()?
        .get(crate::api::ROTATE_ANNOTATION)?;
    let value = if annotation.len() <= LONGEST_REQUEST {
        annotation.clone()
    } else {
        format!(
            "fingerprint {}",
            crate::config::fingerprint(annotation.as_bytes())
        )
    };
    match before {
        Some(before) if before.value == value => Some(before.clone()),
        _ => Some(RotationRequest { value, seen_at: now }),
    }
}

/// Decides what to do with a ring Secret that is the farm's, or missing.
pub(super) fn decide(
    stored: Stored,
    known: Known<'_>,
    may_create: bool,
    policy: &RotationPolicy,
    request: Option<&RotationRequest>,
    proxies: &[Acknowledgement],
    now: Timestamp,
) -> Result<Decision, RandomnessError> {
    let (why, version) = match stored {
        Stored::Good(ring, version) => match fault(&ring, known) {
            None => return carry_out(*ring, version, policy, request, proxies, now),
            Some(why) => (why, Some(version)),
        },
        Stored::Damaged(why, version) => (format!("the ring Secret was damaged: {why}"), Some(version)),
        Stored::Missing if known.generation == 0 => {
            if !may_create {
                return Ok(Decision::None);
            }
            let ring = fresh(1, policy, request, now)?;
            return Ok(Decision::Write(Box::new(ring), None, Change::Created));
        }
        Stored::Missing => ("the ring Secret was missing".to_owned(), None),
        // The farm is not accepted then.
        Stored::Foreign(_) => return Ok(Decision::None),
    };
    let generation = known.generation + 1;
    let (ring, keys) = match known.ring {
        Some(ring) => (
            ring.clone().reissued(generation, now),
            "the same keys were written back",
        ),
        None => (
            fresh(generation, policy, request, now)?,
            "new keys were made, since the operator had not seen the old ones",
        ),
    };
    let change = Change::Repaired(format!("{why}; {keys}"));
    Ok(Decision::Write(Box::new(ring), version, change))
}

/// Why a readable ring must not stay.
fn fault(ring: &Ring, known: Known<'_>) -> Option<String> {
    if ring.generation < known.generation {
        return Some(format!(
            "the ring was rolled back to generation {} although there was {} already",
            ring.generation, known.generation
        ));
    }
    let same = known.ring.filter(|last| last.generation == ring.generation);
    same.is_some_and(|last| last != ring)
        .then(|| format!("the ring of generation {} was altered", ring.generation))
}

fn carry_out(
    ring: Ring,
    version: Version,
    policy: &RotationPolicy,
    request: Option<&RotationRequest>,
    proxies: &[Acknowledgement],
    now: Timestamp,
) -> Result<Decision, RandomnessError> {
    let (ring, change) = match plan(&ring, policy, request, proxies, now) {
        Plan::Expire => (ring.without_expired(now), Change::Expired),
        Plan::Rotate { request, late } => {
            let ring = ring.rotated(KeySecret::generate()?, request.as_ref(), policy, now);
            (ring, Change::Rotated { late })
        }
        waiting => return Ok(Decision::Keep(Box::new(ring), waiting)),
    };
    Ok(Decision::Write(Box::new(ring), Some(version), change))
}

/// A ring of new keys. A rotation that was asked for before is fulfilled by it.
fn fresh(
    generation: u64,
    policy: &RotationPolicy,
    request: Option<&RotationRequest>,
    now: Timestamp,
) -> Result<Ring, RandomnessError> {
    let mut ring = Ring::new(
        generation,
        KeySecret::generate()?,
        KeySecret::generate()?,
        policy,
        now,
    );
    ring.handled_request = request.map(|request| request.value.clone());
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ring::fixtures::{POLICY, at, ring};

    fn version() -> Version {
        Version("5".into())
    }

    fn good(ring: &Ring) -> Stored {
        Stored::Good(Box::new(ring.clone()), version())
    }

    fn decided(stored: Stored, known: Known<'_>) -> Decision {
        decide(stored, known, true, &POLICY, None, &[], at(10)).expect("randomness")
    }

    fn known(ring: &Ring) -> Known<'_> {
        Known {
            ring: Some(ring),
            generation: ring.generation,
        }
    }

    #[test]
    fn a_new_farm_gets_a_ring_and_one_that_was_never_accepted_does_not() {
        let Decision::Write(ring, None, Change::Created) = decided(Stored::Missing, Known::default()) else {
            panic!("no ring was made");
        };
        assert_eq!(ring.generation, 1);
        let refused = decide(
            Stored::Missing,
            Known::default(),
            false,
            &POLICY,
            None,
            &[],
            at(10),
        );
        assert_eq!(refused.expect("randomness"), Decision::None);
    }

    #[test]
    fn a_new_ring_has_fulfilled_the_request_that_was_there_before_it() {
        let asked = RotationRequest {
            value: "once".into(),
            seen_at: at(0),
        };
        let decision = decide(
            Stored::Missing,
            Known::default(),
            true,
            &POLICY,
            Some(&asked),
            &[],
            at(10),
        );
        let Decision::Write(ring, ..) = decision.expect("randomness") else {
            panic!("no ring was made");
        };
        let next = decide(
            good(&ring),
            known(&ring),
            true,
            &POLICY,
            Some(&asked),
            &[],
            at(11),
        );
        assert!(matches!(
            next.expect("randomness"),
            Decision::Keep(_, Plan::Keep { .. })
        ));
    }

    #[test]
    fn a_lost_damaged_altered_or_rolled_back_ring_is_written_back_with_its_keys() {
        let old = ring();
        let current = old
            .clone()
            .rotated(KeySecret::generate().expect("randomness"), None, &POLICY, at(5));
        let mut altered = current.clone();
        altered.previous.clear();
        let cases = [
            (Stored::Missing, None),
            (Stored::Damaged("it is empty".into(), version()), Some(version())),
            (good(&old), Some(version())),
            (good(&altered), Some(version())),
        ];
        for (stored, replaces) in cases {
            let name = format!("{stored:?}");
            let Decision::Write(ring, replaced, Change::Repaired(_)) = decided(stored, known(&current))
            else {
                panic!("{name} was not repaired");
            };
            assert_eq!(replaced, replaces);
            assert_eq!(ring.generation, current.generation + 1);
            assert_eq!(ring.primary, current.primary);
        }
    }

    #[test]
    fn a_restarted_operator_repairs_above_every_generation_that_it_hears_of() {
        let old = ring();
        for stored in [Stored::Missing, good(&old)] {
            let heard = Known {
                ring: None,
                generation: 41,
            };
            let Decision::Write(ring, _, Change::Repaired(_)) = decided(stored, heard) else {
                panic!("it was not repaired");
            };
            assert_eq!(ring.generation, 42);
            assert_ne!(ring.primary.id, old.primary.id);
        }
    }

    #[test]
    fn a_ring_that_is_newer_than_what_is_known_is_taken_over() {
        let first = ring();
        let second = first
            .clone()
            .rotated(KeySecret::generate().expect("randomness"), None, &POLICY, at(5));
        assert!(matches!(
            decided(good(&second), known(&first)),
            Decision::Keep(..)
        ));
    }

    #[test]
    fn a_request_keeps_its_first_time_and_a_huge_one_cannot_bloat_the_ring() {
        let mut farm: TLSFarm = serde_json::from_value(serde_json::json!({
            "apiVersion": "tlsfarm.dev/v1alpha1",
            "kind": "TLSFarm",
            "metadata": {"name": "shop", "annotations": {"tlsfarm.dev/rotate": "x"}},
            "spec": {"hosts": []},
        }))
        .expect("a farm");
        let first = requested(&farm, None, at(1)).expect("requested");
        assert_eq!(requested(&farm, Some(&first), at(2)), Some(first.clone()));
        let annotations = farm.metadata.annotations.as_mut().expect("set");
        annotations.insert(crate::api::ROTATE_ANNOTATION.into(), "y".repeat(200_000));
        let huge = requested(&farm, Some(&first), at(3)).expect("requested");
        assert!(huge.value.len() <= LONGEST_REQUEST);
        assert_eq!(huge.seen_at, at(3));
    }

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
        /// The ring Secret is restored from a backup.
        Restore(usize),
        /// A proxy's mount is refreshed; it takes the ring only if that is newer than its own.
        Load(usize),
        /// Somebody asks for a rotation.
        Ask(u8),
        /// Time passes.
        Wait(i64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Pass),
            1 => Just(Step::Restart),
            1 => Just(Step::Delete),
            1 => Just(Step::Damage),
            1 => (0usize..8).prop_map(Step::Restore),
            4 => (0usize..3).prop_map(Step::Load),
            1 => any::<u8>().prop_map(Step::Ask),
            1 => (1i64..2000).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Whatever happens to the Secret and to the operator, one pass makes a ring that every proxy takes, and which
        /// holds the keys of the last one if the operator had seen that.
        #[test]
        fn every_ring_that_is_written_is_newer_than_any_that_a_proxy_has(steps in steps()) {
            let mut secret: Option<Result<Ring, String>> = None;
            let (mut backups, mut remembered): (Vec<Ring>, Option<Ring>) = (Vec::new(), None);
            let mut loaded: [Option<u64>; 3] = [None; 3];
            let (mut in_status, mut clock, mut asked) = (0, 0, None);
            for step in steps {
                match step {
                    Step::Restart => remembered = None,
                    Step::Delete => secret = None,
                    Step::Damage => secret = secret.map(|_| Err("nonsense".into())),
                    Step::Restore(n) => {
                        if let Some(old) = backups.get(n) {
                            secret = Some(Ok(old.clone()));
                        }
                    }
                    Step::Load(n) => {
                        if let Some(Ok(ring)) = &secret {
                            loaded[n] = loaded[n].max(Some(ring.generation));
                        }
                    }
                    Step::Ask(value) => {
                        asked = Some(RotationRequest { value: value.to_string(), seen_at: at(clock) });
                    }
                    Step::Wait(seconds) => clock += seconds,
                    Step::Pass => {
                        let proxies: Vec<_> = loaded
                            .iter()
                            .map(|&generation| Acknowledgement { proxy: "proxy".into(), generation })
                            .collect();
                        let newest = loaded.iter().flatten().copied().max().unwrap_or_default();
                        let seen = remembered.as_ref().map_or(0, |ring| ring.generation);
                        let generation = newest.max(seen).max(in_status);
                        let stored = match secret.clone() {
                            None => Stored::Missing,
                            Some(Err(why)) => Stored::Damaged(why, version()),
                            Some(Ok(ring)) => good(&ring),
                        };
                        let known = Known { ring: remembered.as_ref(), generation };
                        let decision =
                            decide(stored, known, true, &POLICY, asked.as_ref(), &proxies, at(clock));
                        match decision.expect("randomness") {
                            Decision::None => prop_assert!(false, "an accepted farm has no ring"),
                            Decision::Keep(ring, _) => {
                                prop_assert!(ring.generation >= generation);
                                remembered = Some(*ring);
                            }
                            Decision::Write(ring, _, change) => {
                                prop_assert!(ring.generation > generation);
                                if let (Change::Repaired(_), Some(last)) = (change, &remembered) {
                                    prop_assert_eq!(&last.primary, &ring.primary);
                                }
                                backups.push((*ring).clone());
                                secret = Some(Ok((*ring).clone()));
                                remembered = Some(*ring);
                            }
                        }
                        in_status = in_status.max(remembered.as_ref().map_or(0, |ring| ring.generation));
                    }
                }
            }
        }
    }
}
