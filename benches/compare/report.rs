//! Medians, ratios and verdicts, as a table or as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use crate::cases::{Case, Entrant, Run};

/// What is known of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    Cpu,
    User,
    System,
    Qps,
    Busy,
    Latency,
    ReplyBytes,
    Resident,
    LesserShare,
    Connections,
    InFlight,
    Segments,
    Writes,
    Idle,
    Loaded,
    Start,
    Both,
    Client,
    Machine,
    Softirq,
    Entries,
}

impl Metric {
    fn title(self) -> &'static str {
        match self {
            Self::Cpu => "CPU us/query",
            Self::User => "user",
            Self::System => "sys",
            Self::Qps => "queries/s",
            Self::Busy => "busy %",
            Self::Latency => "latency us",
            Self::ReplyBytes => "reply B",
            Self::Resident => "RSS MiB",
            Self::LesserShare => "lesser worker %",
            Self::Connections => "connections",
            Self::InFlight => "in flight",
            Self::Segments => "segments/query",
            Self::Writes => "writes/query",
            Self::Idle => "idle RSS MiB",
            Self::Loaded => "RSS MiB, 10,000 entries",
            Self::Start => "start ms",
            Self::Both => "agent+client us/query",
            Self::Client => "client us/query",
            Self::Machine => "machine us/query",
            Self::Softirq => "softirq us/query",
            Self::Entries => "conntrack entries",
        }
    }

    fn decimals(self) -> usize {
        match self {
            Self::Cpu | Self::User | Self::System | Self::Segments | Self::Writes => 2,
            Self::Both | Self::Client | Self::Machine | Self::Softirq => 2,
            Self::Idle | Self::Loaded | Self::Resident | Self::Start | Self::InFlight | Self::LesserShare => {
                1
            }
            Self::Qps | Self::Busy | Self::Latency | Self::ReplyBytes | Self::Connections | Self::Entries => {
                0
            }
        }
    }
}

/// Median, least and greatest.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    least: f64,
    greatest: f64,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, greatest) = (*sorted.first()?, *sorted.last()?);
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        Some(Self { median, least, greatest })
    }

    fn print(self, decimals: usize) -> String {
        let Self { median, least, greatest } = self;
        let (least, greatest) = (format!("{least:.decimals$}"), format!("{greatest:.decimals$}"));
        let median = format!("{median:.decimals$}");
        if least == greatest { median } else { format!("{median} ({least}-{greatest})") }
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.least, "max": self.greatest })
    }
}

/// Something to reach.
pub(crate) struct Target {
    metric: Metric,
    of: Entrant,
    over: Option<Entrant>,
    bound: Bound,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    pub(crate) fn value(metric: Metric, of: Entrant) -> Self {
        Self { metric, of, over: None, bound: Bound::AtMost(f64::INFINITY) }
    }

    /// Of the metric, `of` divided by `over`.
    pub(crate) fn ratio(metric: Metric, of: Entrant, over: Entrant) -> Self {
        Self { over: Some(over), ..Self::value(metric, of) }
    }

    pub(crate) fn at_most(self, limit: f64) -> Self {
        Self { bound: Bound::AtMost(limit), ..self }
    }

    pub(crate) fn at_least(self, limit: f64) -> Self {
        Self { bound: Bound::AtLeast(limit), ..self }
    }

    fn spread(&self, results: &Results) -> Option<Spread> {
        match self.over {
            Some(over) => results.ratio(self.metric, self.of, over),
            None => results.spread(self.metric, self.of),
        }
    }

    fn is_reached(&self, spread: Spread) -> bool {
        match self.bound {
            Bound::AtMost(limit) => spread.median <= limit,
            Bound::AtLeast(limit) => spread.median >= limit,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.metric.title(), self.of.label())?;
        if let Some(over) = self.over {
            write!(out, " / {}", over.label())?;
        }
        match self.bound {
            Bound::AtMost(limit) => write!(out, " <= {limit}"),
            Bound::AtLeast(limit) => write!(out, " >= {limit}"),
        }
    }
}

/// All runs of a case.
pub(crate) struct Results {
    pub(crate) case: Case,
    /// For each round, the run of each entrant, or why there is none.
    pub(crate) rounds: Vec<BTreeMap<String, Result<Run, String>>>,
}

impl Results {
    /// A metric of an entrant in a round, if that run counts.
    fn value(round: &BTreeMap<String, Result<Run, String>>, metric: Metric, entrant: Entrant) -> Option<f64> {
        let run = round.get(&entrant.label())?.as_ref().ok()?;
        if run.fault.is_some() { None } else { run.values.get(&metric).copied() }
    }

    fn spread(&self, metric: Metric, entrant: Entrant) -> Option<Spread> {
        let values: Vec<_> =
            self.rounds.iter().filter_map(|round| Self::value(round, metric, entrant)).collect();
        Spread::of(&values)
    }

