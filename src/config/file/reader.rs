//! Reads values one by one and keeps what is wrong with them, so that an operator hears of everything at
//! once.

use super::problem::{ConfigError, Fault, Problem};
use super::raw::{Key, Text};

/// The problems of one file so far.
pub(super) struct Reader<'f> {
    file: &'f str,
    problems: Vec<Problem>,
}

impl<'f> Reader<'f> {
    pub(super) fn new(file: &'f str) -> Self {
        Self { file, problems: Vec::new() }
    }

    /// `value`, unless something was wrong.
    pub(super) fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        if self.problems.is_empty() { Ok(value) } else { Err(ConfigError { problems: self.problems }) }
    }

    pub(super) fn refuse(&mut self, key: &str, line: u64, fault: Fault) {
        self.problems.push(fault.at(self.file, line, key));
    }

    /// What `parse` makes of a value; `default` when it was not written, or was wrong, which ends in an
    /// error.
    pub(super) fn value<T>(
        &mut self,
        key: &str,
        raw: &Key<String>,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> T {
        raw.0.as_ref().and_then(|text| self.text(key, text, parse)).unwrap_or(default)
    }

    /// What `parse` makes of a value that was written.
    pub(super) fn text<T>(
        &mut self,
        key: &str,
        text: &Text,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        match parse(&text.value) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.refuse(key, text.referenced.line(), fault);
                None
            }
        }
    }

    /// What `parse` makes of each item, with the item's own key and line; wrong items are left out.
    pub(super) fn items<T>(
        &mut self,
        key: &str,
        items: &[Text],
        parse: impl Fn(&str) -> Result<T, Fault>,
    ) -> Vec<Item<T>> {
        let read = |(index, text): (usize, &Text)| {
            let key = format!("{key}[{index}]");
            let value = self.text(&key, text, &parse)?;
            Some(Item { key, line: text.referenced.line(), value })
        };
        items.iter().enumerate().filter_map(read).collect()
    }

    /// Refuses each item that `same` says was there before, with `fix` as what would be right.
    pub(super) fn refuse_repeats<T>(&mut self, items: &[Item<T>], same: impl Fn(&T, &T) -> bool) {
        for (index, item) in items.iter().enumerate() {
            if let Some(first) = items[..index].iter().find(|earlier| same(&earlier.value, &item.value)) {
                let what = format!("repeats {} in line {}", first.key, first.line);
                self.refuse(&item.key, item.line, Fault::new(what, "keep one of the two"));
            }
        }
    }

    /// A key that this version accepts at its default alone.
    pub(super) fn only<T: PartialEq>(
        &mut self,
        key: &str,
        raw: &Key<String>,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) {
        if let Some(text) = &raw.0
            && !parse(&text.value).is_ok_and(|value| value == default)
        {
            self.refuse(key, text.referenced.line(), Fault::unavailable());
        }
    }
}

/// One item of a list, with its place.
pub(super) struct Item<T> {
    pub(super) key: String,
    pub(super) line: u64,
    pub(super) value: T,
}
