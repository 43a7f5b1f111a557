//! `nodens keep`: the parent of the agent; and `nodens plan`, by which it learns what to hold.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::BAD_CONFIG;
use crate::config::{Config, DNS_PORT, Scheme, Server, file};
use crate::keep::{self, Plan};
use crate::serve::socket::Place;

pub(super) fn keep(config: Option<PathBuf>) -> ExitCode {
    let arguments = config.map(|path| [OsString::from("--config"), path.into()]);
    keep::keep(arguments.into_iter().flatten().collect())
}

pub(super) fn plan(path: Option<&Path>) -> ExitCode {
    let config = match path.map(file::load) {
        None => Config::default(),
        Some(Ok(loaded)) => loaded.config,
        Some(Err(error)) => {
            eprintln!("{error}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    print!("{}", plan_of(&config));
    ExitCode::SUCCESS
}

fn plan_of(config: &Config) -> Plan {
    let intercepted =
        config.network.intercept.iter().map(|&ip| Place { addr: (ip, DNS_PORT).into(), intercepted: true });
    let listen = config.listen.iter().map(|&addr| Place { addr, intercepted: false });
    // Whoever answers for the first zone, as a rule the cluster's, resolves all other names as well.
    let servers = config.zones.first().map(|zone| &zone.upstream.servers[..]).unwrap_or_default();
    Plan {
        places: listen.chain(intercepted).map(|place| (place, config.workers)).collect(),
        relay: servers.iter().filter(|server| is_plain(server)).filter_map(Server::addr).collect(),
        allow_from: config.allow_from.clone(),
        handover: config.keep.handover.clone(),
        watchdog: config.keep.watchdog,
        receive_buffer: config.keep.receive_buffer,
    }
}

fn is_plain(server: &Server) -> bool {
    matches!(server, Server::Tcp(_) | Server::Udp(_) | Server::Auto(_) | Server::Named(Scheme::Tcp, ..))
}
