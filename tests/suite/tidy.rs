//! The house rules of source text that a compiler does not check: what a file opens with, how long
//! it may be, what it must not name. Reads the repository as text; knows no behaviour.

mod files;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const RUST_LINES_MAX: usize = 600;
const RUST_LINES_USUAL: usize = 400;
const WGSL_LINES_MAX: usize = 250;
const FUNCTION_LINES_MAX: usize = 70;

/// The folders that hold no source of ours.
const SKIPPED: [&str; 4] = ["target", ".git", ".cache", "__pycache__"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the root")
        .to_path_buf()
}

/// One text file of the repository, with its path relative to the root.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn lines(&self) -> usize {
        self.text.lines().count()
    }

    /// The text before the file's test module; nothing for a file that is all tests.
    fn product_text(&self) -> &str {
        let of_tests = self.path.contains("tests/")
            || self.path.contains("/examples/")
            || self.path.ends_with("tests.rs")
            || self.path.ends_with("build.rs");
        if of_tests {
            return "";
        }
        self.text
            .split("#[cfg(test)]\nmod ")
            .next()
            .unwrap_or_default()
    }
}

/// All text files whose path ends so, in a stable order.
fn sources(endings: &[&str]) -> Vec<Source> {
    let root = root();
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("folder can be read") {
            let path = entry.expect("entry can be read").path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .expect("names are UTF-8");
            if path.is_dir() {
                if !SKIPPED.contains(&name) {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let relative = path.strip_prefix(&root).expect("below the root");
                let relative = relative
                    .to_str()
                    .expect("names are UTF-8")
                    .replace('\\', "/");
                let text = std::fs::read_to_string(&path)
                    .unwrap_or_else(|error| panic!("{relative} is no text: {error}"));
                found.push(Source {
                    path: relative,
                    text,
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no files end with {endings:?}");
    found
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Fails with every broken rule at once, one a line.
fn assert_tidy(faults: &[String]) {
    let mut list = String::new();
    for fault in faults {
        let _ = write!(list, "\n  {fault}");
    }
    assert!(faults.is_empty(), "{} faults:{list}", faults.len());
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut faults = Vec::new();
    for file in sources(&[".rs"]) {
        if !file.text.starts_with("//! ") {
            faults.push(format!("{} does not open with `//!`", file.path));
        }
    }
    for file in sources(&[".wgsl"]) {
        if !file.text.starts_with("// ") {
            faults.push(format!("{} does not open with a comment", file.path));
        }
    }
    assert_tidy(&faults);
}

#[test]
fn files_keep_within_their_budgets() {
    let mut faults = Vec::new();
    let rust = sources(&[".rs"]);
    for (files, lines_max) in [
        (&rust, RUST_LINES_MAX),
        (&sources(&[".wgsl"]), WGSL_LINES_MAX),
    ] {
        for file in files.iter().filter(|file| file.lines() > lines_max) {
            faults.push(format!(
                "{}: {} lines, at most {lines_max}",
                file.path,
                file.lines()
            ));
        }
    }
    let long = rust
        .iter()
        .filter(|file| file.lines() > RUST_LINES_USUAL)
        .count();
    if long * 10 > rust.len() {
        let of = rust.len();
        faults.push(format!(
            "{long} of {of} files have over {RUST_LINES_USUAL} lines: over a tenth"
        ));
    }
    assert_tidy(&faults);
}

/// The functions of formatted Rust text with their lines of code, comments and blanks left out.
/// rustfmt puts the closing brace of an item under its first letter, so no parser is needed.
fn functions(text: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for (first, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let words = code.split(['(', '<']).next().unwrap_or_default();
        let is_function = (code.starts_with("fn ")
            || code.starts_with("pub") && code.contains(" fn ")
            || words.contains("async fn ")
            || words.contains("const fn "))
            && !code.starts_with("//");
        if !is_function || code.ends_with([';', '}']) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        let body = lines[first..].iter().take_while(|line| **line != end);
        let is_code = |line: &&&str| !line.trim().is_empty() && !line.trim().starts_with("//");
        let name = code
            .split("fn ")
            .nth(1)
            .unwrap_or(code)
            .split(['(', '<'])
            .next();
        found.push((
            name.unwrap_or_default().to_owned(),
            body.filter(is_code).count() + 1,
        ));
    }
    found
}

#[test]
fn functions_keep_within_their_budget() {
    let counted =
        functions("impl A {\n    pub(crate) fn b() {\n        // c\n        d();\n    }\n}\n");
    assert_eq!(counted, [("b".to_owned(), 3)]);
    let mut faults = Vec::new();
    for file in sources(&[".rs"]) {
        for (name, lines) in functions(file.product_text()) {
            if lines > FUNCTION_LINES_MAX {
                faults.push(format!("{}: {name} has {lines} lines", file.path));
            }
        }
    }
    assert_tidy(&faults);
}

#[test]
fn every_shader_is_used() {
    let table: String = sources(&[".rs"])
        .iter()
        .filter(|file| file.path.starts_with("shaders/src/"))
        .map(|file| file.text.as_str())
        .collect();
    let mut faults = Vec::new();
    for file in sources(&[".wgsl"]) {
        let named = file.path.trim_start_matches("shaders/");
        if !file.path.starts_with("shaders/") || !table.contains(named) {
            faults.push(format!("{} is in no table of shaders/src", file.path));
        }
    }
    assert_tidy(&faults);
}

#[test]
fn nothing_is_left_unfinished() {
    // Put together here, so that this file does not find itself.
    let marks = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
        "(being written",
    ];
    let mut faults = Vec::new();
    for file in sources(&[
        ".rs", ".wgsl", ".proto", ".md", ".toml", ".sh", ".py", "Makefile",
    ]) {
        if file.path == "tests/suite/tidy.rs" {
            continue;
        }
        for mark in marks.iter().filter(|mark| file.text.contains(**mark)) {
            faults.push(format!("{} says {mark}", file.path));
        }
    }
    assert_tidy(&faults);
}

#[test]
fn nothing_prints_behind_the_callers_back() {
    let mut faults = Vec::new();
    for file in sources(&[".rs"]) {
        for (number, line) in file.product_text().lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if ["print!(", "println!("]
                .iter()
                .any(|call| code.contains(call))
            {
                faults.push(format!(
                    "{}:{}: write to a locked handle",
                    file.path,
                    number + 1
                ));
            }
        }
    }
    assert_tidy(&faults);
}

#[test]
fn only_the_gpu_folder_names_wgpu() {
    let mut faults = Vec::new();
    for file in sources(&[".rs"]) {
        let allowed =
            file.path.starts_with("daemon/engine/src/gpu/") || file.path.starts_with("tests/");
        if !allowed && (file.text.contains("wgpu::") || file.text.contains("use wgpu")) {
            faults.push(format!("{} names wgpu", file.path));
        }
    }
    assert_tidy(&faults);
}

#[test]
fn no_file_names_a_registry() {
    let hosts = [
        concat!("crates", ".io"),
        concat!("py", "pi.org"),
        concat!("python", "hosted.org"),
        concat!("npm", "js."),
        concat!("debian", ".org"),
    ];
    let mut faults = Vec::new();
    // Cargo.lock is cargo's own and names its index on every entry.
    for file in sources(&[
        ".rs", ".wgsl", ".proto", ".md", ".toml", ".sh", ".py", "Makefile",
    ]) {
        for host in hosts.iter().filter(|host| file.text.contains(**host)) {
            faults.push(format!("{} names {host}", file.path));
        }
    }
    assert_tidy(&faults);
}
