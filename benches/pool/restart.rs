//! The only server, or all there are, are gone for a while, and come back.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::cluster::{Cluster, Reject};
use crate::names::{Kind, known, misses};
use crate::report::Report;
use crate::script::{Manner, Script, Turn, addresses};
use crate::setting::{Setting, config, local, warm};
use crate::window::{IN_FLIGHT_NS, Window, after, first_good_ms, last_bad_ms, run, sleep, table};

/// How long a server that is restarted is away.
const DOWN: Duration = Duration::from_secs(2);
/// Names seen before, whose answers live for a second: all are asked for again and again, so that some are always
/// past their life.
const KNOWN: u64 = 500;
const KNOWN_RATE: u64 = 1_000;
/// Names a second that nobody asked for before.
const NEW_RATE: u64 = 200;
/// How long the time after the return is watched.
const RETURN: Duration = Duration::from_secs(3);
/// The "at once".
const AT_ONCE_MS: f64 = 100.0;

/// The scripted server leaves (what was open is reset, new connections are refused) and comes back.
pub(crate) fn scripted(setting: &Setting<'_>) -> Result<Report> {
    let script = Script::start(addresses(1)?[0], Manner::serial(2))?;
    let down = || script.turn(Turn::Leave);
    let up = || script.turn(Turn::Return);
    let title = "restart: the only server, scripted, is down for 2 s";
    restart(setting, title, script.address, down, up)
}

/// `down` ends the server, and `up` returns when it answers again.
pub(crate) fn restart(
    setting: &Setting<'_>,
    title: &str,
    server: SocketAddr,
    down: impl FnOnce() -> Result<()> + Send,
    up: impl FnOnce() -> Result<()> + Send,
) -> Result<Report> {
    let mut agent = setting.agent(&config(&[server], ""))?;
    warm(&agent, KNOWN, known(KNOWN, Kind::Short))?;
    let mut sources =
        [local(&agent, KNOWN_RATE, known(KNOWN, Kind::Short))?, local(&agent, NEW_RATE, misses("n"))?];
    let (pace, (fault, back)) = run(&mut sources, setting.phase() + DOWN + RETURN, || {
        let fault = sleep(setting.phase());
        down()?;
        sleep(DOWN);
        up()?;
        Ok((fault, sleep(Duration::ZERO)))
    })?;
    agent.process.must_live()?;
    let [seen, new] = &sources;
    let span = |source, from, to| Window::new(source, &pace, &(from..to));
    let begin = fault - IN_FLIGHT_NS;
    let all = Window::whole(seen, &pace);
    let mut report = table(
        title,
        &[
            ("seen, quiet", &span(seen, 0, begin)),
            ("seen, down", &span(seen, begin, back)),
            ("seen, back", &span(seen, back, u64::MAX)),
            ("new, quiet", &span(new, 0, begin)),
            ("new, down", &span(new, begin, back)),
            ("new, back", &span(new, back, u64::MAX)),
        ],
    );
    let (first, last) = (first_good_ms(new, &pace, back), last_bad_ms(new, &pace, back));
    report.row("generator", pace.text());
    report.row("down for, ms", (back - fault) / 1_000_000);
    report.row("first new name answered after the return, ms", format!("{first:.0}"));
    report.row("last new name asked in vain after the return, ms", format!("{last:.0}"));
    report.at_most("names seen before: failed", 0.0, all.failed as f64);
    report.at_most("names seen before: lost", 0.0, all.lost as f64);
    report.at_most(
        "recovery ms: all new names answered",
        1000.0,
        if first.is_nan() { first } else { first.max(last) },
    );
    Ok(report)
}

/// Both endpoints of a ClusterIP go, kube-proxy rejects what is new, and they come back.
pub(crate) fn gone(setting: &Setting<'_>, reject: Reject) -> Result<Report> {
    let cluster = Cluster::here()?;
    let scripts = Script::start_all(&Cluster::addresses(2), &Manner::serial(2))?;
    cluster.forward(2)?;
    let mut agent = setting.agent(&config(&[Cluster::IP], ""))?;
    warm(&agent, KNOWN, known(KNOWN, Kind::Short))?;
    let mut sources =
        [local(&agent, NEW_RATE, known(KNOWN, Kind::Short))?, local(&agent, NEW_RATE, misses("g"))?];
    let (pace, (fault, back)) = run(&mut sources, setting.phase() * 2 + RETURN, || {
        let fault = sleep(setting.phase());
        cluster.go(Some(reject), &[0, 1])?;
        let back = sleep(setting.phase());
        cluster.go(None, &[])?;
        Ok((fault, back))
    })?;
    agent.process.must_live()?;
    drop(scripts);
    let [seen, new] = &sources;
    let span = |source, from, to| Window::new(source, &pace, &(from..to));
    let begin = fault - IN_FLIGHT_NS;
    // What was asked just before the return can be answered by it.
    let end = back.saturating_sub(100_000_000);
    let (known_gone, new_gone) = (span(seen, begin, end), span(new, begin, end));
    let known_later = span(seen, after(fault, 1000), end);
    let new_later = span(new, after(fault, 1000), end);
    let mut report = table(
        &format!("gone: both endpoints are gone, and {}", reject.about()),
        &[
            ("known, quiet", &span(seen, 0, begin)),
            ("known, 1st second", &span(seen, begin, after(fault, 1000))),
            ("known, later", &known_later),
            ("new, quiet", &span(new, 0, begin)),
            ("new, 1st second", &span(new, begin, after(fault, 1000))),
            ("new, later", &new_later),
            ("new, back", &span(new, back, u64::MAX)),
        ],
    );
    let first = first_good_ms(new, &pace, back);
    report.row("generator", pace.text());
    report.row(
        "last new name asked in vain after the return, ms",
        format!("{:.0}", last_bad_ms(new, &pace, back)),
    );
    report.at_most("known names: failed or lost", 0.0, (known_gone.failed + known_gone.lost) as f64);
    report.at_most("known names: p99 ms", AT_ONCE_MS, known_gone.ms(99.0));
    let other = new_gone.sent - new_gone.no_authority;
    // One that was on its way may still have been answered.
    report.at_most("new names: not SERVFAIL with EDE 22", 0.0, (other - new_gone.good) as f64);
    report.at_most("new names: p99 ms", AT_ONCE_MS, new_gone.ms(99.0));
    report.at_most("first good answer after the return, ms", 500.0, first);
    Ok(report)
}
