//! One of two servers, or of two endpoints behind one address, says nothing any more.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::names::misses;
use crate::net;
use crate::report::Report;
use crate::script::{Manner, Script, Turn, addresses};
use crate::setting::{Setting, WARM_UP, config, local, quiet};
use crate::window::{IN_FLIGHT_NS, Window, after, last_bad_ms, run, sleep, table};

/// Names a second that nobody asked for before.
pub(crate) const MISSES: u64 = 2_000;
/// How long the server's return is watched.
const RETURN: Duration = Duration::from_secs(3);

/// What a server has answered so far, if that is known.
pub(crate) type Asked<'a> = &'a (dyn Fn() -> u64 + Sync);

/// One of two scripted servers on loopback keeps silent: its process stands still, its kernel acknowledges.
pub(crate) fn silent(setting: &Setting<'_>) -> Result<Report> {
    let scripts = Script::start_all(&addresses(2)?, &Manner::serial(2))?;
    let servers: Vec<_> = scripts.iter().map(|script| script.address).collect();
    let gone = |gone: bool| scripts[1].turn(if gone { Turn::Silent } else { Turn::Answer });
    let asked = || scripts.iter().map(Script::queries).sum();
    let title = "black-hole: one of two servers keeps silent (its kernel acknowledges)";
    black_hole(setting, title, &servers, &gone, Some(&asked))
}

/// The agent asks `servers`, and `gone` takes half of what answers away and brings it back.
pub(crate) fn black_hole(
    setting: &Setting<'_>,
    title: &str,
    servers: &[SocketAddr],
    gone: &(dyn Fn(bool) -> Result<()> + Sync),
    asked: Option<Asked<'_>>,
) -> Result<Report> {
    let mut agent = setting.agent(&config(servers, ""))?;
    let mut sources = [local(&agent, MISSES, misses("w"))?];
    quiet(&mut sources, WARM_UP);
    let mut sources = [local(&agent, MISSES, misses("b"))?];
    let before = asked.map(|asked| asked());
    let (pace, (fault, back)) = run(&mut sources, setting.phase() * 2 + RETURN, || {
        let fault = sleep(setting.phase());
        gone(true)?;
        let back = sleep(setting.phase());
        gone(false)?;
        Ok((fault, back))
    })?;
    let after_all = asked.map(|asked| asked());
    agent.process.must_live()?;
    let source = &sources[0];
    let window = |from, to| Window::new(source, &pace, &(from..to));
    let calm = window(0, fault - IN_FLIGHT_NS);
    let first = window(fault - IN_FLIGHT_NS, after(fault, 1000));
    let later = window(after(fault, 2000), back);
    let returned = window(back, u64::MAX);
    let whole = Window::whole(source, &pace);
    let mut report = table(
        title,
        &[
            ("quiet", &calm),
            ("first second", &first),
            ("second", &window(after(fault, 1000), after(fault, 2000))),
            ("after 2 s", &later),
            ("after its return", &returned),
        ],
    );
    report.row("generator", pace.text());
    report.row(
        "last failure after the fault, ms",
        match last_bad_ms(source, &pace, fault) {
            ms if ms.is_finite() => format!("{ms:.0}"),
            _ => "none failed".to_owned(),
        },
    );
    if let (Some(before), Some(after)) = (before, after_all) {
        report.row("queries to the servers", extra(after - before, whole.sent));
    }
    report.at_most("queries failed", 0.0, whole.failed as f64);
    report.at_most("queries lost", 0.0, whole.lost as f64);
    report.at_most("first second: p99 ms", 100.0, first.ms(99.0));
    report.at_most("after 2 s: p99 by quiet p99", 2.0, later.ms(99.0) / calm.ms(99.0));
    Ok(report)
}

/// Queries that servers saw, and how many more these are than clients asked.
pub(crate) fn extra(asked: u64, misses: u64) -> String {
    format!("{asked} for {misses} misses, {:+.2} %", extra_percent(asked, misses))
}

pub(crate) fn extra_percent(asked: u64, misses: u64) -> f64 {
    (asked as f64 - misses as f64) * 100.0 / misses.max(1) as f64
}

/// Every connection is reset, several times.
pub(crate) fn reset(setting: &Setting<'_>) -> Result<Report> {
    const TIMES: u32 = 5;
    let script = Script::start(addresses(1)?[0], Manner::serial(2))?;
    let mut agent = setting.agent(&config(&[script.address], ""))?;
    let mut sources = [local(&agent, MISSES, misses("w"))?];
    quiet(&mut sources, WARM_UP);
    let mut sources = [local(&agent, MISSES, misses("r"))?];
    let (pace, faults) = run(&mut sources, setting.phase() * 2, || {
        std::thread::sleep(setting.phase());
        let reset = |_| {
            let opened = script.connections();
            let fault = net::now_ns();
            script.turn(Turn::Reset)?;
            std::thread::sleep(setting.phase() / (TIMES + 1));
            Ok((fault, script.connections() - opened))
        };
        (0..TIMES).map(reset).collect::<Result<Vec<_>>>()
    })?;
    agent.process.must_live()?;
    let source = &sources[0];
    let calm = Window::new(source, &pace, &(0..faults[0].0 - IN_FLIGHT_NS));
    let rest = Window::new(source, &pace, &(faults[0].0 - IN_FLIGHT_NS..u64::MAX));
    let mut windows = vec![("quiet".to_owned(), calm), ("with resets".to_owned(), rest)];
    for (n, &(fault, _)) in faults.iter().enumerate() {
        let window = Window::new(source, &pace, &(fault - IN_FLIGHT_NS..after(fault, 100)));
        windows.push((format!("around reset {}", n + 1), window));
    }
    let columns: Vec<_> = windows.iter().map(|(name, window)| (name.as_str(), window)).collect();
    let title = "reset: every connection is reset at once, five times";
    let mut report = table(title, &columns);
    report.row("generator", pace.text());
    let opened: Vec<_> = faults.iter().map(|(_, opened)| opened.to_string()).collect();
    report.row("connections opened after each", opened.join(", "));
    report.at_most("queries failed", 0.0, (windows[0].1.failed + windows[1].1.failed) as f64);
    report.at_most("queries lost", 0.0, (windows[0].1.lost + windows[1].1.lost) as f64);
    Ok(report)
}
