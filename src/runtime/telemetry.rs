//! Logging to standard error, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
pub use tracing_subscriber::filter::ParseError as FilterError;

use crate::api::LogFormat;

/// Target whose logs are off unless a filter names it: it logs every request that fails while the API server is away. We
/// log these failures ourselves, with more context.
const QUIET_TARGET: &str = "kube_client";

/// Checks a filter as [`init`] would.
///
/// # Errors
///
/// Fails if `filter` is invalid.
pub fn validate_filter(filter: &str) -> Result<(), FilterError> {
    EnvFilter::builder().parse(filter).map(drop)
}

/// Initializes logging. `filter` is a list of tracing-subscriber directives, such as `info` or
/// `tlsfarm=debug,kube=warn`. `kube_client` is off unless it is named.
///
/// # Errors
///
/// Fails if `filter` is invalid.
pub fn init(format: LogFormat, filter: &str) -> Result<(), FilterError> {
    let quiet = !filter.contains(QUIET_TARGET);
    let mut filter = EnvFilter::builder().parse(filter)?;
    if quiet {
        filter = filter.add_directive(format!("{QUIET_TARGET}=off").parse()?);
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
