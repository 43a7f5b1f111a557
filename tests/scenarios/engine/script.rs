//! The language of scenarios: README.md beside the text files tells it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

use crate::network::{Match, Reachable, Transport};
use crate::records;
use crate::saying::{Saying, code};

/// The one server of a scenario that names none.
pub(crate) const SERVER: &str = "192.0.2.53";

pub(crate) struct Scenario {
    pub(crate) name: String,
    /// Its configuration in YAML.
    pub(crate) config: String,
    /// Each with the line that it begins on.
    pub(crate) steps: Vec<(usize, Step)>,
}

impl Scenario {
    /// Whether its last step looks at something.
    pub(crate) fn ends_with_a_look(&self) -> bool {
        let last = self.steps.last().map(|(_, step)| step);
        matches!(
            last,
            Some(
                Step::Expect(..) | Step::Asked(..) | Step::Probed(..) | Step::Sent(..) | Step::Streams { .. }
            )
        )
    }
}

pub(crate) enum Step {
    On(Match, Option<usize>, Box<Saying>),
    Server(SocketAddr, Option<Transport>, Reachable),
    /// How many streams it takes.
    Limit(SocketAddr, usize),
    /// So many connections to a server are refused.
    Refuse(SocketAddr, usize),
    /// All streams to a server end.
    Reset(SocketAddr),
    /// All streams to a server lead nowhere.
    Replace(SocketAddr),
    /// It answers the queries of a stream one after the other.
    Serialize(SocketAddr),
    Ask(String, Ask),
    Expect(String, Expect),
    Wait(Duration),
    /// So many queries came upstream since the beginning.
    Asked(usize, Of),
    /// So many probes.
    Probed(usize, Option<SocketAddr>),
    /// The last query upstream for this question looked like this, the one before it considered.
    Sent(Name, RecordType, Vec<String>),
    Streams {
        opened: Option<usize>,
        open: Option<usize>,
    },
    Flush,
}

/// Which queries are counted; `None` is any.
#[derive(Default)]
pub(crate) struct Of {
    pub(crate) name: Option<Name>,
    pub(crate) rtype: Option<RecordType>,
    pub(crate) server: Option<SocketAddr>,
}

/// A client's query.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) name: Name,
    pub(crate) rtype: RecordType,
    pub(crate) class: DNSClass,
    pub(crate) options: Vec<String>,
    /// Instead of all that.
    pub(crate) raw: Option<Vec<u8>>,
}

/// What a reply must be.
#[derive(Default)]
pub(crate) struct Expect {
    pub(crate) nothing: Option<Nothing>,
    pub(crate) code: u16,
    pub(crate) source: Option<String>,
    pub(crate) after: Duration,
    pub(crate) options: Vec<String>,
    /// Records of each section, if they are told.
    pub(crate) records: Option<[Vec<Record>; 3]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nothing {
    /// Never.
    Dropped,
    /// Not yet.
    Waiting,
}

struct Line {
    number: usize,
    text: String,
    block: Vec<(usize, String)>,
}

/// All scenarios of a file.
pub(crate) fn parse(text: &str) -> Result<Vec<Scenario>, String> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    let (mut upstream, mut cache) = (String::new(), String::new());
    for Line { number, text, block } in lines(text.lines().enumerate().map(|(index, line)| (index + 1, line)))
    {
        let at = |error: String| format!("{number}: {error}");
        let (keyword, rest) = text.split_once(' ').map_or((&*text, ""), |(word, rest)| (word, rest.trim()));
        if keyword == "scenario" {
            if block.is_empty() {
                return Err(at(format!("scenario {rest}: say below it which rule it proves")));
            }
            (upstream, cache) = Default::default();
            scenarios.push(Scenario { name: rest.to_owned(), config: config("", ""), steps: Vec::new() });
            continue;
        }
        let scenario = scenarios.last_mut().ok_or_else(|| at("begin with `scenario NAME`".to_owned()))?;
        has_block(keyword, &block).map_err(at)?;
        if ["config", "cache", "upstream"].contains(&keyword) && !scenario.steps.is_empty() {
            return Err(at(format!("`{keyword}` stands before the first step")));
        }
        match keyword {
            "config" => scenario.config = block.iter().map(|(_, line)| format!("{line}\n")).collect(),
            "cache" => {
                cache = format!("cache: {rest}");
                scenario.config = config(&upstream, &cache);
            }
            "upstream" => {
                upstream = rest.to_owned();
                scenario.config = config(&upstream, &cache);
            }
            "repeat" => {
                let rounds: usize = rest.parse().map_err(|_| at(format!("`{rest}` is no number")))?;
                for round in 1..=rounds {
                    scenario.steps.extend(repeated(&block, round)?);
                }
            }
            _ => scenario.steps.push((number, step(keyword, rest, &block).map_err(at)?)),
        }
    }
    Ok(scenarios)
}

