//! What a case measured, as a table or as JSON.

use std::fmt;

use serde_json::{Map, Value, json};

/// One case.
#[derive(Default)]
pub(crate) struct Report {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    targets: Vec<(String, f64, bool)>,
}

impl Report {
    /// A table of values, each with its name in front.
    pub(crate) fn new(title: &str) -> Self {
        Self::with_columns(title, &["", "measured"])
    }

    pub(crate) fn with_columns(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { title: title.to_owned(), columns, ..Self::default() }
    }

    /// A name and its value; further columns stay empty.
    pub(crate) fn row(&mut self, what: &str, value: impl fmt::Display) {
        let mut cells = vec![what.to_owned(), value.to_string()];
        cells.resize(self.columns.len().max(2), String::new());
        self.rows.push(cells);
    }

    /// A line with a value for each column.
    pub(crate) fn line(&mut self, values: Vec<String>) {
        self.rows.push(values);
    }

    pub(crate) fn at_most(&mut self, what: &str, limit: f64, measured: f64) {
        self.targets.push((format!("{what} <= {limit}"), measured, measured <= limit));
    }

    pub(crate) fn at_least(&mut self, what: &str, limit: f64, measured: f64) {
        self.targets.push((format!("{what} >= {limit}"), measured, measured >= limit));
    }

    pub(crate) fn json(&self) -> Value {
        let row = |row: &Vec<String>| {
            let cells =
                self.columns.iter().zip(row).skip(1).map(|(name, value)| (name.clone(), json!(value)));
            (row[0].clone(), Value::Object(cells.collect()))
        };
        let rows: Map<String, Value> = self.rows.iter().map(row).collect();
        let target = |(what, measured, reached): &(String, f64, bool)| json!({ "target": what, "measured": measured, "reached": reached });
        json!({ "case": self.title, "values": rows, "targets": self.targets.iter().map(target).collect::<Vec<_>>() })
    }
}

impl fmt::Display for Report {
    /// Markdown, so that it can be kept as it is.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "\n### {}\n", self.title)?;
        table(out, &self.columns, &self.rows)?;
        if !self.targets.is_empty() {
            writeln!(out)?;
            let verdict = |reached| if reached { "reached" } else { "MISSED" }.to_owned();
            let rows: Vec<_> = self
                .targets
                .iter()
                .map(|(what, measured, reached)| {
                    vec![what.clone(), format!("{measured:.2}"), verdict(*reached)]
                })
                .collect();
            table(out, &["target", "measured", "verdict"].map(str::to_owned), &rows)?;
        }
        Ok(())
    }
}

fn table(out: &mut fmt::Formatter<'_>, titles: &[String], rows: &[Vec<String>]) -> fmt::Result {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).chain(titles.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    for (number, row) in std::iter::once(titles).chain(rows.iter().map(Vec::as_slice)).enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            write!(out, "| {cell:<width$} ")?;
        }
        writeln!(out, "|")?;
        if number == 0 {
            writeln!(out, "|{}|", rule.join("|"))?;
        }
    }
    Ok(())
}