    /// Each round's ratio, so that what changes between rounds does not matter.
    fn ratio(&self, metric: Metric, of: Entrant, over: Entrant) -> Option<Spread> {
        let ratios = self.rounds.iter().filter_map(|round| {
            Some(Self::value(round, metric, of)? / Self::value(round, metric, over)?)
                .filter(|ratio| ratio.is_finite())
        });
        Spread::of(&ratios.collect::<Vec<_>>())
    }

    /// What went wrong: (entrant, round counted from 1, why).
    pub(crate) fn faults(&self) -> Vec<(String, usize, String)> {
        let runs = self.rounds.iter().enumerate().flat_map(|(number, round)| {
            round.iter().filter_map(move |(label, run)| {
                let why = match run {
                    Ok(run) => format!("bad: {}", run.fault.as_ref()?),
                    Err(why) => format!("failed: {why}"),
                };
                Some((label.clone(), number + 1, why))
            })
        });
        runs.collect()
    }

    /// True if a run could not be made.
    pub(crate) fn has_failed(&self) -> bool {
        self.rounds.iter().any(|round| round.values().any(Result::is_err))
    }

    fn others(&self) -> impl Iterator<Item = Entrant> {
        let subject = self.case.subject();
        self.case.entrants().into_iter().filter(move |&entrant| entrant != subject)
    }

    pub(crate) fn json(&self) -> Value {
        let columns = self.case.columns();
        let entrants = self.case.entrants().into_iter().map(|entrant| {
            let values = columns.iter().filter_map(|&metric| {
                Some((metric.title().to_owned(), self.spread(metric, entrant)?.json()))
            });
            (entrant.label(), Value::Object(values.collect()))
        });
        let subject = self.case.subject();
        let ratios = self
            .others()
            .filter_map(|other| Some((other.label(), self.ratio(columns[0], subject, other)?.json())));
        let targets = self.case.targets().into_iter().map(|target| {
            let spread = target.spread(self);
            json!({
                "target": target.to_string(),
                "measured": spread.map(Spread::json),
                "reached": spread.map(|spread| target.is_reached(spread)),
            })
        });
        let faults = self
            .faults()
            .into_iter()
            .map(|(entrant, round, why)| json!({ "entrant": entrant, "round": round, "why": why }));
        json!({
            "case": self.case.name(),
            "rounds": self.rounds.len(),
            "entrants": Value::Object(entrants.collect()),
            "ratios": { "of": columns[0].title(), "subject": subject.label(), "over": Value::Object(ratios.collect()) },
            "targets": targets.collect::<Vec<_>>(),
            "faults": faults.collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Results {
    /// Markdown, so that it can be kept as it is.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.case.columns();
        writeln!(out, "\n### {}: {}\n", self.case.name(), self.case.about())?;
        let titles =
            ["".to_owned()].into_iter().chain(columns.iter().map(|metric| metric.title().to_owned()));
        let mut rows = vec![titles.collect::<Vec<_>>()];
        for entrant in self.case.entrants() {
            let cells = columns.iter().map(|&metric| {
                self.spread(metric, entrant).map_or("-".to_owned(), |spread| spread.print(metric.decimals()))
            });
            rows.push([entrant.label()].into_iter().chain(cells).collect());
        }
        table(out, &rows)?;
        let subject = self.case.subject();
        let ratios = self.others().filter_map(|other| {
            let ratio = self.ratio(columns[0], subject, other)?;
            Some(format!("{} {}", other.label(), ratio.print(2)))
        });
        let ratios = ratios.collect::<Vec<_>>().join(", ");
        if !ratios.is_empty() {
            writeln!(out, "\n{}, {} divided by: {ratios}", columns[0].title(), subject.label())?;
        }
        let mut rows = vec![["target", "measured", "verdict"].map(str::to_owned).to_vec()];
        for target in self.case.targets() {
            let (measured, verdict) = match target.spread(self) {
                Some(spread) => {
                    (spread.print(2), if target.is_reached(spread) { "reached" } else { "missed" })
                }
                None => ("-".to_owned(), "not measured"),
            };
            rows.push(vec![target.to_string(), measured, verdict.to_owned()]);
        }
        if rows.len() > 1 {
            writeln!(out)?;
            table(out, &rows)?;
        }
        let faults = self.faults();
        if !faults.is_empty() {
            writeln!(out)?;
        }
        for (entrant, round, why) in faults {
            writeln!(out, "- {entrant}, round {round}: {why}")?;
        }
        Ok(())
    }
}

/// A Markdown table whose columns line up.
fn table(out: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
        .collect();
    for (number, row) in rows.iter().enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            write!(out, "| {cell:<width$} ")?;
        }
        writeln!(out, "|")?;
        if number == 0 {
            widths.iter().try_for_each(|&width| write!(out, "|{:-<1$}", "", width + 2))?;
            writeln!(out, "|")?;
        }
    }
    Ok(())
}