fn has_block(keyword: &str, block: &[(usize, String)]) -> Result<(), String> {
    let may = ["config", "on", "expect", "repeat"].contains(&keyword);
    if may || block.is_empty() { Ok(()) } else { Err(format!("`{keyword}` has no block")) }
}

/// The steps of one round.
fn repeated(block: &[(usize, String)], round: usize) -> Result<Vec<(usize, Step)>, String> {
    let text: Vec<(usize, String)> =
        block.iter().map(|(number, line)| (*number, line.replace("{}", &round.to_string()))).collect();
    let lines = lines(text.iter().map(|(number, line)| (*number, line.as_str())));
    let step = |Line { number, text, block }: Line| {
        let at = |error: String| format!("{number}: {error}");
        let (keyword, rest) = text.split_once(' ').map_or((&*text, ""), |(word, rest)| (word, rest.trim()));
        has_block(keyword, &block).map_err(at)?;
        Ok((number, step(keyword, rest, &block).map_err(at)?))
    };
    lines.into_iter().map(step).collect()
}

/// Lines with what is indented below them; comments and empty lines are passed over.
fn lines<'a>(text: impl Iterator<Item = (usize, &'a str)>) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (number, line) in text {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        match line.strip_prefix("  ") {
            Some(inner) => {
                if let Some(line) = lines.last_mut() {
                    line.block.push((number, inner.trim_end().to_owned()));
                }
            }
            None => lines.push(Line { number, text: line.trim_end().to_owned(), block: Vec::new() }),
        }
    }
    lines
}

/// One zone for everything, with these settings.
fn config(upstream: &str, cache: &str) -> String {
    let upstream = match upstream {
        "" => format!("{{ servers: [\"tcp://{SERVER}\"] }}"),
        upstream => upstream.to_owned(),
    };
    format!("zones:\n  - match: [\".\"]\n    upstream: {upstream}\n    {cache}\n")
}

/// What becomes of a server.
fn reach(words: &[&str]) -> Result<Step, String> {
    const USAGE: &str = "server ADDRESS up|refuses|unreachable|silent [udp|tcp], or refuses N, streams=N, resets, moves or serial";
    let [server, state, transport @ ..] = words else { return Err(USAGE.to_owned()) };
    if let Some(most) = state.strip_prefix("streams=").filter(|_| transport.is_empty()) {
        return Ok(Step::Limit(address(server)?, most.parse().map_err(|_| USAGE.to_owned())?));
    }
    match (*state, transport) {
        ("resets", []) => return Ok(Step::Reset(address(server)?)),
        ("moves", []) => return Ok(Step::Replace(address(server)?)),
        ("refuses", [count]) if count.parse::<usize>().is_ok() => {
            return Ok(Step::Refuse(address(server)?, number(count)?));
        }
        ("serial", []) => return Ok(Step::Serialize(address(server)?)),
        _ => {}
    }
    let reachable = match *state {
        "up" => Reachable::Yes,
        "refuses" => Reachable::Refuses,
        "unreachable" => Reachable::Not,
        "silent" => Reachable::Silent,
        _ => return Err(format!("`{state}`: {USAGE}")),
    };
    let transport = match transport {
        [] => None,
        ["udp"] => Some(Transport::Udp),
        ["tcp"] => Some(Transport::Tcp),
        _ => return Err(USAGE.to_owned()),
    };
    Ok(Step::Server(address(server)?, transport, reachable))
}

