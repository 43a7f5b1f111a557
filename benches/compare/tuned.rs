//! How each server is configured and started. Each is tuned as its manual advises for one thread on one core.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::authority::program;
use crate::mix::KNOWN_NAME;
use crate::way::Way;

/// This program, as the floor.
pub(crate) fn echo(address: SocketAddr, workers: u32, replies: &Path) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("--echo").arg(address.to_string()).arg("--workers").arg(workers.to_string());
    command.arg("--replies").arg(replies);
    Ok(command)
}

/// Defaults, but for negative answers' lifetime, which is the zones' hour as with the others.
pub(crate) fn nodens(
    address: SocketAddr,
    admin: SocketAddr,
    workers: u32,
    upstream: SocketAddr,
    directory: &Path,
) -> Result<Command> {
    nodens_with(&format!("listen: [\"{address}\"]\nworkers: {workers}\n"), admin, upstream, directory)
}

/// The same with one worker, where its address is one of its node.
pub(crate) fn nodens_on_node(
    way: Way,
    admin: SocketAddr,
    upstream: SocketAddr,
    directory: &Path,
) -> Result<Command> {
    nodens_with(&format!("{}workers: 1\n", way.keys()), admin, upstream, directory)
}

fn nodens_with(keys: &str, admin: SocketAddr, upstream: SocketAddr, directory: &Path) -> Result<Command> {
    let config = format!(
        "{keys}admin: \"{admin}\"
control: {}/control.sock
zones:
  - match: [\".\"]
    upstream: {{ servers: [\"tcp://{upstream}\"] }}
    cache: {{ negative_max_ttl: 1h }}
",
        directory.display()
    );
    let file = directory.join("config.yaml");
    fs::write(&file, config)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
    command.arg("run").arg("--config").arg(file);
    Ok(command)
}

/// After "Performance Tuning" of its manual: a thread a core, slabs near the number of threads, twice as much
/// memory for RRsets as for messages, libevent's large outgoing-range with half as many queries a thread, larger
/// socket buffers. Minimal responses are its default. The iterator alone: nothing here is signed.
pub(crate) fn unbound(
    address: SocketAddr,
    workers: u32,
    upstream: SocketAddr,
    directory: &Path,
) -> Result<Command> {
    let config = format!(
        "server:
    num-threads: {workers}
    interface: {ip}@{port}
    so-reuseport: yes
    msg-cache-slabs: {workers}
    rrset-cache-slabs: {workers}
    infra-cache-slabs: {workers}
    key-cache-slabs: {workers}
    msg-cache-size: 16m
    rrset-cache-size: 32m
    outgoing-range: 8192
    num-queries-per-thread: 4096
    so-rcvbuf: 1m
    so-sndbuf: 1m
    # 10 by default, for clients and for upstreams.
    incoming-num-tcp: 100
    outgoing-num-tcp: 100
    # 200 by default, after which a new connection is made.
    max-reuse-tcp-queries: 100000
    tcp-upstream: yes
    module-config: \"iterator\"
    minimal-responses: yes
    do-not-query-localhost: no
    use-syslog: no
    logfile: \"\"
    username: \"\"
    chroot: \"\"
    directory: \"{directory}\"
    pidfile: \"\"
remote-control:
    control-enable: no
forward-zone:
    name: \".\"
    forward-addr: {upstream_ip}@{upstream_port}
",
        ip = address.ip(),
        port = address.port(),
        directory = directory.display(),
        upstream_ip = upstream.ip(),
        upstream_port = upstream.port(),
    );
    let file = directory.join("unbound.conf");
    fs::write(&file, config)?;
    let mut command = program("unbound");
    command.arg("-d").arg("-c").arg(file);
    Ok(command)
}

/// After "Performance Tuning", "Tuning related functions" and "Out-of-order" of its manual: one local bind (a thread each), one TCP worker,
/// a packet cache with one shard for one thread, several messages a system call, and queries in flight on
/// connections from clients and to the upstream, which it takes to be incapable of it by default. Health checks, a
/// TCP connection each, are rare enough to stay out of the figures.
pub(crate) fn dnsdist(address: SocketAddr, upstream: SocketAddr, directory: &Path) -> Result<Command> {
    let config = format!(
        "setLocal(\"{address}\", {{reusePort=true, maxInFlight=100}})
setACL(\"127.0.0.0/8\")
setSecurityPollSuffix(\"\")
setMaxUDPOutstanding(65535)
setUDPMultipleMessagesVectorSize(32)
setMaxTCPClientThreads(1)
newServer({{address=\"{upstream}\", tcpOnly=true, maxInFlight=100, checkName=\"{KNOWN_NAME}.\", checkInterval=60}})
cache = newPacketCache(100000, {{maxTTL=3600, maxNegativeTTL=3600, numberOfShards=1}})
getPool(\"\"):setCache(cache)
"
    );
    let file = directory.join("dnsdist.conf");
    fs::write(&file, config)?;
    let mut command = program("dnsdist");
    command.arg("--supervised").arg("--disable-syslog").arg("-C").arg(file);
    Ok(command)
}

/// Its manual has one thing to tune, the size of the cache, and warns of one that is too large. Only a tenth of it may
/// have names of more than 50 letters, so that 10,000 would not hold the mix. It forwards over UDP only.
pub(crate) fn dnsmasq(address: SocketAddr, upstream: SocketAddr, directory: &Path) -> Result<Command> {
    let config = format!(
        "port={}
listen-address={}
bind-interfaces
no-resolv
no-hosts
server={}#{}
cache-size=30000
dns-forward-max=1000
",
        address.port(),
        address.ip(),
        upstream.ip(),
        upstream.port()
    );
    let file = directory.join("dnsmasq.conf");
    fs::write(&file, config)?;
    let mut command = program("dnsmasq");
    // Without these it forks, becomes another user and writes a file under /run.
    command.arg("--keep-in-foreground").arg("--pid-file").arg("--log-facility=-");
    command.arg(format!("--user={}", env::var("USER").unwrap_or_else(|_| "root".into())));
    command.arg(format!("--conf-file={}", file.display()));
    Ok(command)
}
