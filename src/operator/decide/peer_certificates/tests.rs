use super::*;

const NAME: &str = "cache.shop.web.tlsfarm";

fn day(day: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + day * 86_400).expect("in range")
}

/// What a cache has loaded, and what the operator keeps.
struct World {
    ca: Option<Authority>,
    leaf: Option<Leaf>,
}

impl World {
    /// Does everything that is to be done at `now`; returns the steps, of which the last is [`Step::Keep`].
    fn tend(&mut self, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        for _ in 0..4 {
            let step = plan(self.ca.as_ref(), self.leaf.as_ref(), NAME, now);
            steps.push(step);
            match (step, &self.ca, &self.leaf) {
                (Step::Keep { .. }, ..) => return steps,
                (Step::Found, ..) => self.ca = Some(Authority::create(now).expect("made")),
                (Step::Announce, Some(ca), Some(leaf)) => {
                    self.leaf = Some(leaf.announcing(ca, NAME, now));
                }
                (Step::Issue, Some(ca), leaf) => {
                    self.leaf = Some(Leaf::issue(ca, leaf.as_ref(), NAME, now).expect("made"));
                }
                _ => panic!("{step:?} without an authority or a leaf"),
            }
        }
        panic!("the steps do not settle: {steps:?}");
    }

    fn new(now: Timestamp) -> Self {
        let mut world = Self { ca: None, leaf: None };
        world.tend(now);
        world
    }

    fn leaf(&self) -> &Leaf {
        self.leaf.as_ref().expect("there is a leaf")
    }
}

fn again(leaf: &Leaf) -> Leaf {
    Leaf::read(
        leaf.certificate().as_bytes(),
        leaf.key().as_bytes(),
        leaf.authorities().as_bytes(),
        leaf.trusted_since(),
    )
    .expect("the written Secret can be read")
}

/// Whether a cache that still has `one` and a cache that has `other` accept each other.
fn accept_each_other(one: &Leaf, other: &Leaf, now: Timestamp) -> bool {
    let trusts = |a: &Leaf, b: &Leaf| {
        let mut authorities = a.authorities.iter();
        authorities.any(|ca| b.is_signed_by(ca, NAME, now))
    };
    trusts(one, other) && trusts(other, one)
}

#[test]
fn a_new_farm_gets_an_authority_and_a_leaf_that_last() {
    let mut world = World { ca: None, leaf: None };
    let steps = world.tend(day(0));
    assert_eq!(steps[..2], [Step::Found, Step::Issue]);
    let leaf = world.leaf();
    assert!(leaf.is_usable(NAME, day(89)) && !leaf.is_usable(NAME, day(91)));
    assert!(
        leaf.is_usable(NAME, day(0) - SignedDuration::from_mins(4)),
        "a clock may be late"
    );
    assert!(!leaf.is_usable("cache.other.web.tlsfarm", day(1)));
    assert_eq!(leaf.authorities().matches("BEGIN").count(), 1);
    assert_eq!(world.tend(day(1)).len(), 1, "nothing is left to do");
}

#[test]
fn an_authority_signs_leaves_and_no_leaf_signs_anything() {
    let world = World::new(day(0));
    let ca = world.ca.as_ref().expect("there");
    let (_, parsed) = x509_parser::parse_x509_certificate(&ca.certificate.der).expect("parses");
    let constraints = parsed
        .basic_constraints()
        .expect("readable")
        .expect("there")
        .value;
    assert_eq!((constraints.ca, constraints.path_len_constraint), (true, Some(0)));
    let usage = parsed.key_usage().expect("readable").expect("there").value;
    assert!(usage.key_cert_sign() && !usage.key_encipherment());
    assert!(parsed.subject().to_string().contains("TLSFarm session cache"));

    let (_, parsed) = x509_parser::parse_x509_certificate(&world.leaf().certificate.der).expect("parses");
    assert!(!parsed.is_ca());
    let usage = parsed.key_usage().expect("readable").expect("there").value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
}

#[test]
fn pem_lines_have_64_characters() {
    let world = World::new(day(0));
    let text = world.leaf().certificate();
    let lines: Vec<&str> = text.lines().collect();
    let (first, rest) = lines.split_first().expect("lines");
    let (last, body) = rest.split_last().expect("lines");
    assert_eq!(*first, "-----BEGIN CERTIFICATE-----");
    assert_eq!(*last, "-----END CERTIFICATE-----");
    let (short, full) = body.split_last().expect("lines");
    assert!((1..=64).contains(&short.len()));
    assert!(
        full.len() > 4 && full.iter().all(|line| line.len() == 64),
        "{text}"
    );
    // If the length is a multiple of 48 bytes, the last line is full too.
    assert_eq!(pem(&CertificateDer::from(vec![0; 96])).lines().count(), 4);
}

#[test]
fn the_old_authority_is_trusted_until_caches_had_time_to_load_the_new_leaf() {
    let mut world = World::new(day(0));
    world.ca = Some(Authority::create(day(1)).expect("made"));
    world.tend(day(1));
    let issued = day(1) + OVERLAP;
    let settled = issued + OVERLAP;
    assert_eq!(world.tend(issued), [Step::Issue, Step::Keep { until: settled }]);
    let just_before = settled - SignedDuration::from_secs(1);
    assert_eq!(world.tend(just_before), [Step::Keep { until: settled }]);
    assert_eq!(world.tend(settled)[0], Step::Announce);
    assert_eq!(world.leaf().authorities().matches("BEGIN").count(), 1);
}

