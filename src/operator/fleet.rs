//! The proxies of a farm: discovery, polling, and what the operator remembers about them.

pub(crate) mod memory;
pub(crate) mod observe;
pub(crate) mod pods;
pub(crate) mod poll;
pub(crate) mod refresh;
