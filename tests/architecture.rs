//! Which parts of the crate may use which: arrows go down, no files form a circle, and what is pure touches nothing outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// Which modules of the crate each top-level module may use besides itself.
const MAY_USE: [(&str, &[&str]); 12] = [
    ("api", &[]),
    ("ring", &["api"]),
    ("config", &["api", "ring"]),
    ("report", &["api", "ring", "config"]),
    ("runtime", &["api", "ring"]),
    ("compile", &["api", "ring", "config"]),
    ("discovery", &["api", "ring", "config", "runtime"]),
    ("resp", &["api", "config", "runtime"]),
    ("cache", &["api", "config", "runtime", "discovery", "resp"]),
    (
        "operator",
        &["api", "ring", "config", "report", "runtime", "compile"],
    ),
    (
        "proxy",
        &["api", "ring", "config", "report", "runtime", "discovery", "resp"],
    ),
    ("probe", &["api", "ring", "config", "report", "runtime"]),
];

/// What tests use everywhere; production code that did would not compile.
const FOR_TESTS: &str = "reached";

/// Directories whose files compute everything from their arguments: no client, no socket, no runtime, no clock.
const PURE: [&str; 7] = [
    "api",
    "ring",
    "config",
    "report",
    "compile",
    "operator/decide",
    "operator/build",
];

const IMPURE: [&str; 8] = [
    "kube::Client",
    "kube::Api",
    "tokio::",
    "std::net::Tcp",
    "std::fs",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
];

/// Most files in one directory, besides `tests.rs`: more than that nobody takes in at a glance.
const MOST_FILES: usize = 12;

#[test]
fn modules_import_only_from_lower_layers() {
    let sources = Sources::read();
    for (module, used) in sources.edges() {
        let top = |module: &str| module.split("::").next().expect("a name").to_owned();
        let (from, to) = (top(module), top(used));
        let Some((_, below)) = MAY_USE.iter().find(|(name, _)| *name == from) else {
            continue;
        };
        assert!(
            to == from || to == FOR_TESTS || below.contains(&to.as_str()),
            "{module} uses {used}, which does not lie below it"
        );
    }
}

#[test]
fn modules_have_no_import_cycles() {
    let sources = Sources::read();
    let mut below: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (module, used) in sources.edges() {
        below.entry(module).or_default().insert(used);
    }
    let mut open: BTreeSet<&str> = below.keys().copied().collect();
    // Remove modules that import none of the remaining ones: they are in no cycle.
    loop {
        let before = open.len();
        let left = open.clone();
        open.retain(|module| below[module].iter().any(|used| left.contains(used)));
        if open.len() == before {
            break;
        }
    }
    // The remaining modules are in a cycle or import one; those in a cycle reach themselves.
    let circles: Vec<String> = open
        .iter()
        .filter(|module| reachable(module, &below).contains(*module))
        .map(|module| {
            let used: Vec<_> = below[module].intersection(&open).copied().collect();
            format!("{module} uses {}", used.join(", "))
        })
        .collect();
    assert!(circles.is_empty(), "files form a circle:\n{}", circles.join("\n"));
}

#[test]
fn pure_directories_touch_neither_network_nor_clock() {
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

#[test]
fn no_directory_holds_too_many_files() {
    let mut files: BTreeMap<PathBuf, usize> = BTreeMap::new();
    let top = source_root();
    for path in sources() {
        let directory = path.parent().expect("a directory");
        // The files at the top are the modules themselves.
        if directory == top || path.ends_with("tests.rs") {
            continue;
        }
        *files.entry(directory.to_owned()).or_default() += 1;
    }
    let full: Vec<_> = files.iter().filter(|(_, count)| **count > MOST_FILES).collect();
    assert!(full.is_empty(), "too many files: {full:?}");
}

/// Everything that `module` uses, and what that uses in turn.
fn reachable<'a>(module: &str, below: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&str> = below.get(module).into_iter().flatten().copied().collect();
    while let Some(module) = next.pop() {
        if found.insert(module) {
            next.extend(below.get(module).into_iter().flatten());
        }
    }
    found
}

/// The crate's files by module path, without their tests. The crate itself is the empty path.
struct Sources {
    modules: BTreeMap<String, Names>,
}

/// What one file names.
#[derive(Default)]
struct Names {
    /// Paths that start with `crate`, `self` or `super`, made absolute.
    used: BTreeSet<Vec<String>>,
    /// Names that the file hands on, and where they come from.
    exported: BTreeMap<String, Vec<String>>,
}

