//! Arrows go down only: `main` → roles → what they share → what is pure.

use std::fs;
use std::path::{Path, PathBuf};

/// Which modules of the crate each top-level module may use besides itself.
const MAY_USE: [(&str, &[&str]); 9] = [
    ("api", &[]),
    ("ring", &["api"]),
    ("config", &["api", "ring"]),
    ("report", &["api", "ring", "config"]),
    ("runtime", &["api", "ring"]),
    ("discovery", &["api", "ring", "config", "runtime"]),
    ("operator", &["api", "ring", "config", "report", "runtime"]),
    (
        "proxy",
        &["api", "ring", "config", "report", "runtime", "discovery"],
    ),
    ("probe", &["api", "ring", "config", "report", "runtime"]),
];

/// Parts that must be computed from arguments alone: no client, no socket, no runtime, no clock.
const PURE: [&str; 6] = [
    "api",
    "ring",
    "config",
    "report",
    "operator/validate",
    "operator/build",
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
    for file in sources(&root(), &mut Vec::new()) {
        let relative = file
            .strip_prefix(root())
            .expect("below src")
            .to_string_lossy()
            .into_owned();
        let module = relative.split(['/', '.']).next().expect("a name");
        let Some((_, below)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            continue;
        };
        for (number, line) in production_lines(&file) {
            let Some((_, path)) = line.split_once("crate::") else {
                continue;
            };
            let used = path
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
                .expect("a name");
            assert!(
                used == module || below.contains(&used),
                "{relative}:{number} uses {used}: {line}"
            );
        }
    }
}

#[test]
fn pure_modules_touch_neither_network_nor_clock() {
    for file in sources(&root(), &mut Vec::new()) {
        let relative = file
            .strip_prefix(root())
            .expect("below src")
            .to_string_lossy()
            .into_owned();
        let is_pure = PURE
            .iter()
            .any(|pure| relative == format!("{pure}.rs") || relative.starts_with(&format!("{pure}/")));
        for (number, line) in production_lines(&file).into_iter().filter(|_| is_pure) {
            for word in IMPURE {
                assert!(
                    !line.contains(word),
                    "{relative}:{number} is not pure, it uses {word}: {line}"
                );
            }
        }
    }
}

/// Lines before the tests of a file, without comments.
fn production_lines(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).expect("readable");
    (1..)
        .zip(text.lines())
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(number, line)| (number, line.to_owned()))
        .collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) -> Vec<PathBuf> {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.clone()
}
