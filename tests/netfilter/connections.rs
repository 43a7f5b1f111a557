//! A connection to a ClusterIP stays where it began, whatever becomes of the rules.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use nodens::node::netfilter::{Ownership, Table};
use nodens::node::rules::{Kept, Wanted, chains};
use socket2::{Domain, Socket, Type};

use crate::intercept::lead_here;
use crate::node::{
    CLUSTER, KEPT, LISTEN, NOTHING, address, answer, entries, listen, nft, on_a_node, pod_command, program,
};
use crate::support::{missing, seconds, wait_until};

/// Where the cluster's DNS is, behind the ClusterIPs.
const ENDPOINTS: [&str; 2] = ["169.254.20.10:5353", "[fd00:20::10]:5353"];

/// Leads to it, as kube-proxy does.
const PROXY: &str = "table inet proxy {
  chain services {
    ip daddr 10.96.0.10 tcp dport 53 dnat ip to 169.254.20.10:5353
    ip6 daddr fd00:96::10 tcp dport 53 dnat ip6 to [fd00:20::10]:5353
  }
  chain arriving {
    type nat hook prerouting priority dstnat
    jump services
  }
  chain sent {
    type nat hook output priority -100
    jump services
  }
}";

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Agent,
    ClusterDns,
    Nobody,
}

/// A conversation with whoever is behind a ClusterIP.
enum Talk {
    Node(TcpStream),
    Pod(Box<Child>, Box<dyn BufRead>),
}

impl Talk {
    /// From the node, from this port, or from any.
    fn of_node(to: SocketAddr, port: u16) -> Option<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("socket");
        socket.set_reuse_address(true).expect("an option");
        // A goodbye without waiting leaves the port free for the next one.
        socket.set_linger(Some(Duration::ZERO)).expect("an option");
        socket.set_read_timeout(Some(seconds(1))).expect("a timeout");
        let own: IpAddr =
            if to.is_ipv4() { "10.244.0.1" } else { "fd00:244::1" }.parse().expect("an address");
        socket.bind(&SocketAddr::new(own, port).into()).expect("a port");
        socket.connect_timeout(&to.into(), seconds(1)).ok()?;
        Some(Self::Node(socket.into()))
    }

    /// From the pod, once it is connected.
    #[track_caller]
    fn of_pod(to: SocketAddr) -> Self {
        let script = format!(
            "exec 3<>/dev/tcp/{}/{} || exit 1; echo open; while read -r word; do printf \"$word\" >&3; \
             timeout 1 head -c 4 <&3; echo; done",
            to.ip(),
            to.port()
        );
        let mut child = pod_command("bash")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}", missing("ip", "iproute2", &error)));
        let mut heard = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        heard.read_line(&mut line).expect("a line");
        assert_eq!(line, "open\n", "the pod cannot connect to {to}");
        Self::Pod(Box::new(child), Box::new(heard))
    }

    /// From both.
    #[track_caller]
    fn all(to: SocketAddr) -> [Self; 2] {
        [Self::of_node(to, 0).expect("a connection"), Self::of_pod(to)]
    }

    /// Who answers to a word.
    fn with(&mut self) -> Who {
        let heard = match self {
            Self::Node(stream) => {
                let mut heard = [0; 4];
                let said = stream.write_all(b"word").is_ok();
                let length = if said { stream.read(&mut heard).unwrap_or(0) } else { 0 };
                String::from_utf8_lossy(&heard[..length]).into_owned()
            }
            Self::Pod(child, heard) => {
                let mut line = String::new();
                let said = child.stdin.as_mut().is_some_and(|stdin| stdin.write_all(b"word\n").is_ok());
                if said {
                    heard.read_line(&mut line).expect("a line");
                }
                line.trim_end().to_owned()
            }
        };
        match heard.as_str() {
            "word" => Who::Agent,
            "WORD" => Who::ClusterDns,
            _ => Who::Nobody,
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        if let Self::Pod(child, _) = self {
            drop(child.stdin.take()); // its loop ends
            let _ = child.wait();
        }
    }
}

/// An agent and the cluster's DNS. Returns the ClusterIPs.
#[track_caller]
fn both() -> [SocketAddr; 2] {
    lead_here();
    nft(PROXY);
    let at = CLUSTER.map(address);
    at.into_iter().for_each(listen);
    for endpoint in ENDPOINTS.map(address) {
        answer(endpoint, |byte| byte.to_ascii_uppercase());
    }
    at
}

/// Who answers whoever opens a connection now, from everywhere and by both families.
#[track_caller]
fn new_ones_are_answered_by(who: Who, at: [SocketAddr; 2]) {
    for to in at {
        for (mut talk, from) in Talk::all(to).into_iter().zip(["the node", "the pod"]) {
            assert_eq!(talk.with(), who, "{from} {to}");
        }
    }
}

#[track_caller]
fn all_are_answered_by(who: Who, talks: &mut [Talk]) {
    for (number, talk) in talks.iter_mut().enumerate() {
        assert_eq!(talk.with(), who, "connection {number}");
    }
}

