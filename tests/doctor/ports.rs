//! Others at the agent's port, and packets that do not come to its rules.

use std::fs;
use std::process::Command;

use crate::examine::{Finding, Level, examine, mend, named, shell, wrong};
use crate::home::{Home, LISTEN};
use crate::kernel::{ip, nft};
use crate::support::{Process, seconds, wait_until};
use crate::topology::{Families, Node, Proxy, Topology, on_a_node};

const HOLDING: &str = "address_on: nodelocaldns, notrack: true";

/// A process that has port 53 by UDP and TCP at an address, and answers nobody. Its name is `holder`.
#[track_caller]
fn holder(home: &Home, address: &str, shares: bool) -> Process {
    let script = format!(
        "import socket, time\n\
         open('/proc/self/comm', 'w').write('holder')\n\
         for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):\n    \
         s = socket.socket(socket.AF_INET, kind)\n    \
         s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, {})\n    \
         s.bind(('{address}', 53))\n    \
         s.listen(5) if kind == socket.SOCK_STREAM else None\n    \
         globals()[str(kind)] = s\n\
         print('there', flush=True)\n\
         time.sleep(60)\n",
        u8::from(shares)
    );
    let mut command = Command::new("python3");
    command.args(["-c", &script]);
    let process = Process::start(command, "python3", &home.dir.path().join("holder"));
    wait_until("it has the port", seconds(10), || process.output().contains("there"));
    process
}

/// Ends the holder by the command. Where these tests run in a unit of systemd the holder does too, and that is not ended for
/// it: then the command only looks.
#[track_caller]
fn mend_or_end(home: &Home, found: &Finding, holder: Process) {
    let cgroups = fs::read_to_string("/proc/self/cgroup").expect("proc");
    if cgroups.contains(".service") && !cgroups.contains("/user@") {
        assert!(found.mend.starts_with("systemctl status "), "{found:#?}");
        end(holder);
        wait_until("nothing is wrong", seconds(10), || wrong(&examine(home), "port").is_empty());
    } else {
        mend(home, found);
    }
}

#[track_caller]
fn end(mut holder: Process) {
    holder.signal("TERM");
    assert!(holder.wait(seconds(10)).is_some(), "{}", holder.output());
}

#[test]
fn a_process_that_does_not_share_the_port_keeps_the_agent_out_until_it_is_ended() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        ip(&format!("address add {LISTEN}/32 dev lo"));
        let holder = holder(&home, LISTEN, false);
        let _agent = home.launch();
        wait_until("the agent runs", seconds(10), || home.ready() == 503);
        let pid = format!("holder (pid {})", holder.id());
        let found = named(&home, "port", Level::Problem, &[LISTEN, "UDP and TCP", &pid, "is kept out"]);
        let agent = named(&home, "agent", Level::Problem, &["not ready"]);
        assert!(agent.what.contains("in use"), "{}", agent.what);
        mend_or_end(&home, &found, holder);
        home.wait_until_ready();
    });
}

#[test]
fn a_process_that_shares_the_port_is_named_though_the_agent_works() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        ip(&format!("address add {LISTEN}/32 dev lo"));
        let holder = holder(&home, LISTEN, true);
        let _agent = home.start();
        let pid = format!("holder (pid {})", holder.id());
        let found = named(&home, "port", Level::Problem, &[LISTEN, &pid, "listens beside the agent"]);
        mend_or_end(&home, &found, holder);
    });
}

#[test]
fn a_process_with_the_port_of_every_address_is_named_while_it_keeps_the_agent_out() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let holder = holder(&home, "0.0.0.0", false);
        let _agent = home.launch();
        wait_until("the agent runs", seconds(10), || home.ready() == 503);
        let pid = format!("holder (pid {})", holder.id());
        let found = named(&home, "port", Level::Problem, &[LISTEN, &pid, "port of every address"]);
        shell(&found.mend, &[]);
        assert!(home.ready() == 503 && found.mend.contains("it serves 0.0.0.0:53 as well"), "{found:#?}");
        end(holder);
        wait_until("nothing is wrong", seconds(10), || wrong(&examine(&home), "port").is_empty());
    });
}

#[test]
fn a_chain_that_takes_packets_before_our_rules_is_named() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let _agent = home.start();
        nft("add table inet guard");
        nft("add chain inet guard early { type filter hook output priority -400; }");
        nft(&format!("add rule inet guard early ip daddr {LISTEN} drop"));
        let found = named(&home, "rules", Level::Problem, &[LISTEN, "have not counted"]);
        assert!(found.why.contains("chain inet guard early"), "{}", found.why);
        assert_eq!(found.mend, "nft list chain inet guard early");
        let all = examine(&home);
        let port = wrong(&all, "port");
        assert!(
            !port.is_empty() && port.iter().all(|found| found.what.contains("came to nothing")),
            "{all:#?}"
        );
        nft("delete table inet guard");
        let all = examine(&home);
        assert!(wrong(&all, "rules").is_empty() && wrong(&all, "port").is_empty(), "{all:#?}");
    });
}
