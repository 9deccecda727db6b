//! Arrows go down only: `main` → roles → what they share → what is pure.

use std::fs;
use std::path::{Path, PathBuf};

/// Which modules of the crate each top-level module may use besides itself.
const MAY_USE: [(&str, &[&str]); 10] = [
    ("api", &[]),
    ("ring", &["api"]),
    ("config", &["api", "ring"]),
    ("report", &["api", "ring", "config"]),
    ("runtime", &["api", "ring"]),
    ("discovery", &["api", "ring", "config", "runtime"]),
    ("cache", &["api", "config", "runtime", "discovery"]),
    ("operator", &["api", "ring", "config", "report", "runtime"]),
    (
        "proxy",
        &["api", "ring", "config", "report", "runtime", "discovery", "cache"],
    ),
    ("probe", &["api", "ring", "config", "report", "runtime"]),
];

/// What tests use everywhere; production code that did would not compile.
const FOR_TESTS: &str = "reached";

/// Parts that must be computed from arguments alone: no client, no socket, no runtime, no clock.
const PURE: [&str; 10] = [
    "api",
    "ring",
    "config",
    "report",
    "operator/validate",
    "operator/build",
    "operator/rotate",
    "operator/peer_certificates",
    "operator/schedule",
    "operator/status",
];

const IMPURE: [&str; 7] = [
    "kube::Client",
    "kube::Api",
    "tokio::",
    "std::net::Tcp",
    "std::fs",
    "SystemTime::now",
    "Timestamp::now",
];

#[test]
fn modules_use_only_what_lies_below_them() {
    for Line { file, number, text } in production_lines() {
        let module = file.split(['/', '.']).next().expect("a name");
        let Some((_, below)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            continue;
        };
        let Some((_, path)) = text.split_once("crate::") else {
            continue;
        };
        let used = path
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .expect("a name");
        assert!(
            used == module || used == FOR_TESTS || below.contains(&used),
            "{file}:{number} uses {used}: {text}"
        );
    }
}

#[test]
fn pure_modules_touch_neither_network_nor_clock() {
    let mut seen = [false; PURE.len()];
    for Line { file, number, text } in production_lines() {
        let pure = PURE
            .iter()
            .position(|pure| file == format!("{pure}.rs") || file.starts_with(&format!("{pure}/")));
        let Some(pure) = pure else { continue };
        seen[pure] = true;
        for word in IMPURE {
            assert!(
                !text.contains(word),
                "{file}:{number} is not pure, it uses {word}: {text}"
            );
        }
    }
    assert!(seen.iter().all(|seen| *seen), "a pure module is gone: {seen:?}");
}

struct Line {
    /// Path below `src`.
    file: String,
    number: usize,
    text: String,
}

/// Every line of the crate but comments and what follows the beginning of a file's tests.
fn production_lines() -> Vec<Line> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect_sources(&root, &mut files);
    files
        .iter()
        .flat_map(|path| {
            let file = path
                .strip_prefix(&root)
                .expect("below src")
                .to_string_lossy()
                .into_owned();
            let source = fs::read_to_string(path).expect("readable");
            let lines: Vec<_> = (1..)
                .zip(source.lines())
                .take_while(|(_, text)| !text.starts_with("#[cfg(test)]"))
                .filter(|(_, text)| !text.trim_start().starts_with("//"))
                .map(|(number, text)| Line {
                    file: file.clone(),
                    number,
                    text: text.to_owned(),
                })
                .collect();
            lines
        })
        .collect()
}

fn collect_sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            collect_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}
