//! TLS session resumption on every replica of a web farm.

pub mod api;
pub mod config;
pub mod operator;
pub mod report;
pub mod ring;
pub mod runtime;
