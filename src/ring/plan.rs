//! What the ring needs now, as a pure function of what is known. The operator's loop carries it out.

use jiff::Timestamp;

use super::{MAX_KEYS, Ring, RotationPolicy};

/// The newest ring generation that a proxy is known to have loaded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Acknowledgement {
    /// Name of the proxy's pod.
    pub proxy: String,
    /// The generation; none when the proxy has not answered yet.
    pub generation: Option<u64>,
}

/// A rotation that somebody asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RotationRequest {
    /// Value of the farm's `tlsfarm.dev/rotate` annotation. A rotation is carried out once for each new value.
    pub value: String,
    /// When the operator first saw it.
    pub seen_at: Timestamp,
}

/// What the ring needs now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Plan {
    /// Nothing before `until`.
    Keep {
        /// When to plan again.
        until: Timestamp,
    },
    /// A rotation is due, but these proxies have not acknowledged the current generation yet.
    Wait {
        /// Pods that are awaited.
        missing: Vec<String>,
        /// When the rotation goes on without them.
        until: Timestamp,
    },
    /// A rotation is due, but the ring is full of keys that tickets may still need.
    Full {
        /// When the oldest key expires.
        until: Timestamp,
    },
    /// Write the ring without its expired keys.
    Expire,
    /// Rotate.
    Rotate {
        /// The request that this rotation fulfils.
        request: Option<RotationRequest>,
        /// Proxies that have not acknowledged the current generation and are no longer waited for. Tickets that the
        /// other proxies seal from now on mean full handshakes there.
        late: Vec<String>,
    },
}

