//! Inputs of the status.

use jiff::{Timestamp, Unit};

use crate::api::TLSFarm;
use crate::operator::cluster::apply::Live;
use crate::operator::decide::backend::BackendFault;
use crate::operator::decide::validate::FarmRefusal;
use crate::operator::fleet::observe::Observed;
use crate::operator::names::FarmId;
use crate::ring::{Plan, Ring, RotationPolicy};

/// State observed by one reconciliation.
pub(crate) struct StatusInputs<'a> {
    pub(crate) farm: &'a TLSFarm,
    pub(crate) id: &'a FarmId,
    /// Why the farm was rejected.
    pub(crate) refusal: Option<&'a FarmRefusal>,
    /// What is wrong with the backends.
    pub(crate) backend_faults: &'a [BackendFault],
    pub(crate) live: &'a Live,
    /// Error of this reconciliation that the spec did not cause.
    pub(crate) problem: Option<&'a str>,
    pub(crate) proxies: &'a [Observed],
    pub(crate) ring: Option<&'a Ring>,
    /// Plan of the ring.
    pub(crate) plan: Option<&'a Plan>,
    /// Version of the ring's format, if this release does not know it.
    pub(crate) unknown_format: Option<u32>,
    pub(crate) policy: &'a RotationPolicy,
    /// What was wrong with the ring that the current one replaced.
    pub(crate) repaired: Option<&'a str>,
    /// Time of the next renewal of the caches' certificate.
    pub(crate) certificate_renewal: Option<Timestamp>,
    pub(crate) now: Timestamp,
}

impl StatusInputs<'_> {
    pub(super) fn ready(&self) -> impl Iterator<Item = &Observed> {
        self.proxies.iter().filter(|one| one.proxy.is_ready())
    }

    pub(super) fn ready_count(&self) -> i32 {
        count(self.ready())
    }

    pub(super) fn acknowledged_count(&self, ring: &Ring) -> i32 {
        count(
            self.ready()
                .filter(|one| one.memory.has_acknowledged(ring.version())),
        )
    }
}

/// The API writes times in whole seconds.
pub(super) fn whole_second(time: Timestamp) -> Timestamp {
    time.round(
        jiff::TimestampRound::new()
            .smallest(Unit::Second)
            .mode(jiff::RoundMode::Trunc),
    )
    .unwrap_or(time)
}

pub(super) fn count<'a>(proxies: impl Iterator<Item = &'a Observed>) -> i32 {
    i32::try_from(proxies.count()).unwrap_or(i32::MAX)
}