fn step(keyword: &str, rest: &str, block: &[(usize, String)]) -> Result<Step, String> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    match keyword {
        "on" => on(&words, block),
        "server" => reach(&words),
        "ask" => {
            let (label, words) = label(&words);
            Ok(Step::Ask(label, ask(words)?))
        }
        "expect" => {
            let (label, words) = label(&words);
            Ok(Step::Expect(label, expect(words, block)?))
        }
        "wait" => Ok(Step::Wait(time(rest)?)),
        "asked" => {
            let (words, server) = at_server(&words)?;
            let (count, name, rtype) = match words {
                [count] => (count, None, None),
                [count, name] => (count, Some(records::name(name)?), None),
                [count, name, rtype] => (count, Some(records::name(name)?), Some(records::rtype(rtype)?)),
                _ => return Err("asked N [NAME [TYPE]] [at=SERVER]".to_owned()),
            };
            Ok(Step::Asked(number(count)?, Of { name, rtype, server }))
        }
        "probed" => match at_server(&words)? {
            ([count], server) => Ok(Step::Probed(number(count)?, server)),
            _ => Err("probed N [at=SERVER]".to_owned()),
        },
        "sent" => match words.as_slice() {
            [name, rtype, options @ ..] => {
                let options = options.iter().map(|&option| option.to_owned()).collect();
                Ok(Step::Sent(records::name(name)?, records::rtype(rtype)?, options))
            }
            _ => Err("sent NAME TYPE WHAT...".to_owned()),
        },
        "streams" => streams(&words),
        "flush" if words.is_empty() => Ok(Step::Flush),
        _ => Err(format!("`{keyword}` is no step")),
    }
}

/// A last word may say which server.
fn at_server<'a, 'b>(words: &'b [&'a str]) -> Result<(&'b [&'a str], Option<SocketAddr>), String> {
    match words {
        [words @ .., last] if last.starts_with("at=") => Ok((words, Some(address(&last[3..])?))),
        _ => Ok((words, None)),
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

fn streams(words: &[&str]) -> Result<Step, String> {
    let (mut opened, mut open) = (None, None);
    for word in words {
        let number = |text: &str| text.parse().map(Some).map_err(|_| format!("`{word}` wants a number"));
        match word.split_once('=') {
            Some(("opened", text)) => opened = number(text)?,
            Some(("open", text)) => open = number(text)?,
            _ => return Err(format!("`{word}`: opened=N, open=N")),
        }
    }
    if opened.or(open).is_none() {
        return Err("streams [opened=N] [open=N]: one of them at least".to_owned());
    }
    Ok(Step::Streams { opened, open })
}

/// A first word that ends with a colon names the query.
fn label<'a, 'b>(words: &'b [&'a str]) -> (String, &'b [&'a str]) {
    match words {
        [first, rest @ ..] if first.ends_with(':') => (first.trim_end_matches(':').to_owned(), rest),
        _ => (String::new(), words),
    }
}

pub(crate) fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| format!("`{text}` is no time"))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse::<IpAddr>()
        .map(|ip| SocketAddr::new(ip, 53))
        .or_else(|_| text.parse())
        .map_err(|_| format!("`{text}` is no address"))
}

