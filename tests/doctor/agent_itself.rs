//! The agent: gone, elsewhere, or with too much power.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;

use crate::examine::{Finding, Level, examine, findings, named, shell, wrong};
use crate::home::{Home, LISTEN, LISTEN6, stop};
use crate::support::{program, run, seconds, wait_until};
use crate::topology::{Families, Node, Place, Proxy, Topology, on_a_node};

const HOLDING: &str = "address_on: nodelocaldns, notrack: true";

#[test]
fn an_agent_that_does_not_run_is_started_by_the_command() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        stop(home.start());
        let absent = named(&home, "agent", Level::Problem, &["no agent runs", "control.sock"]);
        assert!(absent.mend.contains("kubectl"), "{}", absent.mend);
        let port = named(&home, "port", Level::Problem, &[LISTEN, "UDP and TCP", "nobody listens"]);
        let rules = named(&home, "rules", Level::Warning, &["no table"]);
        assert_eq!([&port.mend, &rules.mend], [&absent.mend; 2], "one cause, one command");
        // There is no systemd in a namespace: what it would do is done in its place.
        let systemctl = home.dir.path().join("systemctl");
        let agent = format!("{} run --config {}", program().display(), home.config.display());
        let script = format!(
            "#!/bin/sh\n[ \"$*\" = \"restart nodens\" ] || exit 1\n{agent} >/dev/null 2>&1 &\necho $! >{}/pid\n",
            home.dir.path().display()
        );
        fs::write(&systemctl, script).expect("a file of ours");
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).expect("a file of ours");
        shell(&absent.mend, &[home.dir.path().to_str().expect("a path")]);
        home.wait_until_ready();
        let all = examine(&home);
        for check in ["agent", "port", "rules"] {
            assert!(wrong(&all, check).is_empty(), "{all:#?}");
        }
        let pid = fs::read_to_string(home.dir.path().join("pid")).expect("a file of ours");
        let ended = run(Command::new("kill").arg(pid.trim())).expect("kill");
        assert!(ended.status.success());
        wait_until("it has ended", seconds(10), || home.ready() == 0);
    });
}

#[test]
fn an_agent_in_another_network_is_examined_there_by_the_command() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let there = Node::command(Place::Pod1, "true");
        let words: Vec<&str> =
            ["ip"].into_iter().chain(there.get_args().filter_map(|word| word.to_str())).collect();
        let _agent = home.launch_by(&words[..words.len() - 1]);
        wait_until("it answers", seconds(15), || {
            wrong(&examine(&home), "agent").iter().any(|found| found.what.contains("another network"))
        });
        let all = examine(&home);
        let elsewhere = wrong(&all, "agent").into_iter().find(|found| found.what.contains("another network"));
        let elsewhere = elsewhere.expect("named").clone();
        assert_eq!(elsewhere.level, Level::Warning);
        for check in ["address", "port", "rules", "firewall", "routes", "conntrack", "node-cache"] {
            let of: Vec<&Finding> = all.iter().filter(|finding| finding.check == check).collect();
            assert!(of.len() == 1 && of[0].level == Level::Unknown, "{of:#?}");
            assert_eq!(of[0].mend, elsewhere.mend);
        }
        wait_until("it is found well where it is", seconds(15), || {
            let output = run(Command::new("sh").args(["-c", &elsewhere.mend])).expect("a shell");
            let all = findings(&output);
            ["agent", "address", "port", "rules"].iter().all(|check| wrong(&all, check).is_empty())
        });
    });
}

/// The agent gives up by itself what it does not need, so a process with all of root's power answers in its place.
#[test]
fn an_agent_with_too_many_capabilities_is_named_with_those() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let socket = UnixListener::bind(&home.control).expect("a socket of ours");
        thread::spawn(move || {
            for stream in socket.incoming().map_while(Result::ok) {
                let mut line = String::new();
                let _ = BufReader::new(&stream).read_line(&mut line);
                let _ = (&stream).write_all(b"{\"ok\": true, \"ready\": []}\n");
            }
        });
        let found = named(&home, "agent", Level::Warning, &["does not need", "CAP_SYS_ADMIN"]);
        assert!(!found.what.contains("CAP_NET_ADMIN"), "{}", found.what);
        assert!(
            found.mend.contains("drop: [ALL]") && found.mend.contains("CapabilityBoundingSet="),
            "{}",
            found.mend
        );
    });
}

#[test]
fn an_agent_that_does_not_answer_is_a_problem() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let agent = home.start();
        agent.signal("STOP");
        named(&home, "agent", Level::Problem, &["cannot answer", "no answer within 3 s"]);
        agent.signal("CONT");
        wait_until("it is found well again", seconds(10), || wrong(&examine(&home), "agent").is_empty());
    });
}

#[test]
fn without_a_configuration_that_of_the_running_agent_is_taken_or_it_is_said_that_none_is() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::listening(&[LISTEN6], HOLDING);
        let agent = home.start();
        let doctor = || {
            let mut command = Command::new(program());
            command.args(["doctor", "--json", "--control"]).arg(&home.control);
            findings(&run(&mut command).expect("the program"))
        };
        let all = doctor();
        assert!(all[0].level == Level::Ok && all[0].what.ends_with("/nodens.yaml"), "{all:#?}");
        assert!(all.iter().any(|found| found.check == "address" && found.what.contains(LISTEN6)), "{all:#?}");
        stop(agent);
        let all = doctor();
        assert!(all[0].check == "config" && all[0].level == Level::Unknown, "{all:#?}");
        assert!(all.iter().any(|found| found.check == "address" && found.what.contains(LISTEN)), "{all:#?}");
    });
}
