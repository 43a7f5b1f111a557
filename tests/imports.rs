//! The import rule: data goes down once and comes back up once, and nothing lower knows anything higher.
//!
//! `serve → resolve → {cache, upstream} → wire`, with `zone`, `config` and `metrics` as leaves beside them.
//! The test reads the source, so that a forbidden path fails here whatever it is used for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module with those that it may know beside itself; `None` for those that may know all.
const MAY_IMPORT: [(&str, Option<&[&str]>); 21] = [
    ("wire", Some(&[])),
    ("config", Some(&[])),
    ("clock", Some(&[])),
    ("sys", Some(&[])),
    ("readiness", Some(&["metrics"])),
    ("metrics", Some(&["wire"])),
    ("zone", Some(&["wire"])),
    ("cache", Some(&["wire", "zone", "config", "metrics"])),
    ("upstream", Some(&["clock", "wire", "zone", "config", "metrics"])),
    ("resolve", Some(&["clock", "cache", "upstream", "wire", "zone", "config", "metrics"])),
    (
        "serve",
        Some(&["sys", "readiness", "resolve", "cache", "upstream", "wire", "zone", "config", "metrics"]),
    ),
    ("node", Some(&["config", "metrics", "readiness", "sys"])),
    ("parent", Some(&["sys"])),
    ("keep", Some(&["config", "parent", "serve", "sys"])),
    ("privileges", Some(&["config"])),
    ("demo", Some(&[])),
    (
        "doctor",
        Some(&[
            "admin",
            "cache",
            "clock",
            "config",
            "node",
            "privileges",
            "readiness",
            "resolve",
            "serve",
            "upstream",
            "wire",
        ]),
    ),
    ("admin", None),
    ("app", None),
    ("cli", None),
    ("lib", None),
];

/// The one file whose system calls no crate offers.
const UNSAFE_IN: &str = "sys.rs";

struct Source {
    /// Its path below `src/`.
    path: String,
    /// The top module that it belongs to.
    module: String,
    /// Its text without comments.
    code: String,
}

/// All source files.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let read = |file: PathBuf| {
        let path = file.strip_prefix(&root).expect("a file below src");
        let path = path.to_str().expect("a path in ASCII").replace('\\', "/");
        let module = path.split(['/', '.']).next().unwrap_or_default().to_owned();
        let text = fs::read_to_string(&file).expect("a readable file");
        Source { path, module, code: without_comments(&text) }
    };
    files.into_iter().map(read).collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable directory") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The text without line comments. A `//` inside of a string follows a colon in this code, never a blank.
fn without_comments(text: &str) -> String {
    let code = |line: &str| match line.find("//") {
        Some(at) if line[..at].chars().next_back().is_none_or(char::is_whitespace) => line[..at].to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(code).collect::<Vec<_>>().join("\n")
}

/// The modules behind each `crate::`, those of a group included.
fn imports(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        if code[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let behind = &code[at + path.len()..];
        match behind.strip_prefix('{') {
            Some(group) => modules.extend(heads(group)),
            None => modules.extend(word(behind)),
        }
    }
    modules
}

/// The first word of every path at the outermost level of a group, up to its closing brace.
fn heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0;
    let mut first = true;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => first = true,
            _ if first && is_word(letter) => {
                heads.extend(word(&group[at..]));
                first = false;
            }
            _ => {}
        }
    }
    heads
}

fn word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|&letter| is_word(letter)).collect();
    (!word.is_empty()).then_some(word)
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The longest run of `super::` in the code: how far up it reaches.
fn climbs(code: &str) -> usize {
    let mut rest = code;
    let mut longest = 0;
    while let Some(at) = rest.find("super::") {
        rest = &rest[at..];
        let mut run = 0;
        while let Some(behind) = rest.strip_prefix("super::") {
            rest = behind;
            run += 1;
        }
        longest = longest.max(run);
    }
    longest
}

#[test]
fn lower_modules_do_not_import_higher_ones() {
    let mut wrong = Vec::new();
    for Source { path, module, code } in sources() {
        if module == "main" {
            continue;
        }
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(known, _)| *known == module) else {
            wrong.push(format!("src/{path}: module `{module}` has no place in the import rule yet"));
            continue;
        };
        let Some(allowed) = allowed else { continue };
        for import in imports(&code) {
            if import != module && !allowed.contains(&import.as_str()) {
                wrong.push(format!("src/{path}: `{module}` must not import `{import}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Otherwise `super::super::cache` would be a way around the rule.
#[test]
fn no_path_climbs_out_of_its_top_module() {
    let mut wrong = Vec::new();
    for Source { path, module, code } in sources() {
        if matches!(module.as_str(), "main" | "lib") {
            continue;
        }
        let depth = path.matches('/').count();
        // An inline module (of tests, at the end of a file) is one level deeper.
        let (code, inline) = match code.find("\nmod tests {") {
            Some(at) => code.split_at(at),
            None => (code.as_str(), ""),
        };
        let groups_out = depth == 0 && code.contains("use super::");
        if climbs(code) > depth || climbs(inline) > depth + 1 || groups_out {
            wrong.push(format!("src/{path}"));
        }
    }
    assert!(wrong.is_empty(), "`super::` leads to the root of the crate in {wrong:?}");
}

#[test]
fn unsafe_stands_in_one_file() {
    let is_unsafe = |code: &str| code.split(|letter| !is_word(letter)).any(|word| word == "unsafe");
    let found: Vec<String> =
        sources().into_iter().filter(|source| is_unsafe(&source.code)).map(|source| source.path).collect();
    assert_eq!(found, [UNSAFE_IN]);
}

#[test]
fn the_reader_of_imports_sees_paths_groups_and_no_comments() {
    let code = without_comments(
        "use crate::wire::{flag, rcode};\n//! [`crate::app`]\nlet x = crate::cache::entry(1); // crate::cli\n\
         use crate::{config::{self, Config}, zone};\nlet url = \"tcp://x\"; my_crate::admin();",
    );
    assert_eq!(imports(&code).into_iter().collect::<Vec<_>>(), ["cache", "config", "wire", "zone"]);
    assert_eq!(climbs("use super::super::x; super::y"), 2);
}
