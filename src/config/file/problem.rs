//! What is wrong with a configuration, said so that it can be mended.

use std::fmt;

/// Why a configuration was refused: every problem that was found, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", Lines(.problems))]
pub struct ConfigError {
    /// At least one, in the order in which they were found.
    pub problems: Vec<Problem>,
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

/// One mistake, shown as `file:line: key: what is wrong: what would be right`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {key}: {what}: {fix}")]
pub struct Problem {
    /// The file as it was named by whoever asked for it.
    pub file: String,
    /// Line, from 1; 0 when the file as a whole is meant.
    pub line: u64,
    /// Dotted path, such as `zones[0].upstream.servers[1]`; `yaml` when the text is not YAML, `file` when it
    /// could not be read.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub fix: String,
}

/// What is wrong with a value, before it is known where the value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    what: String,
    fix: String,
}

impl Fault {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }

    /// A value or key that the interface has and this version has not.
    pub(super) fn unavailable() -> Self {
        Self::new("not available in this version", "leave it out")
    }

    pub(super) fn at(self, file: &str, line: u64, key: &str) -> Problem {
        Problem { file: file.to_owned(), line, key: key.to_owned(), what: self.what, fix: self.fix }
    }
}

/// Longest piece of the operator's text that a message repeats, in characters.
const SHOWN: usize = 64;

/// The operator's own text, quoted, on one line and not endless.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
