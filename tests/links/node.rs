//! A node that is an empty network namespace, and what `ip` says of it.

use std::env;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use nodens::node::link::{Held, Place, hold};

use crate::support::{Namespace, inside, missing, run};

/// What the configuration calls the link.
pub(crate) const ON: &str = "nodelocaldns";
/// Listen addresses.
pub(crate) const V4: &str = "169.254.20.10";
/// By IPv6.
pub(crate) const V6: &str = "fd00:20::10";

/// More than anything of the kernel's takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
const GREETING: &str = "here";
/// Names the pod's namespace inside of the node's.
const POD: &str = "NODENS_TEST_POD";

/// Runs `body`, a closure written in the calling test, as that test in a namespace of its own, whose `lo` is up.
#[track_caller]
pub(crate) fn on_a_node<F: Fn()>(body: F) {
    inside(|_, _| {}, body);
}

/// As [`on_a_node`], with a pod that reaches the node by both families.
#[track_caller]
pub(crate) fn on_a_node_with_a_pod<F: Fn()>(body: F) {
    let prepare = |node: &Namespace, command: &mut Command| {
        let pod = Namespace::add(format!("{}-pod", node.name));
        node.ip(&["link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", &pod.name]);
        for (namespace, link, last) in [(node, "pod0", "1"), (&pod, "eth0", "2")] {
            namespace.ip(&["address", "add", &format!("10.244.0.{last}/24"), "dev", link]);
            namespace.ip(&["address", "add", &format!("fd00:244::{last}/64"), "dev", link, "nodad"]);
            namespace.ip(&["link", "set", link, "up"]);
        }
        for (family, gateway) in [("-4", "10.244.0.1"), ("-6", "fd00:244::1")] {
            pod.ip(&[family, "route", "add", "default", "via", gateway]);
        }
        command.env(POD, &pod.name);
        pod
    };
    inside(prepare, body);
}

pub(crate) fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

pub(crate) fn place(address: &str, link: &str) -> Place {
    Place { address: address.parse().expect("an address"), link: link.to_owned() }
}

/// Holds these addresses, all of them.
#[track_caller]
pub(crate) fn hold_all(on: &str, texts: &[&str]) -> Held {
    let held = hold(on, &addresses(texts)).unwrap_or_else(|problem| panic!("{problem}"));
    assert!(held.missing.is_empty(), "{held:?}");
    held
}

/// Runs a program, which may fail.
#[track_caller]
pub(crate) fn attempt(program: &str, package: &str, arguments: &str) -> Output {
    let output = run(Command::new(program).args(arguments.split_whitespace()));
    output.unwrap_or_else(|error| panic!("{}", missing(program, package, &error)))
}

/// Runs `ip` with these words, and returns what it prints.
#[track_caller]
pub(crate) fn ip(arguments: &str) -> String {
    let output = attempt("ip", "iproute2", arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// A link that can stand for a dummy, which not every kernel has. It is down.
#[track_caller]
pub(crate) fn make_link(name: &str) {
    ip(&format!("link add {name} type ifb"));
}

/// The addresses of a link as `ip` has them: `169.254.20.10/32 host`.
#[track_caller]
pub(crate) fn on_link(link: &str) -> Vec<String> {
    let text = ip(&format!("-oneline address show dev {link}"));
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| !word.starts_with("inet"));
        let address = words.nth(1)?.to_owned();
        let scope = words.skip_while(|word| *word != "scope").nth(1)?;
        Some(format!("{address} {scope}"))
    };
    let mut found: Vec<String> = text.lines().filter_map(line).collect();
    found.sort();
    found
}

/// Whether `ip` sees a link that is set up.
#[track_caller]
pub(crate) fn is_up(link: &str) -> bool {
    let text = ip(&format!("-oneline link show dev {link}"));
    let flags = text.split(['<', '>']).nth(1).expect("flags");
    flags.split(',').any(|flag| flag == "UP")
}

pub(crate) fn exists(link: &str) -> bool {
    attempt("ip", "iproute2", &format!("link show dev {link}")).status.success()
}

/// Whether a socket bound to this address can be reached from the node itself.
pub(crate) fn answers(address: &str) -> bool {
    let Some(at) = greet_one(address) else { return false };
    let Ok(mut client) = TcpStream::connect_timeout(&at, Duration::from_secs(1)) else { return false };
    let mut said = String::new();
    client.set_read_timeout(Some(Duration::from_secs(1))).expect("a limit");
    client.read_to_string(&mut said).is_ok() && said == GREETING
}

/// Whether one can be reached from the pod.
#[track_caller]
pub(crate) fn answers_a_pod(address: &str) -> bool {
    let Some(at) = greet_one(address) else { return false };
    let pod = env::var(POD).expect("a node with a pod");
    let script = format!("read -r -t 2 said <'/dev/tcp/{}/{}'; echo $said", at.ip(), at.port());
    let output = run(Command::new("ip").args(["netns", "exec", &pod, "timeout", "3", "bash", "-c", &script]));
    let output = output.unwrap_or_else(|error| panic!("{}", missing("ip", "iproute2", &error)));
    String::from_utf8_lossy(&output.stdout).trim() == GREETING
}

/// Listens at this address, and greets the first client.
fn greet_one(address: &str) -> Option<SocketAddr> {
    let at = SocketAddr::new(address.parse().expect("an address"), 0);
    let listener = TcpListener::bind(at).ok()?;
    let at = listener.local_addr().expect("its address");
    thread::spawn(move || {
        if let Ok((mut client, _)) = listener.accept() {
            let _ = client.write_all(GREETING.as_bytes());
        }
    });
    Some(at)
}

/// What a future gives, on a runtime like the agent's.
pub(crate) fn wait_for<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}
