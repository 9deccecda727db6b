//! Properties that count what their cases reach: a generator that stops reaching it fails, too.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// What one case has reached.
#[derive(Default)]
pub(crate) struct Case(BTreeSet<&'static str>);

impl Case {
    /// Takes note that it came to this.
    pub(crate) fn reaches(&mut self, what: &'static str) {
        self.0.insert(what);
    }

    /// The same if it is so.
    pub(crate) fn reaches_if(&mut self, it_is_so: bool, what: &'static str) {
        if it_is_so {
            self.reaches(what);
        }
    }
}

/// Checks a property. `floors` are the percentages of its cases that must reach something.
pub(crate) fn check<S: Strategy>(
    cases: u32,
    strategy: S,
    floors: &[(&'static str, u32)],
    property: impl Fn(S::Value, &mut Case) -> Result<(), TestCaseError>,
) {
    let reached = RefCell::new(BTreeMap::<&str, u32>::new());
    let config = Config {
        failure_persistence: None,
        ..Config::with_cases(cases)
    };
    let outcome = TestRunner::new(config).run(&strategy, |value| {
        let mut case = Case::default();
        let outcome = property(value, &mut case);
        for what in case.0 {
            *reached.borrow_mut().entry(what).or_default() += 1;
        }
        outcome
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let reached = reached.into_inner();
    println!("of {cases} cases: {reached:#?}");
    for (what, floor) in floors {
        let count = reached.get(what).copied().unwrap_or_default();
        assert!(count * 100 >= floor * cases, "{what}: {count} of {cases} cases");
    }
    for what in reached.keys() {
        assert!(
            floors.iter().any(|(named, _)| named == what),
            "{what} has no floor"
        );
    }
}
