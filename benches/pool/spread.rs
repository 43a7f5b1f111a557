//! More servers than before: how soon each has its share of the load.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Result;

use crate::agent::Agent;
use crate::cluster::Cluster;
use crate::load::Pace;
use crate::loss::MISSES;
use crate::names::{ZONE, misses};
use crate::net;
use crate::report::Report;
use crate::script::{Manner, Script, addresses};
use crate::setting::{Setting, WARM_UP, config, local, quiet, zone};
use crate::window::{Window, run, sleep};

/// A connection takes no new query after this, 10 % more or less.
const MAX_AGE: Duration = Duration::from_secs(5);
const KEYS: &str = "      connections: { max_age: 5s }\n";
/// Load is looked at by the second.
const STEP: Duration = Duration::from_secs(1);

/// Four servers in the list instead of two.
pub(crate) fn by_list(setting: &Setting<'_>) -> Result<Report> {
    let listen = addresses(4)?;
    let scripts = Script::start_all(&listen, &Manner::serial(2))?;
    let agent = setting.agent(&config(&listen[..2], KEYS))?;
    let more = || agent.reload(&config(&listen, KEYS));
    let title = "spread: two servers in the list become four by a reload";
    let (mut report, worst) = spread(setting, &agent, &scripts, title, more)?;
    report.at_most("at max_age: furthest from even, %", 15.0, worst.inside);
    Ok(report)
}

/// A name with four addresses instead of two.
pub(crate) fn by_name(setting: &Setting<'_>) -> Result<Report> {
    let listen = addresses(4)?;
    let scripts = Script::start_all(&listen, &Manner::serial(2))?;
    // Another server says where they are.
    let bootstrap = Script::start(addresses_of_one()?, Manner::serial(1))?;
    let hosts: Vec<Ipv4Addr> = listen.iter().filter_map(|address| v4(address.ip())).collect();
    bootstrap.set_endpoints(&hosts[..2]);
    let server = format!("\"tcp://headless.endpoints.{ZONE}:{}\"", listen[0].port());
    let config = zone(&server, &format!("      bootstrap: [\"tcp://{}\"]\n{KEYS}", bootstrap.address));
    let agent = setting.agent(&config)?;
    let more = || {
        bootstrap.set_endpoints(&hosts);
        Ok(())
    };
    let title = "spread-by-name: a name with two addresses gets four (TTL 1 s)";
    let (mut report, worst) = spread(setting, &agent, &scripts, title, more)?;
    report.at_most("at max_age: furthest from even, %", 15.0, worst.inside);
    Ok(report)
}

/// Four endpoints behind a ClusterIP instead of two: each new connection goes to one at random.
pub(crate) fn by_cluster_ip(setting: &Setting<'_>) -> Result<Report> {
    let cluster = Cluster::here()?;
    let scripts = Script::start_all(&Cluster::addresses(4), &Manner::serial(2))?;
    cluster.forward(2)?;
    let agent = setting.agent(&config(&[Cluster::IP], KEYS))?;
    let title = "spread-cluster-ip: a ClusterIP with two endpoints gets four";
    let (report, _) = spread(setting, &agent, &scripts, title, || cluster.forward(4))?;
    Ok(report)
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// A port that none of the servers has: they are bound already.
fn addresses_of_one() -> Result<std::net::SocketAddr> {
    Ok(addresses(1)?[0])
}

/// How far the busiest or the idlest server is from an even share, in percent.
struct Worst {
    /// In the second before the oldest connections have their age.
    inside: f64,
}

/// Counts at a moment.
struct Sample {
    at_ns: u64,
    queries: Vec<u64>,
}

/// Load all the time; `more` is called after the first phase. Counts of each server, second by second.
fn spread(
    setting: &Setting<'_>,
    agent: &Agent,
    scripts: &[Script],
    title: &str,
    more: impl FnOnce() -> Result<()> + Send,
) -> Result<(Report, Worst)> {
    quiet(&mut [local(agent, MISSES, misses("w"))?], WARM_UP);
    let mut sources = [local(agent, MISSES, misses("p"))?];
    let steps = 2 * MAX_AGE.as_secs() as usize + 1;
    let time = setting.phase() + STEP * steps as u32;
    let sample = || Sample { at_ns: net::now_ns(), queries: scripts.iter().map(Script::queries).collect() };
    let (pace, samples) = run(&mut sources, time, || {
        let first = sample();
        sleep(setting.phase());
        let mut samples = vec![first, sample()];
        more()?;
        for _ in 0..steps {
            sleep(STEP);
            samples.push(sample());
        }
        Ok(samples)
    })?;
    let all = Window::whole(&sources[0], &pace);
    Ok(tell(title, &samples, &all, &pace))
}

fn tell(title: &str, samples: &[Sample], all: &Window, pace: &Pace) -> (Report, Worst) {
    let age = MAX_AGE.as_secs() as usize;
    let mut report = Report::with_columns(title, &["", "each server, queries/s", "furthest from even, %"]);
    let mut furthest = Vec::new();
    for (n, pair) in samples.windows(2).enumerate() {
        let seconds = (pair[1].at_ns - pair[0].at_ns) as f64 / 1e9;
        let counts =
            pair[1].queries.iter().zip(&pair[0].queries).map(|(to, from)| (to - from) as f64 / seconds);
        let counts: Vec<f64> = counts.collect();
        // Before the change half of the servers are not there yet.
        let present = if n == 0 { counts.len() / 2 } else { counts.len() };
        let even = counts.iter().sum::<f64>() / present as f64;
        let worst =
            counts[..present].iter().map(|count| (count - even).abs() * 100.0 / even).fold(0.0, f64::max);
        furthest.push(worst);
        let name = if n == 0 { "before".to_owned() } else { format!("second {n} after the change") };
        let counts: Vec<_> = counts.iter().map(|count| format!("{count:.0}")).collect();
        report.line(vec![name, counts.join(", "), format!("{worst:.0}")]);
    }
    let within = furthest.iter().skip(1).position(|&worst| worst <= 15.0);
    let mut line = |what: &str, value: String| report.line(vec![what.to_owned(), value, String::new()]);
    line("first second within 15 %", within.map_or("none".into(), |n| (n + 1).to_string()));
    line("failed, lost", format!("{}, {}", all.failed, all.lost));
    line("ms p50, p99, max", format!("{:.2}, {:.2}, {:.2}", all.ms(50.0), all.ms(99.0), all.ms(100.0)));
    line("generator", pace.text());
    report.at_most("queries failed or lost", 0.0, (all.failed + all.lost) as f64);
    (report, Worst { inside: furthest[age] })
}