#[test]
fn an_authority_lasts_ten_years_and_is_replaced_after_two_thirds_of_them() {
    let ca = Authority::create(day(0)).expect("made");
    let due = ca.certificate.renewal();
    assert!((day(2433)..day(2434)).contains(&due), "{due}");
    assert_eq!(ca.certificate.not_after, day(3650));
}

#[test]
fn written_certificates_are_read_back_and_damaged_ones_are_rejected() {
    let world = World::new(day(0));
    let ca = world.ca.as_ref().expect("there");
    let read = Authority::read(ca.certificate().as_bytes(), ca.key().as_bytes());
    let step = plan(read.as_ref(), Some(&again(world.leaf())), NAME, day(1));
    assert!(matches!(step, Step::Keep { .. }), "{step:?}");

    let other = Authority::create(day(0)).expect("made");
    assert!(Authority::read(ca.certificate().as_bytes(), other.key().as_bytes()).is_none());
    assert!(Authority::read(b"", ca.key().as_bytes()).is_none());
    assert!(Authority::read(ca.certificate().as_bytes(), b"\xff").is_none());
    let leaf = world.leaf();
    let (certificate, key) = (leaf.certificate(), leaf.key());
    assert!(Leaf::read(certificate.as_bytes(), other.key().as_bytes(), b"", None).is_none());
    let trusting_nobody = Leaf::read(certificate.as_bytes(), key.as_bytes(), b"", Some(day(0)));
    assert_eq!(
        plan(Some(ca), trusting_nobody.as_ref(), NAME, day(1)),
        Step::Issue
    );
}

#[test]
fn a_leaf_is_renewed_after_two_thirds_of_its_life() {
    let mut world = World::new(day(0));
    let first = again(world.leaf());
    let [Step::Keep { until }] = world.tend(day(1))[..] else {
        panic!("nothing is due")
    };
    assert_eq!(until, first.renewal());
    assert!((day(59)..day(61)).contains(&until));
    let steps = world.tend(until);
    assert_eq!(steps[0], Step::Issue);
    assert_ne!(world.leaf().certificate(), first.certificate());
    assert!(accept_each_other(&first, world.leaf(), until));
}

#[test]
fn a_new_authority_signs_only_once_every_cache_trusts_it() {
    let mut world = World::new(day(0));
    // Renew leaves until shortly before the CA is due for renewal.
    let mut now = day(0);
    while now < day(2400) {
        let Some(Step::Keep { until }) = world.tend(now).pop() else {
            panic!("the steps do not settle")
        };
        assert!(until > now, "nothing is put off to a moment that is over");
        now = until;
    }
    let mut before = again(world.leaf());
    let due = world.ca.as_ref().expect("there").certificate.renewal();
    let mut steps = Vec::new();
    let mut now = due;
    for _ in 0..3 {
        steps.extend(world.tend(now));
        // A cache that has not loaded this change yet, but every one before it.
        assert!(accept_each_other(&before, world.leaf(), now), "after {steps:?}");
        before = again(world.leaf());
        let Some(Step::Keep { until }) = steps.last() else {
            panic!("the steps do not settle")
        };
        assert!(*until > now);
        now = *until;
    }
    steps.retain(|step| !matches!(step, Step::Keep { .. }));
    let expected = [Step::Found, Step::Announce, Step::Issue, Step::Announce];
    assert_eq!(steps, expected);
    assert_eq!(world.leaf().authorities().matches("BEGIN").count(), 1);
}

#[test]
fn a_late_announcement_does_not_shorten_the_overlap() {
    let mut world = World::new(day(0));
    // The operator was down between the two writes.
    world.ca = Some(Authority::create(day(1)).expect("made"));
    let steps = world.tend(day(30));
    assert_eq!(
        steps,
        [
            Step::Announce,
            Step::Keep {
                until: day(30) + OVERLAP
            },
        ]
    );
}

#[test]
fn a_lost_authority_is_replaced_without_a_gap_and_a_lost_leaf_at_once() {
    let mut world = World::new(day(0));
    let before = again(world.leaf());
    world.ca = None;
    assert_eq!(world.tend(day(1))[..2], [Step::Found, Step::Announce]);
    assert!(accept_each_other(&before, world.leaf(), day(1)));
    world.tend(day(3));
    assert_ne!(world.leaf().certificate(), before.certificate());

    world.leaf = None;
    assert_eq!(world.tend(day(3))[0], Step::Issue);
}

#[test]
fn a_tampered_trust_time_is_reset() {
    let mut world = World::new(day(0));
    for meddled in [None, Some(day(100))] {
        world.leaf.as_mut().expect("there").trusted_since = meddled;
        assert_eq!(world.tend(day(1))[0], Step::Announce);
        assert!(world.leaf().trusted_since().is_some_and(|since| since <= day(1)));
    }
}