#[test]
fn connections_go_on_where_they_began_through_every_change_of_the_rules() {
    on_a_node(|| {
        let at = both();
        let listen = LISTEN.map(address);
        for ownership in [Ownership::Kernel, Ownership::Ourselves] {
            let mut before: Vec<Talk> = at.into_iter().flat_map(Talk::all).collect();
            all_are_answered_by(Who::ClusterDns, &mut before);
            let mut table = Table::open_as(ownership).expect("a table");
            let led = Wanted { intercept: &at, kept: KEPT, ..NOTHING };
            let left = Wanted { leaving: &at, kept: KEPT, ..NOTHING };
            table.replace(&chains(&led)).expect("rules");
            println!("{}", nft(&format!("list table inet {}", table.name())));
            let mut ours: Vec<Talk> = at.into_iter().flat_map(Talk::all).collect();
            // No more queries, again, with other rules beside them.
            for (wanted, who) in [
                (led, Who::Agent),
                (left, Who::ClusterDns),
                (led, Who::Agent),
                (Wanted { notrack: &listen, ..led }, Who::Agent),
                (Wanted { notrack: &listen, ..left }, Who::ClusterDns),
            ] {
                table.replace(&chains(&wanted)).expect("rules");
                assert!(table.is_there().expect("a look"));
                all_are_answered_by(Who::ClusterDns, &mut before);
                all_are_answered_by(Who::Agent, &mut ours);
                new_ones_are_answered_by(who, at);
            }
            // Those that the agent has would be strangers to the cluster's DNS.
            drop(table);
            all_are_answered_by(Who::ClusterDns, &mut before);
            all_are_answered_by(Who::Nobody, &mut ours);
        }
    });
}

#[test]
fn a_port_that_was_used_before_leads_where_new_connections_lead() {
    on_a_node(|| {
        let at = both();
        let mut table = Table::open().expect("a table");
        let answers =
            |port: u16| at.map(|to| Talk::of_node(to, port).map_or(Who::Nobody, |mut talk| talk.with()));
        for (wanted, who) in [
            (Wanted { intercept: &at, ..NOTHING }, Who::Agent),
            (Wanted { leaving: &at, ..NOTHING }, Who::ClusterDns),
            (Wanted { intercept: &at, ..NOTHING }, Who::Agent),
        ] {
            table.replace(&chains(&wanted)).expect("rules");
            for _ in 0..2 {
                for port in [40_001, 40_002] {
                    assert_eq!(answers(port), [who; 2], "{port} {wanted:?}");
                }
            }
        }
    });
}

#[test]
fn where_no_more_are_kept_in_mind_the_clusters_dns_answers() {
    on_a_node(|| {
        let at = both();
        let mut table = Table::open().expect("a table");
        let few = Kept { most: 2, silence: KEPT.silence };
        table.replace(&chains(&Wanted { intercept: &at, kept: few, ..NOTHING })).expect("rules");
        let mut ours: Vec<Talk> = at.into_iter().flat_map(Talk::all).collect();
        let mut more: Vec<Talk> = at.into_iter().flat_map(Talk::all).collect();
        for _ in 0..2 {
            all_are_answered_by(Who::Agent, &mut ours);
            all_are_answered_by(Who::ClusterDns, &mut more);
        }
        assert_eq!(entries(&ENDPOINTS.map(address)).len(), 4, "theirs are tracked, as without us");
    });
}

#[test]
fn a_connection_is_kept_in_mind_while_it_says_something() {
    on_a_node(|| {
        let at = both();
        let mut table = Table::open().expect("a table");
        let brief = Kept { most: 8, silence: seconds(2) };
        table.replace(&chains(&Wanted { intercept: &at, kept: brief, ..NOTHING })).expect("rules");
        let mut ours: Vec<Talk> = at.into_iter().flat_map(Talk::all).collect();
        let kept = || {
            let list = |name: &str| nft(&format!("list set inet {} {name}", table.name()));
            ["connections", "connections6"].map(|name| list(name).matches("expires").count())
        };
        assert_eq!(kept(), [2, 2]);
        for _ in 0..6 {
            thread::sleep(Duration::from_millis(700));
            all_are_answered_by(Who::Agent, &mut ours);
        }
        assert_eq!(kept(), [2, 2]);
        wait_until("silent ones are forgotten", seconds(10), || kept() == [0, 0]);
    });
}

/// Nobody can take away what an owner has; a plain table is anybody's.
#[test]
fn what_is_taken_away_comes_back_with_its_sets() {
    on_a_node(|| {
        let at = both();
        let rules = || chains(&Wanted { intercept: &at, ..NOTHING });
        let mut table = Table::open_as(Ownership::Ourselves).expect("a table");
        table.replace(&rules()).expect("rules");
        let name = table.name().to_owned();
        let refused = |what: &str| {
            let words: Vec<_> = what.split_whitespace().collect();
            !program("nft", "nftables", &words).0
        };
        assert!(refused(&format!("delete set inet {name} connections")), "rules look into it");
        let sets = format!("delete set inet {name} connections; delete set inet {name} connections6");
        for loss in [format!("flush table inet {name}; {sets}"), "flush ruleset".to_owned()] {
            nft(&loss);
            assert!(!table.is_there().expect("a look"), "{loss}");
            table.replace(&rules()).expect("rules again");
            assert!(table.is_there().expect("a look"), "{loss}");
            new_ones_are_answered_by(Who::Agent, at);
        }
        // From rules that look into sets to others, when somebody has taken the sets away meanwhile.
        nft(&format!("flush table inet {name}; {sets}"));
        table.replace(&chains(&Wanted { notrack: &LISTEN.map(address), ..NOTHING })).expect("rules");
        assert!(!nft(&format!("list table inet {name}")).contains("set connections"));
        let mut owned = Table::open().expect("a table");
        owned.replace(&rules()).expect("rules");
        assert!(refused(&format!("flush set inet {} connections", owned.name())));
        owned.replace(&chains(&Wanted { notrack: &LISTEN.map(address), ..NOTHING })).expect("rules");
        assert!(!nft(&format!("list table inet {}", owned.name())).contains("set connections"));
    });
}
