//! dig, kdig and dnsperf, and what they print.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use super::ports::run;
use super::process::missing;

/// One record as dig prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) ttl: u32,
    pub(crate) class: String,
    pub(crate) record_type: String,
    pub(crate) data: String,
}

/// A reply as dig or kdig prints it.
#[derive(Debug, Default)]
pub(crate) struct Printed {
    /// `NOERROR`, `NXDOMAIN`, …; empty when no reply came.
    pub(crate) status: String,
    pub(crate) flags: Vec<String>,
    /// The question's name as it came back.
    pub(crate) question: String,
    pub(crate) answers: Vec<Line>,
    pub(crate) authority: Vec<Line>,
    /// Lines about the OPT; none when the reply had none.
    pub(crate) edns: Vec<String>,
    /// Whether the answer came by TCP.
    pub(crate) by_tcp: bool,
    /// Everything, for messages of failed tests.
    pub(crate) text: String,
}

impl Printed {
    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|found| found == flag)
    }

    /// RDATA of the answers of one type, in order.
    pub(crate) fn data(&self, record_type: &str) -> Vec<&str> {
        self.answers
            .iter()
            .filter(|line| line.record_type == record_type)
            .map(|line| line.data.as_str())
            .collect()
    }

    /// Whether an extended error with this code came (RFC 8914).
    pub(crate) fn has_extended_error(&self, code: u16) -> bool {
        self.edns
            .iter()
            .any(|line| line.contains(&format!("EDE: {code} ")) || line.ends_with(&format!("EDE: {code}")))
    }
}

/// Asks by dig; one try and 6 s unless `arguments` say otherwise.
#[track_caller]
pub(crate) fn dig(server: SocketAddr, arguments: &[&str]) -> Printed {
    client("dig", "bind9-dnsutils", &["+tries=1", "+time=6"], server, arguments)
}

/// Asks by kdig; one try and 6 s unless `arguments` say otherwise.
#[track_caller]
pub(crate) fn kdig(server: SocketAddr, arguments: &[&str]) -> Printed {
    client("kdig", "knot-dnsutils", &["+retry=0", "+timeout=6"], server, arguments)
}

#[track_caller]
fn client(
    program: &str,
    package: &str,
    defaults: &[&str],
    server: SocketAddr,
    arguments: &[&str],
) -> Printed {
    let mut command = Command::new(program);
    command.arg(format!("@{}", server.ip())).args(["-p", &server.port().to_string()]);
    let output = run(command.args(defaults).args(arguments))
        .unwrap_or_else(|error| panic!("{}", missing(program, package, &error)));
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(text: &str) -> Printed {
    let mut printed = Printed { text: text.to_owned(), ..Printed::default() };
    let mut section = "";
    for line in text.lines() {
        let lower = line.to_ascii_lowercase();
        if lower.starts_with(";; ->>header<<-") {
            if let Some((_, rest)) = lower.split_once("status: ") {
                let end = rest.find([',', ';']).unwrap_or(rest.len());
                printed.status = rest[..end].to_ascii_uppercase();
            }
        } else if let Some(rest) = lower.strip_prefix(";; flags: ") {
            let flags = rest.split(';').next().unwrap_or_default();
            printed.flags = flags.split_whitespace().map(str::to_owned).collect();
        } else if lower.starts_with(";; server:") || lower.starts_with(";; from ") {
            printed.by_tcp = lower.contains("(tcp)");
            section = "";
        } else if lower.starts_with(";; ") && (lower.contains("section:") || lower.contains("pseudosection"))
        {
            section = match lower.trim_start_matches(";; ") {
                rest if rest.starts_with("question") => "question",
                rest if rest.starts_with("answer") => "answer",
                rest if rest.starts_with("authority") => "authority",
                rest if rest.starts_with("edns") || rest.starts_with("opt") => "edns",
                _ => "other",
            };
        } else if line.trim().is_empty() {
            section = "";
        } else {
            match section {
                "question" if line.starts_with(';') => {
                    let rest = line.trim_start_matches([';', ' ']);
                    printed.question = rest.split_whitespace().next().unwrap_or_default().to_owned();
                }
                "answer" => printed.answers.extend(record(line)),
                "authority" => printed.authority.extend(record(line)),
                // dig: "; EDE: 3 (Stale Answer)"; kdig: ";; EDE: 3 (Stale Answer)"
                "edns" => printed.edns.push(line.trim_start_matches([';', ' ']).to_owned()),
                _ => {}
            }
        }
    }
    printed
}

fn record(line: &str) -> Option<Line> {
    let mut words = line.split_whitespace();
    Some(Line {
        name: words.next()?.to_owned(),
        ttl: words.next()?.parse().ok()?,
        class: words.next()?.to_owned(),
        record_type: words.next()?.to_owned(),
        data: words.collect::<Vec<_>>().join(" "),
    })
}

/// What dnsperf counted.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) sent: u64,
    pub(crate) completed: u64,
    pub(crate) lost: u64,
    /// Replies with NOERROR.
    pub(crate) good: u64,
    pub(crate) text: String,
}

/// Runs dnsperf with these queries (`name type`, one each) and further options.
#[track_caller]
pub(crate) fn dnsperf(server: SocketAddr, queries: &[String], options: &[&str]) -> Load {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("queries");
    fs::write(&file, queries.join("\n") + "\n").expect("queries");
    let mut command = Command::new("dnsperf");
    command.args(["-s", &server.ip().to_string(), "-p", &server.port().to_string(), "-d"]).arg(&file);
    // An agent that has died would cost 5 s for every window of queries.
    let output = run(command.args(["-l", "60"]).args(options))
        .unwrap_or_else(|error| panic!("{}", missing("dnsperf", "dnsperf", &error)));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |label: &str| {
        let rest = text.lines().find_map(|line| line.trim().strip_prefix(label));
        let digits = rest.and_then(|rest| rest.split_whitespace().next());
        digits.and_then(|digits| digits.parse().ok())
    };
    let good = text.split_once("NOERROR ").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    Load {
        sent: number("Queries sent:")
            .unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))),
        completed: number("Queries completed:").unwrap_or(0),
        lost: number("Queries lost:").unwrap_or(0),
        good: good.unwrap_or(0),
        text,
    }
}
