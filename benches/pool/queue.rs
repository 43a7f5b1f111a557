//! Answers that are late, and clients that ask for more than the upstream can give: who waits for whom.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::loss::{extra, extra_percent};
use crate::names::{Kind, known, misses};
use crate::report::Report;
use crate::script::{Manner, Script, addresses};
use crate::setting::{Setting, WARM_UP, config, local, quiet, source, warm};
use crate::window::{Window, table};

/// Misses a second where the issue names none.
const MISSES: u64 = 1_000;
/// The slow name is asked for so often a second that its server is always busy with it.
const SLOW_RATE: u64 = 2;
/// The fairness case: unique names a second from one address.
const FLOOD: u64 = 10_000;
/// Others, and what each of them asks a second that nobody asked before.
const OTHERS: u8 = 10;
const OTHERS_RATE: u64 = 20;
/// Cached names, and how often a second they are asked for.
const CACHED: u64 = 500;
const HITS: u64 = 1_000;
const HEDGE: &str = "      hedge: { budget: 5%, burst: 128 }\n";

/// One name takes two seconds at a server that is serial per connection.
pub(crate) fn slow_name(setting: &Setting<'_>) -> Result<Report> {
    let script = Script::start(addresses(1)?[0], Manner::serial(2))?;
    let mut agent = setting.agent(&config(&[script.address], ""))?;
    quiet(&mut [local(&agent, MISSES, misses("w"))?], WARM_UP);
    let mut without = [local(&agent, MISSES, misses("a"))?];
    let calm_pace = quiet(&mut without, setting.phase());
    let mut with = [local(&agent, MISSES, misses("s"))?, local(&agent, SLOW_RATE, known(1, Kind::Slow))?];
    let pace = quiet(&mut with, setting.phase());
    agent.process.must_live()?;
    let (calm, others) = (Window::whole(&without[0], &calm_pace), Window::whole(&with[0], &pace));
    let slow = Window::whole(&with[1], &pace);
    let mut report = table(
        "slow-name: one name takes 2 s at a server that is serial per connection",
        &[("quiet", &calm), ("beside the slow name", &others), ("the slow name", &slow)],
    );
    report.row("generator", pace.text());
    report.row("connections opened", script.connections());
    report.at_most("p99 of the others by quiet p99", 3.0, others.ms(99.0) / calm.ms(99.0));
    report.at_most("others failed or lost", 0.0, (others.failed + others.lost) as f64);
    Ok(report)
}

/// One answer in a hundred is late.
pub(crate) fn hedge(setting: &Setting<'_>, serial: bool) -> Result<Report> {
    let manner = Manner { serial, ..Manner::serial(5) };
    let listen = addresses(2)?;
    let has_key = setting.is_accepted(&config(&listen, HEDGE))?;
    let config = config(&listen, if has_key { HEDGE } else { "" });
    let calm_scripts = Script::start_all(&listen, &manner)?;
    let (calm_source, calm_pace, _) = hedge_phase(setting, &config, &calm_scripts, "a")?;
    drop(calm_scripts);
    let scripts = Script::start_all(&listen, &Manner { late_of: 100, ..manner })?;
    let (source, pace, asked) = hedge_phase(setting, &config, &scripts, "h")?;
    let (calm, late) = (Window::whole(&calm_source, &calm_pace), Window::whole(&source, &pace));
    let way = if serial { "one after the other on a connection" } else { "each for itself" };
    let mut report = table(
        &format!("hedge: two servers answer after 5 ms, {way}, and 1 % of answers after 500 ms"),
        &[("none late", &calm), ("1 % late", &late)],
    );
    report.row("generator", pace.text());
    let key = if has_key { "5 %, burst 128" } else { "the key is not available: the agent's defaults" };
    report.row("hedge", key);
    report.row("queries to the servers", extra(asked, late.sent));
    report.at_most("p99.5 ms", 40.0, late.ms(99.5));
    report.at_most("extra queries %", 5.0, extra_percent(asked, late.sent));
    report.at_most("failed or lost", 0.0, (late.failed + late.lost) as f64);
    Ok(report)
}

type Phase = (crate::load::Source<'static>, crate::load::Pace, u64);

/// One agent under load, and what its servers were asked meanwhile.
fn hedge_phase(
    setting: &Setting<'_>,
    config: &str,
    scripts: &[Script],
    names: &'static str,
) -> Result<Phase> {
    let mut agent = setting.agent(config)?;
    quiet(&mut [local(&agent, MISSES, misses("w"))?], WARM_UP);
    let asked = || scripts.iter().map(Script::queries).sum::<u64>();
    let before = asked();
    let mut sources = [local(&agent, MISSES, misses(names))?];
    let pace = quiet(&mut sources, setting.phase());
    let asked = asked() - before;
    agent.process.must_live()?;
    let [source] = sources;
    Ok((source, pace, asked))
}

/// One address floods unique names, far more than the upstream can serve; others ask as usual.
pub(crate) fn fair(setting: &Setting<'_>) -> Result<Report> {
    let script = Script::start(addresses(1)?[0], Manner::serial(5))?;
    let mut agent = setting.agent(&config(&[script.address], ""))?;
    warm(&agent, CACHED, known(CACHED, Kind::Lasting))?;
    let hits = || local(&agent, HITS, known(CACHED, Kind::Lasting));
    let other = |n: u8, names| source(&agent, Ipv4Addr::new(127, 0, 0, 10 + n), OTHERS_RATE, misses(names));
    let mut without = vec![hits()?];
    for (n, names) in (0..OTHERS).zip(["qa", "qb", "qc", "qd", "qe", "qf", "qg", "qh", "qi", "qj"]) {
        without.push(other(n, names)?);
    }
    let calm_pace = quiet(&mut without, setting.phase());
    let mut with = vec![hits()?];
    for (n, names) in (0..OTHERS).zip(["fa", "fb", "fc", "fd", "fe", "ff", "fg", "fh", "fi", "fj"]) {
        with.push(other(n, names)?);
    }
    with.push(source(&agent, Ipv4Addr::new(127, 0, 0, 2), FLOOD, misses("flood"))?);
    let before = script.queries();
    let pace = quiet(&mut with, setting.phase());
    let asked = script.queries() - before;
    agent.process.must_live()?;
    let flood = with.pop().expect("the last one pushed");
    let calm_hits = Window::whole(&without[0], &calm_pace);
    let calm = Window::all(&without[1..], &calm_pace);
    let (hits, others) = (Window::whole(&with[0], &pace), Window::all(&with[1..], &pace));
    let flood = Window::whole(&flood, &pace);
    let mut report = table(
        "fair: one address floods unique names, ten others ask 20 a second each",
        &[
            ("others, quiet", &calm),
            ("others, flood", &others),
            ("hits, quiet", &calm_hits),
            ("hits, flood", &hits),
            ("the flood", &flood),
        ],
    );
    report.row("generator", pace.text());
    report.row("queries to the server", format!("{asked}; it can answer 3,200 a second on 16 connections"));
    report.at_least("others answered with records %", 99.0, others.good_percent());
    report.at_least("hits answered with records %", 100.0, hits.good_percent());
    report.at_most("hits: p99 ms", 5.0, hits.ms(99.0));
    Ok(report)
}
