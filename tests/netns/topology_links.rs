//! The links of a node, its pods and the cluster's DNS, routed one by one as a CNI does it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::support::{Namespace, missing, run};
use crate::topology::{ENDPOINTS, ENDPOINTS6, Families};

/// What the other namespaces are called, behind the name of the node's.
pub(crate) const POD1: &str = "pod1";
pub(crate) const POD2: &str = "pod2";
pub(crate) const DNS: &str = "dns";

/// Each with its addresses. The link on the node is called as the namespace.
const PODS: [(&str, [&[&str]; 2]); 3] = [
    (POD1, [&["10.244.0.2"], &["fd00:244::2"]]),
    (POD2, [&["10.244.0.3"], &["fd00:244::3"]]),
    (DNS, [&ENDPOINTS, &ENDPOINTS6]),
];

/// What the node has on each link to a pod, and every pod sends to.
const GATEWAYS: [&str; 2] = ["10.244.0.1", "fd00:244::1"];
/// The node's own, and its router's, which is not there.
const NODE: [[&str; 2]; 2] = [["192.0.2.10/24", "192.0.2.1"], ["2001:db8::10/64", "2001:db8::1"]];

/// Links made from now on have IPv6 addresses that can be used at once, link-local ones too: without these nobody asks
/// where the next hop of a packet is that passes through.
const AT_ONCE: &str = "net.ipv6.conf.default.accept_dad=0";

/// Makes pods beside the node, and the links between. They go with what is returned.
#[track_caller]
pub(crate) fn make(node: &Namespace, families: Families) -> Vec<Namespace> {
    let pods = PODS.map(|(name, _)| Namespace::add(format!("{}-{name}", node.name)));
    // Packets of pods pass through the node.
    set(node, &["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", AT_ONCE]);
    for pod in &pods {
        set(pod, &[AT_ONCE]);
    }
    // The other end of the uplink is here too, so that the link is up.
    let mut script = String::from("link add uplink type veth peer name router\nlink set router up\n");
    for [address, _] in families.of(NODE) {
        let _ = writeln!(script, "address add {address} dev uplink{}", at_once(address));
    }
    script.push_str("link set uplink up\n");
    for [_, router] in families.of(NODE) {
        let _ = writeln!(script, "route add default via {router}");
    }
    for ((name, addresses), pod) in PODS.iter().zip(&pods) {
        let _ = writeln!(script, "link add {name} type veth peer name eth0 netns {}", pod.name);
        for gateway in families.of(GATEWAYS) {
            let _ = writeln!(script, "address add {} dev {name}{}", host(gateway), at_once(gateway));
        }
        let _ = writeln!(script, "link set {name} up");
        for address in families.of(*addresses).into_iter().flatten() {
            let _ = writeln!(script, "route add {} dev {name}", host(address));
        }
    }
    batch(node, &script);
    for ((_, addresses), pod) in PODS.iter().zip(&pods) {
        let mut script = String::new();
        for address in families.of(*addresses).into_iter().flatten() {
            let _ = writeln!(script, "address add {} dev eth0{}", host(address), at_once(address));
        }
        script.push_str("link set eth0 up\n");
        for gateway in families.of(GATEWAYS) {
            let _ = writeln!(script, "route add {} dev eth0\nroute add default via {gateway}", host(gateway));
        }
        batch(pod, &script);
    }
    pods.into()
}

/// What an IPv6 address needs besides so that nobody has to wait before it can be bound: until the link is seen to be up,
/// which takes a busy machine a while, the kernel has not begun to find out whether it is somebody else's.
fn at_once(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

/// The address alone, as a prefix.
fn host(address: &str) -> String {
    format!("{address}/{}", if address.contains(':') { 128 } else { 32 })
}

/// Sets what the kernel does there.
#[track_caller]
fn set(namespace: &Namespace, settings: &[&str]) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace.name, "sysctl", "-q", "-w"]).args(settings);
    let output = run(&mut command).unwrap_or_else(|error| panic!("{}", missing("ip", "iproute2", &error)));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "sysctl (Debian package procps): {text}");
}

/// Has one `ip` carry out many lines.
#[track_caller]
fn batch(namespace: &Namespace, script: &str) {
    let mut command = Command::new("ip");
    command.args(["-n", &namespace.name, "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("ip, which has made the namespace");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(script.as_bytes()).expect("ip reads its lines");
    drop(stdin);
    let output = child.wait_with_output().expect("ip");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip -batch: {text}\n{script}");
}
