//! A node and its pod, in network namespaces without names: they end with the processes in them, however those end.
//! The node's is this process's own, the pod's is that of a process which does nothing.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::authority::program;
use crate::process::Process;
use crate::way::Way;

/// Addresses of the pod. Each stands for a pod: one has 28,000 ports for its queries, which 10,000 queries a second
/// would soon use again, and find their connection in the table.
pub(crate) const POD_ADDRESSES: u8 = 64;
/// How long it may take to make a namespace.
const START_LIMIT: Duration = Duration::from_secs(5);
/// Connections that are made to fill the table, at most.
const MOST_CONNECTIONS: u64 = 2_000_000;

/// Of the agent's routing rule.
const AGENTS_PREFERENCE: &str = "100";

/// An address of the pod.
pub(crate) fn pod_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, 2 + number)
}

/// Makes network namespaces; says so where that is not possible.
pub(crate) fn must_be_root() -> Result<()> {
    let user = fs::metadata("/proc/self")?.uid();
    ensure!(
        user == 0,
        "the cases over veth make network namespaces and need root: run them by \
         `sudo -E env \"PATH=$PATH\" cargo bench --bench compare -- --only veth`"
    );
    for (name, package) in [
        ("unshare", "util-linux"),
        ("nsenter", "util-linux"),
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("conntrack", "conntrack"),
    ] {
        let found = program(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(found.is_ok(), "the cases over veth need {name}: install the package {package}");
    }
    Ok(())
}

/// The pod's namespace lives as long as this.
pub(crate) struct Node {
    pod: Process,
    /// A place for files.
    directory: PathBuf,
}

impl Node {
    /// Makes this process's namespace, which must be new, a node.
    pub(crate) fn here(directory: &Path, cpus: &[usize]) -> Result<Self> {
        let links = fs::read_to_string("/proc/net/dev")?;
        let links = links.lines().filter_map(|line| Some(line.split_once(':')?.0.trim()));
        ensure!(links.eq(["lo"]), "this network namespace is not new");
        let mut holder = program("unshare");
        holder.args(["--net", "sleep", "infinity"]);
        let mut pod = Process::start(holder, cpus, directory.join("pod.log"))?;
        let own = fs::read_link("/proc/self/ns/net")?;
        let start = Instant::now();
        while fs::read_link(format!("/proc/{}/ns/net", pod.id()))? == own {
            pod.must_live()?;
            ensure!(start.elapsed() < START_LIMIT, "no namespace within {START_LIMIT:?}");
            thread::sleep(Duration::from_millis(1));
        }
        let node = Self { pod, directory: directory.to_owned() };
        // Once a namespace has had a routing rule, its kernel looks at rules for each packet, and never ceases to.
        // Interception makes one, so all ways have to begin with it; and networks of pods often do as well.
        feed(
            program("ip").args(["-batch", "-"]),
            &format!(
                "link set lo up
link add pod0 type veth peer name eth0 netns {}
address add 10.244.1.1/24 dev pod0
link set pod0 up
rule add pref 30000 lookup main
rule delete pref 30000
",
                node.pod.id()
            ),
        )?;
        let addresses = (0..POD_ADDRESSES).map(pod_address);
        let addresses: String = addresses.map(|ip| format!("address add {ip}/24 dev eth0\n")).collect();
        let links =
            format!("link set lo up\n{addresses}link set eth0 up\nroute add default via 10.244.1.1\n");
        feed(node.in_pod("ip").args(["-batch", "-"]), &links)?;
        Ok(node)
    }

    /// A program that is to run in the pod.
    pub(crate) fn in_pod(&self, name: impl AsRef<Path>) -> Command {
        let mut command = program("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pod.id())).arg(name.as_ref());
        command
    }

    /// Puts others' rules in a way in the place of those that were there. The agent's own go with it.
    pub(crate) fn set_up(&self, way: Way) -> Result<()> {
        let rules = format!("add table ip kube-proxy\ndelete table ip kube-proxy\n{}", way.others_rules());
        feed(program("nft").args(["-f", "-"]), &rules)?;
        // An agent that was killed leaves its routing rule behind. There may be none.
        program("ip").args(["rule", "delete", "pref", AGENTS_PREFERENCE]).output().context("ip").map(drop)
    }

    /// Empties the table of connections.
    pub(crate) fn forget_connections(&self) -> Result<()> {
        let output = program("conntrack").arg("-F").output().context("conntrack")?;
        ensure!(output.status.success(), "conntrack: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Fills the table of connections with established ones of other pods, which the kernel does not give up for new
    /// ones. How many there may be is not a namespace's own setting, but each namespace is counted for itself.
    pub(crate) fn fill_connections(&self) -> Result<()> {
        const PORTS: u64 = 60_000;
        let most: u64 = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")?.trim().parse()?;
        ensure!(most <= MOST_CONNECTIONS, "{most} connections are too many to make: see nf_conntrack_max");
        let file = self.directory.join("connections");
        if !file.exists() {
            let mut text = String::new();
            for number in 0..most {
                let (pod, port) = (number / PORTS, 1024 + number % PORTS);
                text.push_str(&format!(
                    "-A -t 3600 -u ASSURED -s 10.245.{pod}.1 -d 10.246.0.1 -p tcp --sport {port} --dport 443 \
                     --state ESTABLISHED\n"
                ));
            }
            fs::write(&file, text)?;
        }
        // The last ones may not fit, beside those of the agent itself.
        let output = program("conntrack").arg("-R").arg(&file).output().context("conntrack")?;
        let there = Tracking::now()?.entries;
        ensure!(
            there + 100 >= most,
            "only {there} of {most} connections: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// Counters of connection tracking in this process's namespace.
pub(crate) struct Tracking {
    /// Connections in the table.
    pub(crate) entries: u64,
    /// Packets dropped because the table was full.
    pub(crate) dropped: u64,
    /// Connections given up for new ones because it was.
    pub(crate) evicted: u64,
}

impl Tracking {
    pub(crate) fn now() -> Result<Self> {
        // Both files are missing while the kernel has no connection tracking at all.
        let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
        let entries = count.map_or(Ok(0), |text| text.trim().parse())?;
        let statistics = fs::read_to_string("/proc/net/stat/nf_conntrack").unwrap_or_default();
        let mut lines = statistics.lines();
        let titles: Vec<_> = lines.next().unwrap_or_default().split_whitespace().collect();
        // A line for each CPU.
        let rows: Vec<Vec<_>> = lines.map(|line| line.split_whitespace().collect()).collect();
        let sum = |title: &str| -> Result<u64> {
            let Some(column) = titles.iter().position(|&known| known == title) else { return Ok(0) };
            let values = rows.iter().filter_map(|row| row.get(column));
            values.map(|value| Ok(u64::from_str_radix(value, 16)?)).sum()
        };
        Ok(Self { entries, dropped: sum("drop")?, evicted: sum("early_drop")? })
    }
}

/// Gives a program its input, and waits for its end.
fn feed(command: &mut Command, text: &str) -> Result<()> {
    let name = command.get_program().display().to_string();
    let started = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut child = started.with_context(|| format!("cannot start {name}"))?;
    let written = child.stdin.take().context("no input")?.write_all(text.as_bytes());
    let status = child.wait()?;
    if !status.success() || written.is_err() {
        bail!("{name} ended with {status} on:\n{text}");
    }
    Ok(())
}
