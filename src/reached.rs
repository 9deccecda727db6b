//! Properties that count what their cases reach. A generator that no longer reaches something says nothing about it, and
//! nobody would notice.
//!
//! A floor is about half of the share that was measured or less, so that it never fails by chance. `--nocapture` shows the
//! shares; where two runs differed by more than a little, both are told.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};

/// What one case has reached, each once however often it came to it.
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

/// Checks a property on so many cases, every run on others. `floors` are the percentages of the cases that must reach
/// something; at least one case must, and nothing else may be reached.
#[track_caller]
pub(crate) fn check<S: Strategy>(
    cases: u32,
    strategy: S,
    floors: &[(&'static str, impl Into<f64> + Copy)],
    property: impl Fn(S::Value, &mut Case) -> TestCaseResult,
) {
    let runner = TestRunner::new(config(cases));
    judge(floors, &count(runner, cases, &strategy, property), cases);
}

/// The same, every run on the same cases.
#[track_caller]
pub(crate) fn check_the_same<S: Strategy>(
    cases: u32,
    strategy: S,
    floors: &[(&'static str, impl Into<f64> + Copy)],
    property: impl Fn(S::Value, &mut Case) -> TestCaseResult,
) {
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let runner = TestRunner::new_with_rng(config(cases), random);
    judge(floors, &count(runner, cases, &strategy, property), cases);
}

fn config(cases: u32) -> Config {
    Config {
        failure_persistence: None,
        ..Config::with_cases(cases)
    }
}

/// How many cases reached what, if the property holds for all of them.
#[track_caller]
fn count<S: Strategy>(
    mut runner: TestRunner,
    cases: u32,
    strategy: &S,
    property: impl Fn(S::Value, &mut Case) -> TestCaseResult,
) -> BTreeMap<&'static str, u32> {
    let reached = RefCell::new(BTreeMap::new());
    let outcome = runner.run(strategy, |value| {
        let mut case = Case::default();
        property(value, &mut case)?;
        for what in case.0 {
            *reached.borrow_mut().entry(what).or_default() += 1;
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let reached = reached.into_inner();
    let mut shares = format!("of {cases} cases");
    if let Some(property) = std::thread::current().name() {
        shares = format!("{property}, {shares}");
    }
    for (what, count) in &reached {
        shares += &format!("\n{:6.1} %  {what}", percent(*count, cases));
    }
    println!("{shares}");
    reached
}

fn percent(count: u32, cases: u32) -> f64 {
    f64::from(count) * 100.0 / f64::from(cases)
}

#[track_caller]
fn judge(
    floors: &[(&'static str, impl Into<f64> + Copy)],
    reached: &BTreeMap<&'static str, u32>,
    cases: u32,
) {
    for (what, floor) in floors {
        let count = reached.get(what).copied().unwrap_or_default();
        let floor: f64 = (*floor).into();
        assert!(
            count > 0 && percent(count, cases) >= floor,
            "{count} of {cases} cases reach {what:?}, fewer than {floor} %"
        );
    }
    let unexpected = reached
        .keys()
        .find(|what| !floors.iter().any(|(expected, _)| expected == *what));
    assert_eq!(unexpected, None, "reached without a floor");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every case reaches "always" twice, and every second one "half".
    fn check_with(floors: &[(&'static str, u32)]) {
        check_the_same(100, any::<bool>(), floors, |half, case| {
            case.reaches("always");
            case.reaches("always");
            case.reaches_if(half, "half");
            Ok(())
        });
    }

    #[test]
    fn a_label_reached_twice_in_a_case_counts_once() {
        check_with(&[("always", 100), ("half", 30)]);
    }

    #[test]
    #[should_panic = "100 of 100 cases reach \"always\", fewer than 101 %"]
    fn a_share_below_its_floor_fails() {
        check_with(&[("half", 30), ("always", 101)]);
    }

    #[test]
    #[should_panic = "0 of 100 cases reach \"never\""]
    fn a_label_that_no_case_reaches_fails_whatever_its_floor() {
        check_with(&[("always", 50), ("half", 30), ("never", 0)]);
    }

    #[test]
    #[should_panic = "reached without a floor"]
    fn a_reached_label_without_a_floor_fails() {
        check_with(&[("always", 50)]);
    }

    #[test]
    #[should_panic = "it does not hold"]
    fn a_property_that_does_not_hold_fails() {
        check(1, any::<bool>(), &[("always", 50)], |_, case| {
            case.reaches("always");
            Err(TestCaseError::fail("it does not hold"))
        });
    }
}
