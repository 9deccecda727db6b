//! Output of results, as text or JSON.
//!
//! Without `--watch`, JSON is one document: `matrices`, a list of [`Matrix`]; `summary`, the [`Counts`] of all trials;
//! and `unready`, the farms with replicas but no ready proxy. With `--watch`, it is one object per line, distinguished
//! by `type`: `round` (counts), `trial` (each trial that failed), `note` (a `message`) and at the end `summary` (a
//! [`Tally`]).

use std::io::{self, Write};

use jiff::Timestamp;
use serde::Serialize;

use super::matrix::{Counts, Matrix, Trial};
use super::round::{Round, Tally};
use super::text::{self, Paint};

/// Prints results as they arrive.
pub(super) struct Output<W> {
    out: W,
    style: Style,
}

/// Format of the results.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Style {
    Plain,
    Coloured,
    Json,
}

#[derive(Serialize)]
struct Document<'a> {
    matrices: &'a [Matrix],
    summary: &'a Counts,
    unready: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase", tag = "type")]
enum Line<'a> {
    Round {
        time: Timestamp,
        #[serde(flatten)]
        round: &'a Round,
    },
    #[serde(rename_all = "camelCase")]
    Trial {
        time: Timestamp,
        round: u64,
        farm: Option<&'a str>,
        server_name: &'a str,
        mechanism: super::Mechanism,
        #[serde(flatten)]
        trial: &'a Trial,
    },
    Note {
        time: Timestamp,
        message: &'a str,
    },
    Summary(&'a Tally),
}

impl<W: Write> Output<W> {
    pub(super) fn new(out: W, style: Style) -> Self {
        Self { out, style }
    }

    /// The result of a probe without `--watch`.
    pub(super) fn matrices(
        &mut self,
        matrices: &[Matrix],
        summary: &Counts,
        unready: &[String],
    ) -> io::Result<()> {
        match self.paint() {
            Some(paint) => write!(self.out, "{}", text::matrices(matrices, unready, paint))?,
            None => {
                let document = Document {
                    matrices,
                    summary,
                    unready,
                };
                serde_json::to_writer_pretty(&mut self.out, &document)?;
                writeln!(self.out)?;
            }
        }
        self.out.flush()
    }

    /// Prints that there is nothing to probe (`--allow-empty`).
    pub(super) fn nothing(&mut self, why: &str) -> io::Result<()> {
        match self.paint() {
            Some(_) => writeln!(self.out, "nothing to probe: {why}"),
            None => self.matrices(&[], &Counts::default(), &[]),
        }
    }

    /// Prints one round: the failed trials, then the counts.
    pub(super) fn round(&mut self, round: &Round, matrices: &[Matrix], time: Timestamp) -> io::Result<()> {
        for matrix in matrices {
            for trial in matrix.trials().filter(|trial| !trial.is_clean()) {
                match self.paint() {
                    Some(paint) => writeln!(self.out, "{}", text::trial(matrix, trial, time, paint))?,
                    None => self.line(&Line::Trial {
                        time,
                        round: round.number,
                        farm: matrix.farm.as_deref(),
                        server_name: &matrix.server_name,
                        mechanism: matrix.mechanism,
                        trial,
                    })?,
                }
            }
        }
        match self.paint() {
            Some(paint) => writeln!(self.out, "{}", text::round(round, time, paint))?,
            None => self.line(&Line::Round { time, round })?,
        }
        self.out.flush()
    }

    /// Prints a message that is not a result.
    pub(super) fn note(&mut self, message: &str, time: Timestamp) -> io::Result<()> {
        match self.paint() {
            Some(paint) => writeln!(self.out, "{}", text::note(message, time, paint))?,
            None => self.line(&Line::Note { time, message })?,
        }
        self.out.flush()
    }

    /// Prints the summary of a watch.
    pub(super) fn summary(&mut self, tally: &Tally) -> io::Result<()> {
        match self.paint() {
            Some(paint) => write!(self.out, "{}", text::summary(tally, paint))?,
            None => self.line(&Line::Summary(tally))?,
        }
        self.out.flush()
    }

    fn line(&mut self, line: &Line<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        writeln!(self.out)
    }

    /// How text is painted; none for JSON.
    fn paint(&self) -> Option<Paint> {
        match self.style {
            Style::Plain => Some(Paint::Plain),
            Style::Coloured => Some(Paint::Coloured),
            Style::Json => None,
        }
    }
}
