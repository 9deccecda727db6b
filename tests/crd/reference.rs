//! docs/api.md: the fields of a TLSFarm, generated from the CRD.

use std::fmt::Write;

use serde_json::Value;

/// The words in the description of a field that restarts pods when it changes. `operator::build` tests which do.
const RESTARTS: &str = "restarts the proxies";

/// The sentence that the column of the table makes superfluous.
const ANY_CHANGE: &str = "A change restarts the proxies.";

const HEAD: &str = "# API reference

`TLSFarm`, `tlsfarm.dev/v1alpha1`, short name `farm`. Generated from the CRD by `make crds`; `kubectl explain
farm.spec --recursive` shows the same.

**Restarts** tells whether a change of the field replaces the proxies: a rolling update, in which WebSockets and other
long connections end when `proxy.drainPeriod` is over, and cache sidecars start empty. All other changes are loaded by
running proxies. Durations are written as in `90s`, `30m`, `4h` or `1h30m`; the largest unit is `h`.
";

#[derive(Clone, Copy)]
enum Part {
    /// `restarts`: what is said of an object holds for its fields.
    Spec {
        restarts: bool,
    },
    Status,
}

/// The whole page.
pub fn page(crd: &Value) -> String {
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut page = String::from(HEAD);
    let rules = rules(schema);
    if !rules.is_empty() {
        // Writing to a string cannot fail.
        let _ = write!(page, "\n{rules}");
    }
    object(
        &mut page,
        "spec",
        &schema["properties"]["spec"],
        Part::Spec { restarts: false },
    );
    object(&mut page, "status", &schema["properties"]["status"], Part::Status);
    page
}

/// A section for an object, and one for each object within.
fn object(page: &mut String, path: &str, schema: &Value, part: Part) {
    let fields = schema["properties"].as_object().expect("an object");
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let _ = write!(page, "\n## {path}\n\n{}\n\n", wrapped(&description(schema), ""));
    page.push_str(match part {
        Part::Spec { .. } => {
            "| field | type | default | allowed | restarts | meaning |\n|---|---|---|---|---|---|\n"
        }
        Part::Status => "| field | type | meaning |\n|---|---|---|\n",
    });
    for (name, field) in fields {
        let (kind, meaning) = (kind(field), meaning(field));
        let _ = match part {
            Part::Spec { restarts } => writeln!(
                page,
                "| `{name}` | {kind} | {} | {} | {} | {meaning} |",
                default(field, required.contains(&name.as_str())),
                allowed(field),
                if restarts || restarts_proxies(field) {
                    "yes"
                } else {
                    ""
                },
            ),
            Part::Status => writeln!(page, "| `{name}` | {kind} | {meaning} |"),
        };
    }
    let rules = rules(schema);
    if !rules.is_empty() {
        let _ = write!(page, "\n{rules}");
    }
    for (name, field) in fields {
        let part = match part {
            Part::Spec { restarts } => Part::Spec {
                restarts: restarts || restarts_proxies(field),
            },
            Part::Status => Part::Status,
        };
        if field["properties"].is_object() {
            object(page, &format!("{path}.{name}"), field, part);
        } else if field["items"]["properties"].is_object() {
            object(page, &format!("{path}.{name}[]"), &field["items"], part);
        }
    }
}

fn restarts_proxies(field: &Value) -> bool {
    description(field).contains(RESTARTS)
}

fn description(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a field means, and the rules of its value.
fn meaning(field: &Value) -> String {
    let text = description(field).replace(ANY_CHANGE, "");
    let mut sentences = vec![text.trim().to_owned()];
    if field["properties"].is_null() && !is_duration(field) {
        let rules = field["x-kubernetes-validations"].as_array().into_iter().flatten();
        let messages = rules.filter_map(|rule| rule["message"].as_str());
        sentences.extend(messages.map(|message| format!("Rule: {message}.")));
    }
    sentences.join(" ").replace('|', "\\|")
}

fn kind(field: &Value) -> String {
    let one = |schema: &Value| match schema["type"].as_str() {
        Some("string") if is_duration(schema) => "duration".to_owned(),
        Some("string") if schema["format"] == "date-time" => "time".to_owned(),
        Some(kind) => kind.to_owned(),
        None if schema["x-kubernetes-int-or-string"] == true => "quantity".to_owned(),
        None => "any".to_owned(),
    };
    match field["type"].as_str() {
        Some("array") => format!("list of {}", one(&field["items"])),
        Some("object") if field["additionalProperties"].is_object() => {
            format!("map to {}", one(&field["additionalProperties"]))
        }
        _ => one(field),
    }
}

fn is_duration(schema: &Value) -> bool {
    rules(schema).contains("duration such as")
}

/// The default of a scalar; that of an object is the defaults of its fields.
fn default(field: &Value, is_required: bool) -> String {
    match &field["default"] {
        _ if is_required => "required".into(),
        Value::Null | Value::Object(_) | Value::Array(_) => String::new(),
        value => format!("`{}`", value.to_string().trim_matches('"')),
    }
}

fn allowed(field: &Value) -> String {
    let is_list = field["items"].is_object();
    let schema = if is_list { &field["items"] } else { field };
    let mut bounds = Vec::new();
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values
            .iter()
            .filter(|value| !value.is_null())
            .map(|value| format!("`{}`", value.to_string().trim_matches('"')))
            .collect();
        bounds.push(values.join(", "));
    }
    bounds.extend(range(schema, "minimum", "maximum", ""));
    if schema["enum"].is_null() && !is_duration(schema) {
        let each = if is_list { "each " } else { "" };
        let length = range(schema, "minLength", "maxLength", " characters");
        bounds.extend(length.map(|length| format!("{each}{length}")));
    }
    if is_list {
        bounds.extend(range(field, "minItems", "maxItems", " entries"));
    }
    bounds.extend(range(field, "minProperties", "maxProperties", " entries"));
    bounds.join("; ")
}

fn range(schema: &Value, least: &str, most: &str, unit: &str) -> Option<String> {
    let number = |bound: &str| {
        let value = schema[bound].as_f64()?;
        // No bound of the API is a fraction.
        Some(format!("{value:.0}"))
    };
    match (number(least), number(most)) {
        (Some(least), Some(most)) => Some(format!("{least} to {most}{unit}")),
        (Some(least), None) => Some(format!("at least {least}{unit}")),
        (None, Some(most)) => Some(format!("at most {most}{unit}")),
        (None, None) => None,
    }
}

/// The messages of the rules of an object, as a list.
fn rules(schema: &Value) -> String {
    let rules = schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten();
    rules
        .filter_map(|rule| rule["message"].as_str())
        .map(|message| wrapped(&format!("- {message}"), "  ") + "\n")
        .collect()
}

/// Breaks a text into lines of at most 120 columns; all but the first begin with `indent`.
fn wrapped(text: &str, indent: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= 120 {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(format!("{indent}{word}"));
        }
    }
    lines.join("\n")
}
