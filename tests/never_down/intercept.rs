//! Queries to a ClusterIP, of which the agent takes hold, when nobody keeps it any more.

use std::fs;
use std::process::Command;
use std::thread;

use rustix::process::Signal;

use crate::client::Load;
use crate::home::{Home, Keep, send};
use crate::seen::{Events, Kind, Seen};
use crate::support::{alone, rate, seconds, wait_until};
use crate::topology::{Node, Place, Proxy, Topology, on_a_node};

/// The issue's, at any rate up to 5,000 a second.
const LOST: usize = 20;

fn in_a_pod() -> Command {
    let mut command = Node::command(Place::Pod1, "nice");
    command.args(["-n", "-15"]);
    command
}

/// Configures the agent to answer for the ClusterIPs, and starts it.
#[track_caller]
fn start(node: &Node) -> (Home, Keep) {
    let home = Home::new("watchdog: 3s");
    let ips: Vec<_> = node.cluster_ips().iter().map(|at| at.ip().to_string()).collect();
    home.configure_as(&format!(
        "listen: [\"{}\"]\nnetwork: {{ address_on: nodelocaldns, notrack: true, intercept: {ips:?} }}\n\
         keep: {{ handover: {} }}\nzones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"tcp://{}\"] }}\n",
        home.listen(),
        home.handover().display(),
        node.cluster_ips()[0],
    ));
    let mut keep = home.keep();
    home.wait_until_ready(&mut keep);
    (home, keep)
}

#[track_caller]
fn must_be_few(seen: &Seen) {
    let lost = [Kind::Hit, Kind::Miss].map(|kind| seen.lost(kind));
    assert!(lost.iter().sum::<usize>() <= LOST, "{lost:?} lost by UDP");
    // Connections that are open while queries begin or cease to be led here are reset.
    for kind in [Kind::Kept, Kind::Fresh] {
        assert!(seen.lost(kind) <= LOST, "{kind:?}: {}", seen.lost(kind));
    }
}

/// Kills `keep`, and the agent with it or not; the cluster's DNS answers, and then the next agent.
#[track_caller]
fn killed(with_its_agent: bool) {
    let node = Node::start();
    let (home, mut keep) = start(&node);
    let load = Load::start_by(in_a_pod(), node.cluster_ips()[0], rate(), true);
    thread::sleep(seconds(2));
    let mut events = Events::default();
    let agent = keep.agent().expect("an agent");
    events.happens("keep SIGKILL");
    keep.signal(Signal::KILL);
    if with_its_agent {
        send(agent, Signal::KILL);
    }
    assert!(keep.process.wait(seconds(5)).is_some());
    let is_there =
        || fs::read_to_string(format!("/proc/{agent}/status")).is_ok_and(|text| !text.contains("(zombie)"));
    wait_until("its agent has left", seconds(10), || !is_there());
    thread::sleep(seconds(1));
    events.happens("the cluster's DNS alone");
    thread::sleep(seconds(2));
    events.happens("the next keep");
    let mut next = home.keep();
    home.wait_until_ready(&mut next);
    thread::sleep(seconds(2));
    let seen = load.finish();
    let title =
        if with_its_agent { "keep and worker SIGKILL, intercepting" } else { "keep SIGKILL, intercepting" };
    eprint!("{}", seen.report(title, &events));
    must_be_few(&seen);
}

#[test]
fn without_its_keep_an_agent_leaves_and_the_clusters_dns_answers() {
    let _alone = alone();
    on_a_node(Topology::new(Proxy::IptablesLegacy).alone(), || killed(false));
}

#[test]
fn when_both_are_killed_the_clusters_dns_answers() {
    let _alone = alone();
    on_a_node(Topology::new(Proxy::Nftables).alone(), || killed(true));
}

#[test]
fn handing_over_the_clusterip_loses_nothing_by_udp() {
    let _alone = alone();
    on_a_node(Topology::new(Proxy::IptablesLegacy).alone(), || {
        let node = Node::start();
        let (home, mut keep) = start(&node);
        let load = Load::start_by(in_a_pod(), node.cluster_ips()[0], rate(), true);
        thread::sleep(seconds(2));
        let mut events = Events::default();
        for number in 1..=5 {
            events.happens(format!("handover {number}"));
            let next = home.keep();
            next.must_say("the previous one may go", seconds(15));
            keep.must_end(seconds(10));
            thread::sleep(seconds(1));
            keep = next;
        }
        let seen = load.finish();
        eprint!("{}", seen.report("handover, intercepting", &events));
        seen.must_be_whole();
    });
}
