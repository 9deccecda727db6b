//! TLS session resumption on every replica of a web farm.
//!
//! `ARCHITECTURE.md` follows one connection and one rotation through these modules. Modules may only import modules of
//! lower layers; `tests/architecture.rs` enforces this.

// External input must never cause a panic: use `get`, not indexing.
#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::string_slice))]

pub mod api;
pub mod cache;
pub mod compile;
pub mod config;
pub mod discovery;
pub mod operator;
pub mod probe;
pub mod proxy;
pub mod report;
pub mod resp;
pub mod ring;
pub mod runtime;

#[cfg(test)]
mod reached;
