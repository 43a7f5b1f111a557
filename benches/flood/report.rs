//! What a case measured, as a table or as JSON.

use std::fmt;

use serde_json::{Map, Value, json};

/// One case.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) title: String,
    rows: Vec<(String, String)>,
    targets: Vec<(String, f64, bool)>,
}

impl Report {
    pub(crate) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), ..Self::default() }
    }

    pub(crate) fn row(&mut self, what: &str, value: impl fmt::Display) {
        self.rows.push((what.to_owned(), value.to_string()));
    }

    pub(crate) fn at_most(&mut self, what: &str, limit: f64, measured: f64) {
        self.targets.push((format!("{what} <= {limit}"), measured, measured <= limit));
    }

    pub(crate) fn at_least(&mut self, what: &str, limit: f64, measured: f64) {
        self.targets.push((format!("{what} >= {limit}"), measured, measured >= limit));
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Map<String, Value> =
            self.rows.iter().map(|(what, value)| (what.clone(), json!(value))).collect();
        let target = |(what, measured, reached): &(String, f64, bool)| json!({ "target": what, "measured": measured, "reached": reached });
        json!({ "case": self.title, "values": rows, "targets": self.targets.iter().map(target).collect::<Vec<_>>() })
    }
}

impl fmt::Display for Report {
    /// Markdown, so that it can be kept as it is.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "\n### {}\n", self.title)?;
        let rows = self.rows.iter().map(|(what, value)| [what.clone(), value.clone()]);
        table(out, ["", "measured"], rows)?;
        if !self.targets.is_empty() {
            writeln!(out)?;
            let verdict = |reached| if reached { "reached" } else { "MISSED" };
            let rows = self.targets.iter().map(|(what, measured, reached)| {
                [what.clone(), format!("{measured:.2}, {}", verdict(*reached))]
            });
            table(out, ["target", "measured"], rows)?;
        }
        Ok(())
    }
}

fn table(
    out: &mut fmt::Formatter<'_>,
    titles: [&str; 2],
    rows: impl Iterator<Item = [String; 2]>,
) -> fmt::Result {
    let mut rows: Vec<[String; 2]> = rows.collect();
    rows.insert(0, titles.map(str::to_owned));
    let widths = [0, 1].map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for (number, [what, value]) in rows.iter().enumerate() {
        writeln!(out, "| {what:<0$} | {value:<1$} |", widths[0], widths[1])?;
        if number == 0 {
            writeln!(out, "|{}|{}|", "-".repeat(widths[0] + 2), "-".repeat(widths[1] + 2))?;
        }
    }
    Ok(())
}
