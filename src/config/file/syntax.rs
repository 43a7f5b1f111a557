//! From an error of the YAML reader to a [`Problem`] with the key that was meant.

use serde_saphyr::{Error, MessageFormatter, UserMessageFormatter};

use super::problem::{Fault, Problem};
use super::tree::{Place, Tree, join, place};

/// Says what `error`, met in `text`, means to the operator.
pub(super) fn explain(error: &Error, text: &str, file: &str) -> Problem {
    let error = error.without_snippet();
    let at = error.location().map_or((0, 0), place);
    let (key, fault) = match error {
        Error::AliasError { error, .. } => return explain(error, text, file),
        Error::SerdeUnknownField { field, expected, .. } => {
            // A mistake further on can hide the path, but not the key itself.
            let key = path(text, at, Expect::Key).unwrap_or_else(|| join("", field));
            (Some(key), unknown_key(field, expected))
        }
        Error::DuplicateMappingKey { .. } => {
            (path(text, at, Expect::Key), Fault::new("is written twice", "keep one of the two"))
        }
        Error::NullIntoString { .. } => (path(text, at, Expect::Value), no_value()),
        Error::Unexpected { expected, .. } => {
            let fault = if is_blank(text, at) { no_value() } else { wrong_shape(expected) };
            (path(text, at, Expect::Value), fault)
        }
        Error::MultipleDocuments { .. } => {
            (None, Fault::new("a second YAML document begins here", "keep one document in the file"))
        }
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => {
            let fault = Fault::new(
                format!("is {}", unexpected.escape_debug()),
                format!("write {}", expected.escape_debug()),
            );
            (path(text, at, Expect::KeyOrValue), fault)
        }
        other => {
            let message = UserMessageFormatter.format_message(other);
            let fault = Fault::new(message.escape_debug().to_string(), "write valid YAML");
            (None, fault)
        }
    };
    fault.at(file, at.0, key.as_deref().unwrap_or("yaml"))
}

/// What an error's place is the place of.
enum Expect {
    Key,
    Value,
    KeyOrValue,
}

fn path(text: &str, at: Place, expect: Expect) -> Option<String> {
    let tree = Tree::read(text)?;
    let found = match expect {
        Expect::Key => Tree::key_at(&tree, at),
        Expect::Value => Tree::value_at(&tree, at),
        Expect::KeyOrValue => Tree::key_at(&tree, at).or_else(|| Tree::value_at(&tree, at)),
    };
    found.filter(|path| !path.is_empty())
}

/// Whether nothing but blanks and comments stands at `at`, that is: a key without a value.
fn is_blank(text: &str, (line, column): Place) -> bool {
    let skip = |count: u64| usize::try_from(count.saturating_sub(1)).unwrap_or(usize::MAX);
    let line = text.lines().nth(skip(line)).unwrap_or_default();
    let rest: String = line.chars().skip(skip(column)).collect();
    // A null is placed on the colon before it.
    let rest = rest.trim_start_matches(':').trim();
    rest.is_empty() || rest.starts_with('#')
}

fn no_value() -> Fault {
    Fault::new("has no value", "write one, or leave the key out")
}

fn wrong_shape(expected: &str) -> Fault {
    let (what, fix) = match expected {
        "mapping start" => ("is not a mapping", "write keys and values below it"),
        "sequence start" => ("is not a list", "write [one, another]"),
        "string scalar" => ("is a list or a mapping", "write one value"),
        other => return Fault::new("is out of place", format!("write {other}")),
    };
    Fault::new(what, fix)
}

fn unknown_key(field: &str, known: &[&str]) -> Fault {
    let fix = match nearest(field, known) {
        Some(near) => format!("write {near}"),
        None => format!("write one of {}", known.join(", ")),
    };
    Fault::new("unknown key", fix)
}

/// The one of `known` that `word` was probably meant to be.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, near) = known.iter().map(|known| (distance(word, known), *known)).min()?;
    // Half of the letters wrong may be a slip; more is another word.
    (distance <= near.chars().count() / 2).then_some(near)
}

/// Levenshtein's: how many letters to insert, drop or change.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    // Longer words than any key are no slip of one; and the file's length must not become work.
    let from: Vec<char> = from.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let change = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}
