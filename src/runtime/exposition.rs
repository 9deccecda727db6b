//! The two text formats of `/metrics`: OpenMetrics for clients that ask for it, and Prometheus's own, version 0.0.4, for
//! all others.

use std::fmt;

use http::HeaderMap;
use http::header::ACCEPT;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

const OPENMETRICS: &str = "application/openmetrics-text";

/// A format of metrics.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Exposition {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus text format 0.0.4.
    Prometheus,
}

impl Exposition {
    /// The format for a client that sends these headers: OpenMetrics if `Accept` names it and likes it no less than
    /// plain text.
    pub(crate) fn negotiate(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT).iter();
        let ranges: Vec<MediaRange<'_>> = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(MediaRange::parse)
            .collect();
        let quality = |media_type: &str| {
            let of_type = ranges
                .iter()
                .filter(|range| range.media_type.eq_ignore_ascii_case(media_type));
            of_type.map(|range| range.quality).reduce(f32::max)
        };
        let plain = quality("text/plain")
            .or_else(|| quality("text/*"))
            .or_else(|| quality("*/*"));
        match quality(OPENMETRICS) {
            Some(quality) if quality > 0.0 && quality >= plain.unwrap_or(0.0) => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// The `Content-Type`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Encodes all metrics of a registry.
    pub(crate) fn encode(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, registry)?;
        Ok(match self {
            Self::OpenMetrics => text,
            Self::Prometheus => to_prometheus(&text),
        })
    }
}

/// One media range of an `Accept` header.
struct MediaRange<'a> {
    media_type: &'a str,
    quality: f32,
}

impl<'a> MediaRange<'a> {
    /// Parses a range. None if it is malformed, or names a version of OpenMetrics other than 1.0.0.
    fn parse(range: &'a str) -> Option<Self> {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next()?;
        let mut quality = 1.0;
        for parameter in parts {
            if parameter.is_empty() {
                continue;
            }
            let (name, value) = parameter.split_once('=')?;
            let value = value.trim_matches('"');
            match (name.to_ascii_lowercase().as_str(), value) {
                ("q", value) => quality = value.parse().ok().filter(|q| (0.0..=1.0).contains(q))?,
                ("version", version) if media_type.eq_ignore_ascii_case(OPENMETRICS) => {
                    (version == "1.0.0").then_some(())?;
                }
                _ => {}
            }
        }
        Some(Self { media_type, quality })
    }
}

/// Converts OpenMetrics text, as `prometheus-client` writes it, to Prometheus text format 0.0.4. Samples are the same in
/// both, because no metric here has exemplars or timestamps; the comments above them differ.
fn to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + openmetrics.len() / 16);
    // Hold HELP back: the TYPE line after it decides whether the name gets `_total`.
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|typed| typed.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            if let Some((_, help)) = help.take().filter(|(described, _)| *described == name) {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with("# ") {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn accepted(accept: &[&'static str]) -> Exposition {
        let values = accept.iter().map(|value| HeaderValue::from_static(value));
        Exposition::negotiate(&values.map(|value| (ACCEPT, value)).collect())
    }

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        for accept in [
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; version=1.0.0; charset=utf-8",
            // Prometheus 2 and 3.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
             application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "text/plain;q=0.5, application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=0.5, text/html",
        ] {
            assert_eq!(accepted(&[accept]), Exposition::OpenMetrics, "{accept}");
        }
        let apart = accepted(&["text/plain;q=0.2", "application/openmetrics-text;q=0.3"]);
        assert_eq!(apart, Exposition::OpenMetrics, "two header lines are one list");
    }

    #[test]
    fn everybody_else_gets_the_older_format() {
        assert_eq!(accepted(&[]), Exposition::Prometheus);
        for accept in [
            "",
            "*/*",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "text/plain, application/openmetrics-text;q=0.9",
            "application/openmetrics-text;q=0.5, text/*;q=0.6",
            "application/openmetrics-text;q=0.5, */*",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=much",
            "application/openmetrics-text;Q=0",
            "application/openmetrics-text;VERSION=0.0.1",
            "application/openmetrics-text;q=NaN",
            "application/openmetrics-text;q",
            ";,;q=1,,=",
        ] {
            assert_eq!(accepted(&[accept]), Exposition::Prometheus, "{accept}");
        }
    }

    #[test]
    fn comments_are_converted_and_samples_kept() {
        let openmetrics = "\
# HELP hits Hits of a thing.
# TYPE hits counter
hits_total{of=\"# EOF\"} 3
# HELP size_bytes Size of it.
# TYPE size_bytes gauge
# UNIT size_bytes bytes
size_bytes 1.5
# HELP took_seconds Time that it took.
# TYPE took_seconds histogram
took_seconds_sum 1.0
took_seconds_count 2
took_seconds_bucket{le=\"+Inf\"} 2
# TYPE odd unknown
odd 7
# EOF
";
        let prometheus = "\
# HELP hits_total Hits of a thing.
# TYPE hits_total counter
hits_total{of=\"# EOF\"} 3
# HELP size_bytes Size of it.
# TYPE size_bytes gauge
size_bytes 1.5
# HELP took_seconds Time that it took.
# TYPE took_seconds histogram
took_seconds_sum 1.0
took_seconds_count 2
took_seconds_bucket{le=\"+Inf\"} 2
# TYPE odd untyped
odd 7
";
        assert_eq!(to_prometheus(openmetrics), prometheus);
    }

    #[test]
    fn a_registry_is_encoded_in_either_format() {
        let mut registry = Registry::default();
        let hits = prometheus_client::metrics::counter::Counter::<u64>::default();
        registry.register("hits", "Hits", hits);
        let encode = |format: Exposition| format.encode(&registry).expect("encodes");
        assert_eq!(
            encode(Exposition::Prometheus),
            "# HELP hits_total Hits.\n# TYPE hits_total counter\nhits_total 0\n"
        );
        assert_eq!(
            encode(Exposition::OpenMetrics),
            "# HELP hits Hits.\n# TYPE hits counter\nhits_total 0\n# EOF\n"
        );
    }
}
