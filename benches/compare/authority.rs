//! NSD, the authoritative server behind those that are measured.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

/// A program by name, in the directories for daemons too, which are often not in PATH.
pub(crate) fn program(name: &str) -> Command {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file());
    Command::new(found.unwrap_or_else(|| name.into()))
}

/// Authoritative for `zones`, each an origin and its text. No limit on the rate (there is one client), nor on the queries of
/// a connection.
pub(crate) fn nsd(address: SocketAddr, directory: &Path, zones: &[(&str, String)]) -> Result<Command> {
    let dir = directory.display();
    let mut config = format!(
        "server:
    server-count: 1
    ip-address: {}@{}
    username: \"\"
    chroot: \"\"
    zonesdir: \"{dir}\"
    database: \"\"
    pidfile: \"\"
    xfrdfile: \"{dir}/nsd.xfrd\"
    xfrdir: \"{dir}\"
    zonelistfile: \"{dir}/nsd.zones\"
    tcp-count: 1000
    tcp-query-count: 0
    tcp-timeout: 120
    minimal-responses: yes
    round-robin: no
    rrl-ratelimit: 0
    rrl-whitelist-ratelimit: 0
remote-control:
    control-enable: no
",
        address.ip(),
        address.port()
    );
    for (origin, text) in zones {
        fs::write(directory.join(origin), text)?;
        writeln!(config, "zone:\n    name: {origin}\n    zonefile: {origin}")?;
    }
    let file = directory.join("nsd.conf");
    fs::write(&file, config)?;
    let mut command = program("nsd");
    command.arg("-d").arg("-c").arg(file);
    Ok(command)
}
