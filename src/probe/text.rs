//! Results as text.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::matrix::{Counts, Matrix, Trial, TrialOutcome};
use super::round::{Round, Tally};
use super::session::Mechanism;

/// Maximum number of failed trials listed below a matrix.
const MOST_EXPLAINED: usize = 10;

/// Whether text carries the escape sequences of a terminal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Paint {
    Plain,
    Coloured,
}

#[derive(Clone, Copy)]
enum Tone {
    Bold,
    Good,
    Bad,
    Doubtful,
    Quiet,
}

impl Paint {
    fn paint(self, tone: Tone, text: &str) -> String {
        let code = match (self, tone) {
            (Self::Plain, _) => return text.into(),
            (Self::Coloured, Tone::Bold) => 1,
            (Self::Coloured, Tone::Good) => 32,
            (Self::Coloured, Tone::Bad) => 31,
            (Self::Coloured, Tone::Doubtful) => 33,
            (Self::Coloured, Tone::Quiet) => 2,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// All matrices with their failed trials, and the farms without a ready proxy.
pub(super) fn matrices(matrices: &[Matrix], unready: &[String], paint: Paint) -> String {
    let mut text = String::new();
    let mut farm = None;
    for matrix in matrices.iter().filter(|matrix| !matrix.fresh.is_empty()) {
        if farm != Some(&matrix.farm) {
            farm = Some(&matrix.farm);
            head(&mut text, matrix, paint);
        }
        text.push('\n');
        table(&mut text, matrix, paint);
    }
    for farm in unready {
        let line = format!("no proxy of farm {farm} is ready");
        let _ = writeln!(text, "\n{}", paint.paint(Tone::Bad, &line));
    }
    text
}

/// One failed trial.
pub(super) fn trial(matrix: &Matrix, trial: &Trial, time: Timestamp, paint: Paint) -> String {
    let taken = match &trial.earlier {
        None => String::new(),
        Some(earlier) => {
            let ring = earlier
                .ring_generation
                .map_or_else(String::new, |ring| format!(", ring {ring}"));
            format!(
                " issued {} ago in round {}{ring},",
                age(earlier.age),
                earlier.round
            )
        }
    };
    format!(
        "{} {} {}  {}  session of {}{taken} at {}: {}",
        clock(time),
        paint.paint(Tone::Bad, word(&trial.outcome)),
        matrix.server_name,
        matrix.mechanism,
        trial.issuer,
        trial.resumer,
        explain(matrix.mechanism, trial),
    )
}

/// One round in one line.
pub(super) fn round(round: &Round, time: Timestamp, paint: Paint) -> String {
    let rings: Vec<String> = match round.ring_generations.len() {
        0 => Vec::new(),
        1 => round
            .ring_generations
            .values()
            .map(|ring| format!("ring {ring}  "))
            .collect(),
        _ => {
            let ring = |(farm, ring)| format!("{farm} ring {ring}  ");
            round.ring_generations.iter().map(ring).collect()
        }
    };
    let older = if round.older.offered == 0 {
        String::new()
    } else {
        let older = ratio(&round.older, paint);
        format!("  older {older} up to {}", age(round.oldest))
    };
    format!(
        "{} round {}  {}{} {}  fresh {}{older}  {} ms",
        clock(time),
        round.number,
        rings.concat(),
        round.proxies,
        if round.proxies == 1 { "proxy" } else { "proxies" },
        ratio(&round.fresh, paint),
        round.took.as_millis(),
    )
}

/// A message that is not a result.
pub(super) fn note(message: &str, time: Timestamp, paint: Paint) -> String {
    format!("{} {}", clock(time), paint.paint(Tone::Doubtful, message))
}

/// The summary of a watch.
pub(super) fn summary(tally: &Tally, paint: Paint) -> String {
    let mut all = tally.fresh;
    all += tally.older;
    let mut text = String::new();
    let verdict = match tally.is_clean() {
        true => paint.paint(Tone::Good, "every session was resumed"),
        false => paint.paint(Tone::Bad, "a session was not resumed or a request was not served"),
    };
    let _ = writeln!(
        text,
        "\n{} rounds in {}: {verdict}",
        tally.rounds,
        age(tally.took)
    );
    let mut row = |name: &str, counts: &Counts| {
        let _ = writeln!(text, "  {name:<32} {}", ratio(counts, paint));
    };
    row("issued in the same round", &tally.fresh);
    row("issued in an earlier round", &tally.older);
    row("of these, across a rotation", &tally.crossed_rotation);
    let _ = writeln!(
        text,
        "  {} missed, {} resumed twice, {} without a session, {} failed, {} server errors, {} skipped because a proxy went away",
        all.missed, all.resumed_twice, all.no_session, all.failed, all.server_errors, all.gone
    );
    if tally.unready_rounds > 0 {
        let _ = writeln!(
            text,
            "  {} rounds with a farm that had no ready proxy",
            tally.unready_rounds
        );
    }
    if let (Some(full), Some(resumed)) = (tally.full_handshakes.value(), tally.resumed_handshakes.value()) {
        let (full, resumed) = (full.as_secs_f64() * 1e3, resumed.as_secs_f64() * 1e3);
        let _ = writeln!(
            text,
            "  mean handshake: {full:.1} ms full, {resumed:.1} ms resumed"
        );
    }
    text
}

fn head(text: &mut String, matrix: &Matrix, paint: Paint) {
    let count = matrix.proxies.len();
    let proxies = if count == 1 { "proxy" } else { "proxies" };
    let ring = matrix
        .ring_generation
        .map_or_else(String::new, |ring| format!(", ring {ring}"));
    let line = match &matrix.farm {
        Some(farm) => format!("farm {farm}: {count} {proxies}{ring}"),
        None => format!("{count} {}", if count == 1 { "server" } else { "servers" }),
    };
    if !text.is_empty() {
        text.push('\n');
    }
    let _ = writeln!(text, "{}", paint.paint(Tone::Bold, &line));
}

/// Rows are issuers, columns are resumers in the same order.
fn table(text: &mut String, matrix: &Matrix, paint: Paint) {
    let counts = Counts::of(&matrix.fresh);
    let _ = writeln!(
        text,
        "{}  {}  {}",
        paint.paint(Tone::Bold, &matrix.server_name),
        matrix.mechanism,
        ratio_and_percentage(&counts, paint),
    );
    let size = matrix.proxies.len();
    let number = size.to_string().len();
    let name = matrix
        .proxies
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);
    let heading = format!("{:>number$}  {:<name$}  offered to:", "", "session of:");
    let _ = write!(text, "  {}", paint.paint(Tone::Quiet, &heading));
    for column in 1..=size {
        let _ = write!(
            text,
            " {}",
            paint.paint(Tone::Quiet, &format!("{column:>number$}"))
        );
    }
    text.push('\n');
    let indent = heading.chars().count() - number - 2 - name;
    for (row, (proxy, cells)) in matrix.proxies.iter().zip(matrix.fresh.chunks(size)).enumerate() {
        let _ = write!(text, "  {:>number$}  {proxy:<name$}{:indent$}", row + 1, "");
        for trial in cells {
            let _ = write!(
                text,
                " {:>pad$}{}",
                "",
                symbol(&trial.outcome, paint),
                pad = number - 1
            );
        }
        text.push('\n');
    }
    let mut told = BTreeSet::new();
    for trial in matrix.fresh.iter().filter(|trial| !trial.is_clean()) {
        let line = match &trial.outcome {
            // A proxy that fails or issues no tickets does so in a whole row or column: print it once.
            TrialOutcome::Failed(at) => at.to_string(),
            TrialOutcome::NoSession => format!("{}: {}", trial.issuer, explain(matrix.mechanism, trial)),
            _ => format!(
                "session of {} at {}: {}",
                trial.issuer,
                trial.resumer,
                explain(matrix.mechanism, trial)
            ),
        };
        if told.insert(line.clone()) && told.len() <= MOST_EXPLAINED {
            let _ = writeln!(text, "  {} {line}", paint.paint(Tone::Bad, word(&trial.outcome)));
        }
    }
    if let Some(more @ 1..) = told.len().checked_sub(MOST_EXPLAINED) {
        let _ = writeln!(text, "  and {more} more");
    }
}

fn symbol(outcome: &TrialOutcome, paint: Paint) -> String {
    match outcome {
        TrialOutcome::Resumed => paint.paint(Tone::Good, "✓"),
        TrialOutcome::Missed => paint.paint(Tone::Bad, "✗"),
        TrialOutcome::ResumedTwice => paint.paint(Tone::Bad, "2"),
        TrialOutcome::NoSession => paint.paint(Tone::Doubtful, "–"),
        TrialOutcome::Failed(_) => paint.paint(Tone::Bad, "!"),
        TrialOutcome::Gone => paint.paint(Tone::Quiet, "·"),
    }
}

fn word(outcome: &TrialOutcome) -> &'static str {
    match outcome {
        TrialOutcome::Resumed => "server error:",
        TrialOutcome::Missed => "missed:",
        TrialOutcome::ResumedTwice => "resumed twice:",
        TrialOutcome::NoSession => "no session:",
        TrialOutcome::Failed(_) => "failed:",
        TrialOutcome::Gone => "gone:",
    }
}

fn explain(mechanism: Mechanism, trial: &Trial) -> String {
    let mut text = match &trial.outcome {
        TrialOutcome::Resumed => "resumed".into(),
        TrialOutcome::Missed => "full handshake".into(),
        TrialOutcome::ResumedTwice => format!(
            "resumed there and again at {}",
            trial.offered_again_to.as_deref().unwrap_or_default()
        ),
        TrialOutcome::NoSession => format!("the issuer sent no {}", mechanism.token()),
        TrialOutcome::Failed(at) => at.to_string(),
        TrialOutcome::Gone => "a proxy went away during the test".into(),
    };
    for answer in trial.answers().filter(|answer| answer.is_server_error()) {
        let _ = write!(text, ", HTTP status {}", answer.http_status);
    }
    text
}

fn ratio_and_percentage(counts: &Counts, paint: Paint) -> String {
    // Rounded down, so that 100 % means all of them.
    let percentage = (counts.resumed * 100).checked_div(counts.offered);
    match percentage {
        Some(percentage) => format!("{}  {percentage} %", ratio(counts, paint)),
        None => ratio(counts, paint),
    }
}

fn ratio(counts: &Counts, paint: Paint) -> String {
    let tone = match (counts.is_clean(), counts.offered) {
        (true, 0) => Tone::Quiet,
        (true, _) => Tone::Good,
        (false, _) => Tone::Bad,
    };
    paint.paint(tone, &format!("{}/{}", counts.resumed, counts.offered))
}

fn age(age: Duration) -> String {
    match age.as_secs() {
        0..10 => format!("{:.1} s", age.as_secs_f64()),
        seconds @ 10..120 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

fn clock(time: Timestamp) -> impl std::fmt::Display {
    time.to_zoned(TimeZone::UTC).strftime("%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::super::{Earlier, FailedAt, Failure, HandshakeAnswer};
    use super::*;

    fn answer(http_status: u16) -> HandshakeAnswer {
        HandshakeAnswer {
            http_status,
            handshake: Duration::from_millis(2),
        }
    }

    fn matrix(outcomes: [TrialOutcome; 4]) -> Matrix {
        let proxies = ["shop-proxy-a", "shop-proxy-bc"].map(String::from);
        let pairs = [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter();
        let trial = |((issuer, resumer), outcome): ((usize, usize), TrialOutcome)| Trial {
            issuer: proxies[issuer].clone(),
            resumer: proxies[resumer].clone(),
            offered_again_to: None,
            outcome,
            earlier: None,
            issuer_answer: Some(answer(200)),
            resumer_answer: None,
        };
        Matrix {
            farm: Some("demo/shop".into()),
            server_name: "shop.example.com".into(),
            mechanism: Mechanism::Tls13Ticket,
            ring_generation: Some(7),
            fresh: pairs.zip(outcomes).map(trial).collect(),
            proxies: proxies.into(),
            older: Vec::new(),
        }
    }

    fn failed() -> TrialOutcome {
        TrialOutcome::Failed(FailedAt {
            proxy: "shop-proxy-bc".into(),
            id: "uid".into(),
            failure: Failure::Connect("Connection refused".into()),
        })
    }

    #[test]
    fn a_table_says_who_issued_and_who_resumed() {
        use TrialOutcome::Resumed;
        let good = matrix([Resumed, Resumed, Resumed, Resumed]);
        assert_eq!(
            matrices(&[good], &["demo/blog".into()], Paint::Plain),
            "farm demo/shop: 2 proxies, ring 7\n\
             \n\
             shop.example.com  TLS 1.3 ticket  4/4  100 %\n\
             \x20    session of:    offered to: 1 2\n\
             \x20 1  shop-proxy-a               ✓ ✓\n\
             \x20 2  shop-proxy-bc              ✓ ✓\n\
             \n\
             no proxy of farm demo/blog is ready\n"
        );
    }

    #[test]
    fn a_table_explains_each_problem_once() {
        let bad = matrix([TrialOutcome::Resumed, TrialOutcome::Missed, failed(), failed()]);
        let text = matrices(&[bad], &[], Paint::Plain);
        assert!(text.contains("1/4  25 %"), "{text}");
        assert!(text.contains("shop-proxy-a               ✓ ✗\n"), "{text}");
        assert!(text.contains("shop-proxy-bc              ! !\n"), "{text}");
        assert!(
            text.contains("  missed: session of shop-proxy-a at shop-proxy-bc: full handshake\n"),
            "{text}"
        );
        assert_eq!(
            text.matches("failed: shop-proxy-bc: failed to connect: Connection refused")
                .count(),
            1,
            "{text}"
        );
    }

    #[test]
    fn gone_proxies_do_not_count_and_percentages_are_rounded_down() {
        let text = matrices(
            &[matrix([
                TrialOutcome::Resumed,
                TrialOutcome::Gone,
                TrialOutcome::Resumed,
                TrialOutcome::NoSession,
            ])],
            &[],
            Paint::Plain,
        );
        assert!(text.contains("2/3  66 %"), "{text}");
    }

    #[test]
    fn colour_is_used_only_on_request() {
        let mixed = || {
            [matrix([
                TrialOutcome::Resumed,
                TrialOutcome::Missed,
                TrialOutcome::NoSession,
                TrialOutcome::Gone,
            ])]
        };
        assert!(!matrices(&mixed(), &[], Paint::Plain).contains('\x1b'));
        let coloured = matrices(&mixed(), &[], Paint::Coloured);
        assert!(coloured.contains("\x1b[32m✓\x1b[0m") && coloured.contains("\x1b[31m✗\x1b[0m"));
    }

    #[test]
    fn a_miss_is_shown_with_issuer_resumer_and_times() {
        let matrix = matrix([
            TrialOutcome::Missed,
            TrialOutcome::Missed,
            TrialOutcome::Missed,
            TrialOutcome::Missed,
        ]);
        let mut missed = matrix.fresh[1].clone();
        missed.earlier = Some(Earlier {
            age: Duration::from_secs(95),
            round: 3,
            ring_generation: Some(6),
        });
        assert_eq!(
            trial(&matrix, &missed, Timestamp::UNIX_EPOCH, Paint::Plain),
            "00:00:00Z missed: shop.example.com  TLS 1.3 ticket  session of shop-proxy-a issued 95 s ago in round 3, \
             ring 6, at shop-proxy-bc: full handshake"
        );
    }
}
