//! The proxies of a farm as the operator knows them.

pub(crate) mod memory;
pub(crate) mod observe;
pub(crate) mod pods;
pub(crate) mod poll;
pub(crate) mod refresh;
