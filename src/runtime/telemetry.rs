//! Logging to standard error, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};

use crate::api::LogFormat;

/// Target whose logs are off unless a filter names it: it logs every request that fails while the API server is away. We
/// log these failures ourselves, with more context.
const QUIET_TARGET: &str = "kube_client";

/// Why a filter is invalid.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A directive has no level. Taken for the name of a target, a misspelt level would turn off all logs.
    #[error(
        "{0:?} is not a level: use error, warn, info, debug, trace or off, or target=level pairs, separated by commas"
    )]
    NoLevel(String),
    /// A directive failed to parse.
    #[error(transparent)]
    Directive(#[from] ParseError),
}

/// Checks a filter as [`init`] does.
///
/// # Errors
///
/// Fails if `filter` is invalid.
pub fn validate_filter(filter: &str) -> Result<(), FilterError> {
    for directive in filter.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        // An empty level would parse as ERROR.
        if level.trim().is_empty() || level.trim().parse::<LevelFilter>().is_err() {
            return Err(FilterError::NoLevel(directive.to_owned()));
        }
    }
    EnvFilter::builder().parse(filter)?;
    Ok(())
}

/// Initializes logging. `filter` is a list of tracing-subscriber directives, such as `info` or
/// `tlsfarm=debug,kube=warn`. `kube_client` is off unless it is named.
///
/// # Errors
///
/// Fails if `filter` is invalid.
pub fn init(format: LogFormat, filter: &str) -> Result<(), FilterError> {
    validate_filter(filter)?;
    let quiet = !filter.contains(QUIET_TARGET);
    let mut filter = EnvFilter::builder().parse(filter)?;
    if quiet {
        filter = filter.add_directive(
            format!("{QUIET_TARGET}=off")
                .parse()
                .map_err(FilterError::Directive)?,
        );
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            // The current span says what a line is about; the list would repeat it.
            .with_span_list(false)
            .init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_refused_instead_of_turning_logs_off() {
        for good in [
            "info",
            "off",
            "WARN",
            "info,tlsfarm::proxy=debug",
            "tlsfarm=trace,warn",
        ] {
            assert!(validate_filter(good).is_ok(), "{good:?} was refused");
        }
        for bad in [
            "",
            "warning",
            "inof",
            "6",
            "tlsfarm=",
            "tlsfarm=loud",
            "info,wrn",
            "info,",
        ] {
            assert!(validate_filter(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