fn on(words: &[&str], block: &[(usize, String)]) -> Result<Step, String> {
    let [name, rtype, conditions @ ..] = words else {
        return Err("on NAME TYPE [at=SERVER] [udp|tcp] [opt|no-opt] [once|times=N]".to_owned());
    };
    let mut of = Match {
        name: records::name(name)?,
        rtype: if *rtype == "*" { None } else { Some(records::rtype(rtype)?) },
        server: None,
        transport: None,
        opt: None,
    };
    let mut left = None;
    for condition in conditions {
        match *condition {
            "udp" => of.transport = Some(Transport::Udp),
            "tcp" => of.transport = Some(Transport::Tcp),
            "opt" => of.opt = Some(true),
            "no-opt" => of.opt = Some(false),
            "once" => left = Some(1),
            other => match other.split_once('=') {
                Some(("at", server)) => of.server = Some(address(server)?),
                Some(("times", times)) => {
                    left = Some(times.parse().map_err(|_| format!("`{other}` wants a number"))?);
                }
                _ => return Err(format!("`{other}`: at=SERVER udp tcp opt no-opt once times=N")),
            },
        }
    }
    Ok(Step::On(of, left, Box::new(Saying::parse(block)?)))
}

fn ask(words: &[&str]) -> Result<Ask, String> {
    if let [first, ..] = words
        && let Some(digits) = first.strip_prefix("raw=")
    {
        let raw = Some(records::hex(digits)?);
        if let Some(word) = words[1..].iter().find(|word| !["tcp", "stranger"].contains(word)) {
            return Err(format!("`{word}`: behind raw=HEX only tcp and stranger"));
        }
        let options = words[1..].iter().map(|&word| word.to_owned()).collect();
        return Ok(Ask { name: Name::root(), rtype: RecordType::A, class: DNSClass::IN, options, raw });
    }
    let [name, rest @ ..] = words else { return Err("ask NAME [CLASS] TYPE [OPTION...]".to_owned()) };
    let class = rest.first().and_then(|word| records::class(word));
    let rest = if class.is_some() { &rest[1..] } else { rest };
    let [rtype, options @ ..] = rest else { return Err("ask NAME [CLASS] TYPE [OPTION...]".to_owned()) };
    Ok(Ask {
        name: records::name(name)?,
        rtype: records::rtype(rtype)?,
        class: class.unwrap_or(DNSClass::IN),
        options: options.iter().map(|&word| word.to_owned()).collect(),
        raw: None,
    })
}

fn expect(words: &[&str], block: &[(usize, String)]) -> Result<Expect, String> {
    let [first, rest @ ..] = words else { return Err("expect RCODE [SOURCE] [WHAT...]".to_owned()) };
    let mut expect = Expect::default();
    match *first {
        "dropped" => expect.nothing = Some(Nothing::Dropped),
        "waiting" => expect.nothing = Some(Nothing::Waiting),
        word => expect.code = code(word).ok_or_else(|| format!("`{word}` is no RCODE"))?,
    }
    if expect.nothing.is_some() && !(rest.is_empty() && block.is_empty()) {
        return Err(format!("`{first}` says all there is to say"));
    }
    for word in rest {
        match word.split_once('=') {
            Some(("after", text)) => expect.after = time(text)?,
            None if ["hit", "miss", "stale", "failure", "hosts", "local"].contains(word) => {
                expect.source = Some((*word).to_owned());
            }
            _ => expect.options.push((*word).to_owned()),
        }
    }
    if !block.is_empty() {
        let mut sections: [Vec<Record>; 3] = Default::default();
        for (number, line) in block {
            let (section, text) = match line.split_once(' ') {
                _ if line == "nothing" => continue,
                Some(("an", text)) => (0, text),
                Some(("ns", text)) => (1, text),
                Some(("ar", text)) => (2, text),
                _ => (0, line.as_str()),
            };
            let records = records::records(text).map_err(|error| format!("line {number}: {error}"))?;
            sections[section].extend(records);
        }
        expect.records = Some(sections);
    }
    Ok(expect)
}
