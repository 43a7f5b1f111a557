//! A node and its pod. The node is the network namespace of this process, the pod another one; neither has a name, so
//! that they end with this process, however it ends.

use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::panic;
use std::process::{self, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::authority::program;
use crate::sys;
use crate::way::Way;

/// Addresses of the pod. Each stands for a pod: one has 28,000 ports for its queries, which many queries a second
/// would soon use again, and find their connection in the table.
const POD_ADDRESSES: u64 = 240;

/// The address from which a query is sent.
pub(crate) fn pod_address(query: u64) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, 2 + (query % POD_ADDRESSES) as u8)
}

pub(crate) struct Node {
    pod: File,
}

impl Node {
    /// Makes the namespaces and enters the node's. Whatever this thread starts from now on is on the node.
    pub(crate) fn enter() -> Result<Self> {
        sys::new_network().context("no network namespace, which takes root")?;
        let pod = thread::spawn(|| -> Result<File> {
            sys::new_network()?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let node = Self { pod: pod.join().unwrap_or_else(|panic| panic::resume_unwind(panic))? };
        let pod = format!("/proc/{}/fd/{}", process::id(), node.pod.as_raw_fd());
        // Once a namespace has had a rule, its kernel looks at rules for each packet, and never ceases to. Interception
        // makes one, so all ways have to begin with it. The pod is the way out: nothing that matters goes there.
        batch(&format!(
            "link set lo up
link add pod0 type veth peer name eth0 netns {pod}
address add 10.244.1.1/24 dev pod0
link set pod0 up
route add default via {}
rule add pref 30000 lookup main
rule delete pref 30000
",
            pod_address(0)
        ))?;
        let addresses: String = (0..POD_ADDRESSES)
            .map(|number| format!("address add {}/24 dev eth0\n", pod_address(number)))
            .collect();
        let links =
            format!("link set lo up\n{addresses}link set eth0 up\nroute add default via 10.244.1.1\n");
        node.in_pod(|| batch(&links))?;
        Ok(node)
    }

    /// Does something in the pod.
    pub(crate) fn in_pod<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            sys::enter_network(&self.pod)?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    }

    /// Puts others' rules in the place of those that were there.
    pub(crate) fn set_up(&self, way: Way) -> Result<()> {
        let rules = format!("add table ip kube-proxy\ndelete table ip kube-proxy\n{}", way.others_rules());
        feed(program("nft").args(["-f", "-"]), &rules).context("nft (Debian package nftables)")?;
        // An agent that was killed leaves its own routing rule behind. There may be none.
        program("ip").args(["rule", "delete", "pref", "100"]).output().context("ip (iproute2)").map(drop)
    }

    /// Empties the table of connections.
    pub(crate) fn forget_connections(&self) -> Result<()> {
        let output =
            program("conntrack").arg("-F").output().context("conntrack (Debian package conntrack)")?;
        ensure!(output.status.success(), "conntrack: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

fn batch(lines: &str) -> Result<()> {
    feed(program("ip").args(["-batch", "-"]), lines).context("ip (iproute2)")
}

/// Gives a program its input, and waits for its end.
fn feed(command: &mut Command, text: &str) -> Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let written = child.stdin.take().context("no input")?.write_all(text.as_bytes());
    let status = child.wait()?;
    ensure!(status.success() && written.is_ok(), "{status} on:\n{text}");
    Ok(())
}
