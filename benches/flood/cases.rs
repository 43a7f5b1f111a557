//! The floods and the hot name. What clients of other kinds do is in `attacks.rs`.

use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::load::{Make, Source, drive};
use crate::packet;
use crate::report::Report;
use crate::upstream::{Mode, Upstream};

/// What the shipped manifest allows.
pub(crate) const LIMIT: u64 = 64 << 20;
/// Names asked for in one go while the cache is filled: at 10,000 a second its tables settle on the way.
const FILL: u64 = 20_000;
const FILL_RATE: u64 = 10_000;
/// Goes at most, far more than 16 MiB of entries need.
const FILLS: u64 = 10;
/// Longer than the agent's deadline for one question (4 s).
pub(crate) const DRAIN: Duration = Duration::from_secs(6);
/// Where the flood comes from.
const FLOODERS: Ipv4Addr = Ipv4Addr::new(127, 16, 0, 1);
/// Sockets of one kind of load.
const SOCKETS: usize = 8;

/// How a case is run.
pub(crate) struct Setting<'a> {
    pub(crate) seconds: u64,
    pub(crate) flood: u64,
    pub(crate) hits: u64,
    pub(crate) cpus: &'a [usize],
    pub(crate) directory: &'a Path,
}

/// A name by its number.
fn numbered(letter: &str, number: u64) -> Vec<u8> {
    packet::name(&[&format!("{letter}{number:012}"), "flood", "test"])
}

pub(crate) fn flood_queries<'a>() -> Make<'a> {
    Box::new(|number, id| packet::query(id, &numbered("f", number), true))
}

/// A group with the limit of the shipped manifest. It can only go when its process has ended.
pub(crate) fn limited() -> Result<Cgroup> {
    Cgroup::new(&format!("nodens-flood-{}", std::process::id()), LIMIT)
}

/// The agent in this group, with one upstream for all names; `keys` are further lines of its configuration.
pub(crate) fn start(upstream: &Upstream, keys: &str, group: &Cgroup, setting: &Setting<'_>) -> Result<Agent> {
    let address = upstream.address;
    let config =
        format!("{keys}zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"tcp://{address}\"] }}\n");
    Agent::start(&config, Some(&group.procs()), setting.cpus, setting.directory)
}

/// Fills the cache until entries make room for others, and gives the numbers of names that are in it.
fn fill(agent: &Agent) -> Result<Vec<u64>> {
    let local = Ipv4Addr::LOCALHOST;
    let time = Duration::from_secs(FILL / FILL_RATE);
    for go in 1..=FILLS {
        let make: Make<'_> = Box::new(move |n, id| packet::query(id, &numbered("h", go * FILL + n), true));
        let mut sources = [Source::new(agent.address, local, SOCKETS, FILL_RATE, make)?];
        drive(&mut sources, time, DRAIN);
        let tally = &sources[0].tally;
        ensure!(
            tally.good() * 100 >= FILL * 99,
            "{} of {FILL} names answered while filling: {}",
            tally.good(),
            tally.by_verdict()
        );
        if agent.metric("nodens_cache_evictions_total")? > 0.0 {
            // Without RD the cache answers, or nobody.
            let make: Make<'_> =
                Box::new(move |n, id| packet::query(id, &numbered("h", go * FILL + n), false));
            let mut sources = [Source::new(agent.address, local, SOCKETS, FILL_RATE, make)?];
            drive(&mut sources, time, Duration::from_secs(1));
            let replies = sources[0].tally.replies.iter().filter(|reply| reply.verdict.answers);
            let cached: Vec<_> = replies.map(|reply| go * FILL + reply.number).collect();
            ensure!(cached.len() >= 1000, "only {} of the last {FILL} names are cached", cached.len());
            return Ok(cached);
        }
    }
    anyhow::bail!("the cache is not full after {} names", FILLS * FILL)
}

/// A full cache, an upstream that is gone in this way, and a flood of names that nobody has asked for before.
pub(crate) fn flood(setting: &Setting<'_>, gone: Mode, title: &str) -> Result<Report> {
    let upstream = Upstream::start(3600)?;
    let group = limited()?;
    let mut agent = start(&upstream, "", &group, setting)?;
    let idle = agent.process.resident_mib()?;
    let cached = fill(&agent)?;
    let entries = agent.metric("nodens_cache_entries")?;
    let bytes = agent.metric("nodens_cache_bytes")?;
    let full = agent.process.resident_mib()?;
    upstream.turn(gone)?;
    agent.forget_peak()?;
    let before = agent.process.usage()?;
    let hits: Make<'_> = Box::new(|n, id| {
        packet::query(id, &numbered("h", cached[(n * 7919 % cached.len() as u64) as usize]), true)
    });
    let mut sources = [
        Source::new(agent.address, FLOODERS, SOCKETS, setting.flood, flood_queries())?,
        Source::new(agent.address, Ipv4Addr::LOCALHOST, SOCKETS, setting.hits, hits)?,
    ];
    let time = Duration::from_secs(setting.seconds);
    let pace = drive(&mut sources, time, DRAIN);
    agent.process.must_live().context("the agent did not live through the flood")?;
    let usage = agent.process.usage()?.since(before);
    let [flood, hits] = &sources;
    let mut report = Report::new(title);
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    report.row("generator", pace.text());
    report.row("cache", format!("{entries} entries, {} MiB by its own count", bytes as u64 >> 20));
    report.row("RSS idle, cache full, peak of the flood, end", {
        let (peak, end) = (agent.peak_mib()?, agent.process.resident_mib()?);
        format!("{idle:.1}, {full:.1}, {peak:.1}, {end:.1} MiB")
    });
    let peak = group.peak().map_or("not known".into(), mib);
    report.row("cgroup peak (all pages)", format!("{peak} of {}, version {}", mib(LIMIT), group.version()));
    report.row("cgroup, the kernel's part at the end", group.kernel().map_or("not known".into(), mib));
    report.row("cgroup, limit hit", group.failures().map_or("not known".into(), |times| times.to_string()));
    report.row("hits sent", hits.tally.sent);
    report.row("hits by RCODE", hits.tally.by_verdict());
    report.row("hits ms p50, p99, p99.9, max", quantiles(hits));
    report.row("flood sent", flood.tally.sent);
    report.row("flood by RCODE", flood.tally.by_verdict());
    report.row("flood unanswered", flood.tally.sent - flood.tally.answered());
    report.row("flood ms p50, p99, p99.9, max", quantiles(flood));
    let wall = time.as_secs_f64();
    report.row(
        "CPU",
        format!(
            "{:.0} % of a core, {:.1} us a query",
            usage.total.as_secs_f64() / wall * 100.0,
            usage.total.as_secs_f64() * 1e6 / (flood.tally.sent + hits.tally.sent).max(1) as f64
        ),
    );
    report.at_most("processes killed for want of memory", 0.0, group.kills().unwrap_or(u64::MAX) as f64);
    report.at_least("hits answered %", 99.0, percent(hits.tally.good(), hits.tally.sent));
    report.at_most("hits p99 ms", 5.0, hits.tally.latency_ms(99.0));
    Ok(report)
}

