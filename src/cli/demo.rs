//! `nodens demo`: an agent, a small cluster DNS behind it, and commands to try.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use hickory_proto::rr::Name;

use super::run;
use crate::app::{self, Agent};
use crate::config::{Config, Log, LogFormat, LogLevel, Server, Zone};
use crate::demo;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Where the agent answers, by UDP and TCP.
    #[arg(long, default_value = "127.0.0.1:5053")]
    listen: SocketAddr,
    /// HTTP address of /metrics, /health and /ready.
    #[arg(long, default_value = "127.0.0.1:9253")]
    admin: SocketAddr,
    /// Unix socket of `nodens stats`, `cache` and `query --trace`.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

pub(super) fn demo(options: &Options) -> anyhow::Result<()> {
    run::start_log(&Log { format: LogFormat::Text, level: LogLevel::Warn });
    let control = options.control.clone().unwrap_or_else(|| std::env::temp_dir().join("nodens-demo.sock"));
    run::runtime()?.block_on(async {
        let any_port = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let cluster = demo::start(any_port).await.context("the demo's cluster DNS")?;
        let zone = |names: &[&str]| -> anyhow::Result<Zone> {
            let names =
                names.iter().map(|name| Ok(Name::from_ascii(name)?)).collect::<anyhow::Result<_>>()?;
            Ok(Zone::new(names, vec![Server::Tcp(cluster.addr)]))
        };
        let config = Config {
            listen: vec![options.listen],
            admin: options.admin,
            control: control.clone(),
            zones: vec![zone(&["cluster.local.", "in-addr.arpa.", "ip6.arpa."])?, zone(&["."])?],
            ..Config::default()
        };
        let signals = run::Signals::hear()?;
        let prometheus = app::install_metrics()?;
        let agent = Agent::start(config, (None, "demo"), Arc::default(), prometheus).await?;
        // Nobody who tries it out wants to wait for a port.
        if let Some(why) = agent.waits_for_a_port() {
            anyhow::bail!(why);
        }
        println!(
            "nodens answers at {} (UDP and TCP), before a cluster DNS of its own at {}.",
            options.listen, cluster.addr
        );
        println!("Metrics: http://{}/metrics    Ctrl-C ends it.\n\nTry, in another terminal:", agent.admin);
        for example in demo::examples(&program(), agent.addrs[0], agent.admin, &control) {
            println!("  {}\n      {}", example.command, example.shows);
        }
        run::until_stopped(agent, signals).await
    })
}

/// How this program is called from the current directory, so that the commands work as printed.
fn program() -> String {
    let Ok(path) = std::env::current_exe() else { return "nodens".to_owned() };
    let here = std::env::current_dir().ok();
    let relative = here.and_then(|here| path.strip_prefix(here).ok().map(PathBuf::from));
    relative.unwrap_or(path).display().to_string()
}
