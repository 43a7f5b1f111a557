//! What a check has found.

use serde::Serialize;

use super::words::{lines_shown, shown};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, and can cost queries or time.
    Warning,
    /// Could not be looked at, which is not to say that it is good.
    Unknown,
    /// Queries are lost, or answered by somebody else.
    Problem,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, one word.
    pub check: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// Why it matters; empty where it is as it should be.
    pub why: String,
    /// What mends it: lines for a shell, those for people behind `#`. Empty where it is as it should be.
    pub mend: String,
}

impl Finding {
    /// The same with nothing in it that a terminal or a shell would take for a command, whatever was read.
    pub fn printable(self) -> Self {
        let Self { check, level, what, why, mend } = self;
        Self { check, level, what: shown(&what), why: lines_shown(&why), mend: lines_shown(&mend) }
    }

    /// As it should be.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, what: what.into(), why: String::new(), mend: String::new() }
    }

    /// Something that can cost queries or time.
    pub fn warning(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { check, level: Level::Warning, what: what.into(), why: why.into(), mend: mend.into() }
    }

    /// Something that costs queries.
    pub fn problem(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { level: Level::Problem, ..Self::warning(check, what, why, mend) }
    }

    /// Something that could not be looked at.
    pub fn unknown(check: &'static str, what: impl Into<String>, unseen: &Unseen) -> Self {
        let Unseen { why, mend } = unseen.clone();
        Self { level: Level::Unknown, ..Self::warning(check, what, why, mend) }
    }
}

/// Why something could not be looked at, and what lets one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unseen {
    /// Why not.
    pub why: String,
    /// A command, as in [`Finding::mend`].
    pub mend: String,
}

impl Unseen {
    /// With a reason and a command.
    pub fn new(why: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { why: why.into(), mend: mend.into() }
    }
}

/// What was looked at, or why not.
pub type Seen<T> = Result<T, Unseen>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_has_no_control_characters() {
        let odd = "a\nb\u{1b}[2J";
        let Finding { what, why, mend, .. } = Finding::problem("port", odd, odd, odd).printable();
        assert_eq!(what, "a\\nb\\u{1b}[2J");
        assert_eq!([why, mend], ["a\nb\\u{1b}[2J"; 2]);
    }
}