impl Sources {
    fn read() -> Self {
        let root = source_root();
        let module = |path: &Path| {
            let below = path.strip_prefix(&root).expect("below src").with_extension("");
            let name = below.to_string_lossy().replace('/', "::");
            match name.as_str() {
                "lib" => String::new(),
                _ => name,
            }
        };
        let files = sources().into_iter().filter(|path| *path != root.join("main.rs"));
        let modules = files.map(|path| {
            let text = fs::read_to_string(&path).expect("readable");
            let module = module(&path);
            let mut reader = Reader {
                module: module
                    .split("::")
                    .filter(|name| !name.is_empty())
                    .map(Into::into)
                    .collect(),
                children: BTreeSet::new(),
                names: Names::default(),
            };
            let file = syn::parse_file(&text).expect("Rust");
            reader.children = children(&file);
            reader.visit_file(&file);
            (module, reader.names)
        });
        Self {
            modules: modules.filter(|(module, _)| !is_for_tests(module)).collect(),
        }
    }

    /// Which file imports which other one. A re-export does not count: an import of it counts for the original file.
    fn edges(&self) -> impl Iterator<Item = (&str, &str)> {
        self.modules.iter().flat_map(|(module, names)| {
            let used = names.used.iter().filter_map(|path| self.resolve(path, 0));
            used.filter(move |used| used != module)
                .map(move |used| (module.as_str(), used))
        })
    }

    /// The file that holds what a path names.
    fn resolve(&self, path: &[String], depth: usize) -> Option<&str> {
        assert!(depth < 8, "{path:?} is handed on in a circle");
        let length = (0..=path.len()).rev().find(|length| {
            let module = path.iter().take(*length).cloned().collect::<Vec<_>>().join("::");
            self.modules.contains_key(&module)
        })?;
        let (module, rest) = path.split_at(length);
        let (module, names) = self.modules.get_key_value(&module.join("::"))?;
        let handed_on = rest.first().and_then(|name| names.exported.get(name));
        match handed_on {
            Some(from) => self.resolve(&[from.as_slice(), &rest[1..]].concat(), depth + 1),
            // A module's own name, as in `use super::{self, x}`, resolves to its own file.
            None => Some(module),
        }
    }
}

fn is_for_tests(module: &str) -> bool {
    module
        .split("::")
        .any(|name| ["tests", "fixtures", "test_dir", FOR_TESTS].contains(&name))
}

/// Modules that have files of their own.
fn children(file: &syn::File) -> BTreeSet<String> {
    let modules = file.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) if module.content.is_none() => Some(module.ident.to_string()),
        _ => None,
    });
    modules.collect()
}

struct Reader {
    module: Vec<String>,
    /// Modules that the file declares: their names need neither `crate` nor `self`.
    children: BTreeSet<String>,
    names: Names,
}

impl Reader {
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let is_child = |name: &String| self.children.contains(name);
        let supers = path.iter().take_while(|name| *name == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([&self.module, &path[1..]].concat()),
            "super" => {
                let kept = self.module.len().checked_sub(supers)?;
                Some([&self.module[..kept], &path[supers..]].concat())
            }
            // A name alone may be a variable.
            _ if path.len() > 1 && path.first().is_some_and(is_child) => Some([&self.module, path].concat()),
            _ => None,
        }
    }

    fn read_use(&mut self, prefix: &[String], tree: &syn::UseTree, exported: bool) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.read_use(&with(&path.ident), &path.tree, exported),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.read_use(prefix, tree, exported);
                }
            }
            syn::UseTree::Name(name) if name.ident == "self" => {
                self.read_name(prefix.to_vec(), None, exported)
            }
            syn::UseTree::Name(name) => self.read_name(with(&name.ident), Some(&name.ident), exported),
            syn::UseTree::Rename(rename) => {
                self.read_name(with(&rename.ident), Some(&rename.rename), exported);
            }
            syn::UseTree::Glob(_) => self.read_name(prefix.to_vec(), None, false),
        }
    }

    fn read_name(&mut self, path: Vec<String>, name: Option<&syn::Ident>, exported: bool) {
        let is_child = |path: &Vec<String>| exported && path.starts_with(&self.module);
        let Some(absolute) = self.absolute(&path) else {
            return;
        };
        match name {
            Some(name) if is_child(&absolute) => {
                self.names.exported.insert(name.to_string(), absolute);
            }
            _ => {
                self.names.used.insert(absolute);
            }
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let for_tests = item.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Path>()
                    .is_ok_and(|path| path.is_ident("test"))
        });
        if !for_tests {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let exported = !matches!(item.vis, syn::Visibility::Inherited);
        self.read_use(&[], &item.tree, exported);
    }

    /// A visibility names who may use an item; it is not an import.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if let Some(absolute) = self.absolute(&names) {
            self.names.used.insert(absolute);
        }
        syn::visit::visit_path(self, path);
    }
}

struct Line {
    /// Path below `src`.
    file: String,
    number: usize,
    text: String,
}

/// Every line of the crate but comments and what follows the beginning of a file's tests.
fn production_lines() -> Vec<Line> {
    let root = source_root();
    sources()
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

fn source_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    collect_sources(&source_root(), &mut files);
    files
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
