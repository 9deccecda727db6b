//! Formats errors with their causes on one line.

use std::error::Error;

/// Formats an error with its sources, skipping those already in its text.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = one_line(error);
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = one_line(cause);
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The first line of an error, without the file excerpt that parsers append.
pub(crate) fn one_line(error: &(impl ToString + ?Sized)) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("refused\n --> an excerpt")]
    struct Inner;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect: {0}")]
    struct Quoting(#[source] Outer);

    #[test]
    fn causes_are_named_once_and_on_one_line() {
        assert_eq!(with_causes(&Outer(Inner)), "cannot connect: refused");
        assert_eq!(
            with_causes(&Quoting(Outer(Inner))),
            "cannot connect: cannot connect: refused"
        );
    }
}