pub(crate) fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}

pub(crate) fn quantiles(source: &Source<'_>) -> String {
    let at = [50.0, 99.0, 99.9, 100.0].map(|percent| format!("{:.2}", source.tally.latency_ms(percent)));
    at.join(", ")
}

/// One name that everybody asks for while the upstream stalls for three seconds.
pub(crate) fn hot(setting: &Setting<'_>, stale: bool, title: &str) -> Result<Report> {
    const RATE: u64 = 5000;
    const STALL: Duration = Duration::from_secs(3);
    let upstream = Upstream::start(1)?;
    let group = limited()?;
    let mut agent = start(&upstream, "", &group, setting)?;
    let hot = packet::name(&["hot", "flood", "test"]);
    let make = || -> Make<'_> { Box::new(|_, id| packet::query(id, &hot, true)) };
    if stale {
        let mut once = [Source::new(agent.address, Ipv4Addr::LOCALHOST, 1, 1000, make())?];
        drive(&mut once, Duration::from_millis(1), Duration::from_secs(1));
        ensure!(once[0].tally.good() == 1, "the name is not cached: {}", once[0].tally.by_verdict());
    }
    upstream.turn(Mode::Hold)?;
    // Until the entry has expired. It was asked for once, too rarely for a refresh ahead of that.
    thread::sleep(Duration::from_millis(1300));
    upstream.set_ttl(300);
    agent.forget_peak()?;
    let mut sources = [Source::new(agent.address, Ipv4Addr::LOCALHOST, 64, RATE, make())?];
    let pace = thread::scope(|scope| {
        let end = scope.spawn(|| {
            thread::sleep(STALL);
            upstream.turn(Mode::Answer)
        });
        let pace = drive(&mut sources, STALL + Duration::from_secs(1), DRAIN);
        end.join().ok().context("the stall's end")??;
        Ok::<_, anyhow::Error>(pace)
    })?;
    agent.process.must_live()?;
    let source = &sources[0];
    let mut report = Report::new(title);
    report.row("generator", pace.text());
    report.row("sent", source.tally.sent);
    report.row("by RCODE", source.tally.by_verdict());
    report.row("ms p50, p99, p99.9, max", quantiles(source));
    report.row("RSS peak", format!("{:.1} MiB", agent.peak_mib()?));
    report.at_least("answered %", 100.0, percent(source.tally.answered(), source.tally.sent));
    report.at_most("answers without records", 0.0, source.tally.count(|verdict| !verdict.answers) as f64);
    Ok(report)
}