/// Decides what the ring needs now.
///
/// `proxies` are the proxies that may serve clients: those that are ready, and those about to be.
pub fn plan(
    ring: &Ring,
    policy: &RotationPolicy,
    request: Option<&RotationRequest>,
    proxies: &[Acknowledgement],
    now: Timestamp,
) -> Plan {
    let request = request.filter(|request| ring.handled_request.as_ref() != Some(&request.value));
    let scheduled = ring.rotated_at + policy.rotation_interval;
    let due = request.map_or(scheduled, |request| request.seen_at.min(scheduled));
    let expiry = ring.previous.iter().map(|key| key.open_until).min();
    if now < due {
        return match expiry {
            Some(expiry) if expiry <= now => Plan::Expire,
            Some(expiry) => Plan::Keep {
                until: expiry.min(due),
            },
            None => Plan::Keep { until: due },
        };
    }

    let missing: Vec<String> = proxies
        .iter()
        .filter(|proxy| {
            proxy
                .generation
                .is_none_or(|generation| generation < ring.generation)
        })
        .map(|proxy| proxy.proxy.clone())
        .collect();
    let patience_ends = due.max(ring.changed_at) + policy.max_unacked_wait;
    if !missing.is_empty() && now < patience_ends {
        return Plan::Wait {
            missing,
            until: patience_ends,
        };
    }
    let still_needed = ring.previous.iter().filter(|key| now < key.open_until).count();
    match expiry {
        // One more previous key beside next and primary.
        Some(until) if still_needed + 3 > MAX_KEYS => Plan::Full { until },
        _ => Plan::Rotate {
            request: request.cloned(),
            late: missing,
        },
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;
    use crate::ring::fixtures::{POLICY, at, ring, secret};

    fn proxies(generations: &[Option<u64>]) -> Vec<Acknowledgement> {
        generations
            .iter()
            .enumerate()
            .map(|(n, generation)| Acknowledgement {
                proxy: format!("proxy-{n}"),
                generation: *generation,
            })
            .collect()
    }

    fn request(value: &str, second: i64) -> RotationRequest {
        RotationRequest {
            value: value.into(),
            seen_at: at(second),
        }
    }

    #[test]
    fn nothing_happens_before_the_interval_is_over() {
        let all = proxies(&[Some(1), Some(1)]);
        assert_eq!(
            plan(&ring(), &POLICY, None, &all, at(3599)),
            Plan::Keep { until: at(3600) }
        );
        let rotate = Plan::Rotate {
            request: None,
            late: vec![],
        };
        assert_eq!(plan(&ring(), &POLICY, None, &all, at(3600)), rotate);
    }

    #[test]
    fn a_rotation_waits_for_every_proxy_but_not_for_ever() {
        let one_silent = proxies(&[Some(1), None]);
        let wait = Plan::Wait {
            missing: vec!["proxy-1".into()],
            until: at(4200),
        };
        assert_eq!(plan(&ring(), &POLICY, None, &one_silent, at(3600)), wait);
        let rotate = Plan::Rotate {
            request: None,
            late: vec!["proxy-1".into()],
        };
        assert_eq!(plan(&ring(), &POLICY, None, &one_silent, at(4200)), rotate);
    }

    #[test]
    fn a_request_is_carried_out_once() {
        let all = proxies(&[Some(1)]);
        let wanted = request("now", 10);
        let Plan::Rotate {
            request: Some(granted),
            ..
        } = plan(&ring(), &POLICY, Some(&wanted), &all, at(10))
        else {
            panic!("the request was not granted");
        };
        let ring = ring().rotated(secret(), Some(&granted), &POLICY, at(10));
        assert_eq!(
            plan(&ring, &POLICY, Some(&wanted), &all, at(11)),
            Plan::Keep { until: at(3610) }
        );
        let behind = plan(&ring, &POLICY, Some(&request("again", 11)), &all, at(11));
        assert!(
            matches!(behind, Plan::Wait { .. }),
            "the second request overtook the acknowledgements"
        );
    }

    #[test]
    fn after_a_long_outage_there_is_one_rotation_and_no_burst() {
        let days_later = 3 * 86_400;
        let ring = ring().rotated(secret(), None, &POLICY, at(days_later));
        let all = proxies(&[Some(2)]);
        assert_eq!(
            plan(&ring, &POLICY, None, &all, at(days_later + 1)),
            Plan::Keep {
                until: at(days_later + 3600)
            }
        );
    }

    #[test]
    fn a_full_ring_waits_for_its_oldest_key() {
        let mut ring = ring();
        for round in 0..30 {
            ring = ring.rotated(secret(), None, &POLICY, at(round));
        }
        let all = proxies(&[Some(ring.generation)]);
        let oldest = ring.previous.last().expect("full").open_until;
        let wanted = request("one more", 100);
        assert_eq!(
            plan(&ring, &POLICY, Some(&wanted), &all, at(100)),
            Plan::Full { until: oldest }
        );
        assert!(matches!(
            plan(&ring, &POLICY, Some(&wanted), &all, oldest),
            Plan::Rotate { .. }
        ));
    }

    #[test]
    fn keys_are_dropped_when_no_ticket_needs_them_any_more() {
        let day = RotationPolicy {
            rotation_interval: SignedDuration::from_hours(24),
            ..POLICY
        };
        let ring = ring().rotated(secret(), None, &day, at(0));
        let all = proxies(&[Some(2)]);
        let end = ring.previous[0].open_until;
        assert_eq!(plan(&ring, &day, None, &all, at(1)), Plan::Keep { until: end });
        assert_eq!(plan(&ring, &day, None, &all, end), Plan::Expire);
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Time passes.
        Pass(i64),
        /// One proxy's mount catches up with the Secret.
        Refresh(usize),
        /// The operator hears from one proxy.
        Hear(usize),
        /// The operator looks at the ring.
        Reconcile,
        /// Somebody asks for a rotation.
        Ask(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1i64..400).prop_map(Step::Pass),
            (0usize..3).prop_map(Step::Refresh),
            (0usize..3).prop_map(Step::Hear),
            Just(Step::Reconcile),
            any::<u8>().prop_map(Step::Ask),
        ];
        proptest::collection::vec(step, 1..400)
    }

    proptest! {
        /// S4 of the requirements: at every instant the primary of any proxy is in the ring of every other, with any
        /// lag, as long as nobody exhausts the operator's patience.
        #[test]
        fn no_proxy_ever_seals_what_another_cannot_open(steps in steps()) {
            let patient = RotationPolicy { max_unacked_wait: SignedDuration::from_hours(10_000), ..POLICY };
            let mut secret_of_cluster = ring();
            let mut mounted = vec![secret_of_cluster.clone(); 3];
            let mut heard = [Some(1); 3];
            let (mut clock, mut asked) = (0, None);
            for step in steps {
                match step {
                    Step::Pass(seconds) => clock += seconds,
                    Step::Refresh(n) => mounted[n] = secret_of_cluster.clone(),
                    Step::Hear(n) => heard[n] = Some(mounted[n].generation),
                    Step::Ask(value) => asked = Some(request(&value.to_string(), clock)),
                    Step::Reconcile => {
                        match plan(&secret_of_cluster, &patient, asked.as_ref(), &proxies(&heard), at(clock)) {
                            Plan::Rotate { request, late } => {
                                prop_assert!(late.is_empty());
                                let fresh = secret();
                                secret_of_cluster =
                                    secret_of_cluster.rotated(fresh, request.as_ref(), &patient, at(clock));
                            }
                            Plan::Expire => secret_of_cluster = secret_of_cluster.without_expired(at(clock)),
                            Plan::Keep { .. } | Plan::Wait { .. } | Plan::Full { .. } => {}
                        }
                    }
                }
                prop_assert!(secret_of_cluster.keys().count() <= MAX_KEYS);
                for sealer in &mounted {
                    for opener in &mounted {
                        prop_assert!(opener.keys().any(|key| key.id == sealer.primary.id));
                    }
                }
            }
        }
    }
}
