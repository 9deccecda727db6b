//! Logging to standard error, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;
pub use tracing_subscriber::filter::ParseError;

use crate::api::LogFormat;

/// kube_client logs every request that fails while the API server is away, and so do we, with what was wanted.
const QUIET: [(&str, &str); 1] = [("kube_client", "kube_client=off")];

/// Checks a filter as [`init`] would.
///
/// # Errors
///
/// Fails if `filter` is invalid.
pub fn check(filter: &str) -> Result<(), ParseError> {
    EnvFilter::builder().parse(filter).map(drop)
}

/// Initializes logging. `filter` is a list of tracing-subscriber directives, such as `info` or
/// `tlsfarm=debug,kube=warn`. Targets that repeat what we log are off unless it names them.
///
/// # Errors
///
/// Fails if `filter` is invalid.
pub fn init(format: LogFormat, filter: &str) -> Result<(), ParseError> {
    let quiet = QUIET.iter().filter(|(target, _)| !filter.contains(target));
    let quiet: Vec<Directive> = quiet.map(|(_, off)| off.parse()).collect::<Result<_, _>>()?;
    let filter = EnvFilter::builder().parse(filter)?;
    let filter = quiet.into_iter().fold(filter, EnvFilter::add_directive);
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
