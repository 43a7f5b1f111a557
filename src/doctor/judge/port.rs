//! Port 53: whose sockets are at the addresses, and who answers there.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::START;
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Level, Seen, Unseen};
use crate::doctor::look::agent::{Agent, SEES_PROCESSES};
use crate::doctor::look::answers::{Answer, Answerer};
use crate::doctor::look::processes::{Owners, Process};
use crate::doctor::look::sockets::{Bound, Protocol};

const CHECK: &str = "port";
/// As proc(5), `comm`, has the agent.
const AGENT: &str = "nodens";

/// What is there.
#[derive(Debug)]
struct Facts<'a> {
    agent: &'a Agent,
    sockets: &'a [Bound],
    owners: &'a Owners,
    answers: &'a [Answer],
    /// Addresses that are to be the agent's.
    ours: &'a BTreeSet<SocketAddr>,
}

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    let Patient { agent, node, .. } = patient;
    let (sockets, owners) = match (&node.sockets, &node.owners) {
        (Ok(sockets), Ok(owners)) => (sockets, owners),
        (Err(unseen), _) | (_, Err(unseen)) => {
            return vec![Finding::unknown(CHECK, "sockets could not be listed", unseen)];
        }
    };
    let listen: BTreeSet<SocketAddr> = patient.config.listen.iter().copied().collect();
    let ours = listen.iter().copied().chain(patient.cluster_ips()).collect();
    let facts = Facts { agent, sockets, owners, answers: &node.answers, ours: &ours };
    let mut findings: Vec<Finding> = listen.into_iter().flat_map(|at| judge(&facts, at)).collect();
    // Before it is ready nobody is to be there: the cluster's DNS answers.
    if agent.is_ready() {
        findings.extend(patient.cluster_ips().into_iter().flat_map(|at| judge(&facts, at)));
    }
    findings
}

/// What is wrong in the same way by one protocol or by both.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    level: Level,
    /// Behind the address and the protocols.
    what: String,
    why: String,
    mend: String,
}

fn judge(facts: &Facts<'_>, at: SocketAddr) -> Vec<Finding> {
    let mut found: Vec<(Found, Vec<Protocol>)> = Vec::new();
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let one = judge_one(facts, at, protocol);
        match found.iter_mut().find(|(other, _)| *other == one) {
            Some((_, protocols)) => protocols.push(protocol),
            None => found.push((one, vec![protocol])),
        }
    }
    let finding = |(Found { level, what, why, mend }, protocols): (Found, Vec<Protocol>)| {
        let by = protocols.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        Finding { check: CHECK, level, what: format!("{at} by {by}: {what}"), why, mend }
    };
    found.into_iter().map(finding).collect()
}

/// Who has sockets for what comes to the address.
#[derive(Debug, Default)]
struct Holders<'a> {
    agents: BTreeSet<&'a Process>,
    others: BTreeSet<&'a Process>,
    /// Those of others have this very address.
    exact: bool,
    /// There are sockets whose owner is not to be seen.
    hidden: bool,
    /// One of those has this very address.
    hidden_exact: bool,
}

fn holders<'a>(facts: &Facts<'a>, at: SocketAddr, protocol: Protocol) -> Holders<'a> {
    let mut holders = Holders::default();
    for socket in facts.sockets.iter().filter(|socket| socket.protocol == protocol && socket.covers(at)) {
        let Some(processes) = facts.owners.of.get(&socket.inode) else {
            holders.hidden = true;
            holders.hidden_exact |= socket.addr.ip() == at.ip();
            continue;
        };
        for process in processes {
            let exact = socket.addr.ip() == at.ip();
            if Some(process.pid) == facts.agent.pid || process.name == AGENT {
                holders.agents.insert(process);
            } else {
                holders.exact |= exact;
                holders.others.insert(process);
            }
        }
    }
    holders
}

fn judge_one(facts: &Facts<'_>, at: SocketAddr, protocol: Protocol) -> Found {
    let holders = holders(facts, at, protocol);
    let answer = facts.answers.iter().find(|answer| answer.addr == at && answer.protocol == protocol);
    let from = answer.map(|answer| answer.from.as_ref());
    let ok = |what: String| Found { level: Level::Ok, what, why: String::new(), mend: String::new() };
    if !holders.others.is_empty() && (holders.exact || holders.agents.is_empty()) {
        return taken(facts, &holders, at, from);
    }
    match (from, holders.agents.first()) {
        (_, Some(agent)) if holders.hidden_exact => beside(agent),
        (Some(Ok(Answerer::Agent)), Some(agent)) => ok(format!("{agent} listens and answers")),
        (Some(Ok(Answerer::Agent)), None) => ok("an agent answers".to_owned()),
        (Some(Ok(Answerer::Other)), agent) => someone_else(agent.copied()),
        (_, Some(agent)) => silent(agent, from),
        (_, None) if holders.hidden => hidden(from),
        (_, None) => nobody(facts.agent),
    }
}

/// A process that is no agent is there.
fn taken(
    facts: &Facts<'_>,
    holders: &Holders<'_>,
    at: SocketAddr,
    from: Option<Result<&Answerer, &String>>,
) -> Found {
    let agent = facts.agent;
    let names = listed(&holders.others);
    let ends: Vec<String> = holders.others.iter().map(|process| end(facts, process, at)).collect();
    let mut mend = ends.join("\n") + "\n# or have it listen at other addresses alone";
    let (what, why) = if !holders.agents.is_empty() {
        let both = format!("{names} listens beside the agent");
        (both, "They share the port (SO_REUSEPORT), and a part of the queries goes there.")
    } else if agent.is_absent() {
        mend = format!("{mend}\n{START}");
        (
            format!("{names} listens, and no agent runs"),
            "Queries are answered by somebody else, or not at all.",
        )
    } else if holders.exact {
        let alone = format!("{names} has the port, and the agent is kept out");
        (alone, "It did not share it (SO_REUSEPORT), or runs as another user; the agent tries again.")
    } else {
        let all = format!("{names} has the port of every address, and the agent is kept out");
        (all, "It did not share it (SO_REUSEPORT), or runs as another user; the agent tries again.")
    };
    let asked = match from {
        // Now the one is asked, now the other.
        _ if !holders.agents.is_empty() => "",
        Some(Ok(Answerer::Agent)) => "; a question of ours was answered by an agent",
        Some(Ok(Answerer::Other)) => "; a question of ours was answered by somebody else",
        Some(Err(_)) => "; a question of ours was not answered",
        None => "",
    };
    Found { level: Level::Problem, what: what + asked, why: why.to_owned(), mend }
}

/// What ends a process, unless it serves others as well: then that is for people to decide.
fn end(facts: &Facts<'_>, process: &Process, at: SocketAddr) -> String {
    let has =
        |socket: &&Bound| facts.owners.of.get(&socket.inode).is_some_and(|owners| owners.contains(process));
    let its = facts.sockets.iter().filter(|socket| socket.addr.port() == at.port()).filter(has);
    let others: BTreeSet<SocketAddr> =
        its.map(|socket| socket.addr).filter(|addr| !facts.ours.contains(addr)).collect();
    if others.is_empty() {
        return process.stop();
    }
    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
    let stop: Vec<String> = process.stop().lines().map(|line| format!("#   {line}")).collect();
    format!(
        "ss -tulnp 'sport = :{}'\n# it serves {} as well; if nobody needs that:\n{}",
        at.port(),
        others.join(", "),
        stop.join("\n")
    )
}

fn someone_else(agent: Option<&Process>) -> Found {
    let what = match agent {
        Some(agent) => format!("{agent} listens, and the answer is not its own"),
        None => "the answer is not the agent's".to_owned(),
    };
    Found {
        level: Level::Problem,
        what,
        why:
            "Queries are led elsewhere before they come to it, or it refuses those of this node (allow_from)."
                .to_owned(),
        mend: "nft list ruleset   # what translates this address, or marks what comes to it?".to_owned(),
    }
}

fn silent(agent: &Process, from: Option<Result<&Answerer, &String>>) -> Found {
    let why = from.and_then(Result::err).map_or("not asked", String::as_str);
    Found {
        level: Level::Problem,
        what: format!("{agent} listens, and a question of ours came to nothing: {why}"),
        why: "The packets are dropped on their way, or led elsewhere.".to_owned(),
        mend: "nft list ruleset   # what drops packets to this address, or from it?".to_owned(),
    }
}

/// Whoever it is gets a part of the queries: an agent that takes over from this one, or somebody else.
fn beside(agent: &Process) -> Found {
    let Unseen { why, mend } = unseen();
    let what = format!("{agent} listens, and so does a process that is not to be seen");
    Found { level: Level::Unknown, what, why, mend }
}

fn unseen() -> Unseen {
    Unseen::new(
        "Processes of others are seen by root alone, those of the node not in a container.",
        SEES_PROCESSES,
    )
}

fn hidden(from: Option<Result<&Answerer, &String>>) -> Found {
    let Unseen { why, mend } = unseen();
    match from.and_then(Result::err) {
        Some(error) => Found {
            level: Level::Problem,
            what: format!("a process that is not to be seen has the port, and does not answer: {error}"),
            why,
            mend,
        },
        None => {
            let what = "a process that is not to be seen has the port".to_owned();
            Found { level: Level::Unknown, what, why, mend }
        }
    }
}

fn nobody(agent: &Agent) -> Found {
    let mend = if agent.is_absent() { START } else { "# the agent's log says what keeps it from that" };
    Found {
        level: Level::Problem,
        what: "nobody listens".to_owned(),
        why: "Queries are refused or lost.".to_owned(),
        mend: mend.to_owned(),
    }
}

fn listed(processes: &BTreeSet<&Process>) -> String {
    processes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Whether all processes of the node can be seen: what is not seen there is not there.
pub(super) fn sees_all(sockets: &Seen<Vec<Bound>>, owners: &Seen<Owners>) -> bool {
    match (sockets, owners) {
        (Ok(sockets), Ok(owners)) => {
            owners.hidden == 0 && sockets.iter().all(|socket| owners.of.contains_key(&socket.inode))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::look::agent::State;
    use crate::doctor::look::processes::Origin;

    const AT: &str = "169.254.20.10:53";

    /// Sockets by their address and who has them; 0 is nobody that is seen.
    fn judged(state: State, sockets: &[(&str, u32, &str)], from: Result<Answerer, &str>) -> Vec<Finding> {
        let unseen = || Unseen::new("", "");
        let agent =
            Agent { pid: Some(7), state, capabilities: Err(unseen()), is_in_our_network: Err(unseen()) };
        let mut all = Vec::new();
        let mut owners = Owners::default();
        for (inode, (addr, pid, name)) in (1..).zip(sockets) {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                all.push(Bound { protocol, addr: addr.parse().unwrap(), inode, drops: 0 });
            }
            if *pid != 0 {
                let process = Process { pid: *pid, name: (*name).to_owned(), origin: Origin::Other };
                owners.of.insert(inode, vec![process]);
            }
        }
        let at: SocketAddr = AT.parse().unwrap();
        let from = from.map_err(str::to_owned);
        let answers = [Protocol::Udp, Protocol::Tcp].map(|protocol| Answer {
            addr: at,
            protocol,
            from: from.clone(),
            has_left: true,
        });
        let ours = BTreeSet::from([at]);
        judge(&Facts { agent: &agent, sockets: &all, owners: &owners, answers: &answers, ours: &ours }, at)
    }

    fn ready() -> State {
        State::Works { reasons: vec![] }
    }

    #[test]
    fn the_agent_alone_is_right_whoever_has_the_port_of_other_addresses() {
        let found = judged(
            ready(),
            &[(AT, 7, "nodens"), ("0.0.0.0:53", 8, "dnsmasq"), ("127.0.0.53:53", 9, "systemd-resolve")],
            Ok(Answerer::Agent),
        );
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].level, Level::Ok);
        assert_eq!(found[0].what, "169.254.20.10:53 by UDP and TCP: nodens (pid 7) listens and answers");
    }

    #[test]
    fn whoever_else_has_the_port_is_named_with_what_ends_it() {
        let both = judged(ready(), &[(AT, 7, "nodens"), (AT, 8, "other")], Ok(Answerer::Agent));
        assert_eq!((both.len(), both[0].level), (1, Level::Problem));
        assert!(both[0].what.contains("other (pid 8) listens beside the agent"), "{}", both[0].what);
        assert!(both[0].mend.starts_with("kill 8\n"), "{}", both[0].mend);
        let alone =
            judged(State::Works { reasons: vec!["in use".into()] }, &[(AT, 8, "other")], Err("timed out"));
        assert!(alone[0].what.contains("other (pid 8) has the port, and the agent is kept out"));
        let every = judged(ready(), &[("[::]:53", 8, "dnsmasq")], Ok(Answerer::Other));
        assert!(every[0].what.contains("dnsmasq (pid 8) has the port of every address"), "{}", every[0].what);
        let absent = judged(State::Absent("none".into()), &[(AT, 8, "other")], Ok(Answerer::Other));
        assert!(absent[0].what.contains("no agent runs") && absent[0].mend.contains(START));
    }

    #[test]
    fn whoever_serves_other_addresses_as_well_is_not_ended() {
        for other in ["0.0.0.0:53", "127.0.0.1:53"] {
            let found = judged(
                State::Works { reasons: vec!["in use".into()] },
                &[(AT, 8, "dnsmasq"), (other, 8, "dnsmasq")],
                Ok(Answerer::Other),
            );
            let mend = &found[0].mend;
            assert!(
                mend.starts_with("ss -tulnp 'sport = :53'\n# it serves ") && mend.contains(other),
                "{mend}"
            );
            assert!(
                mend.lines().skip(1).all(|line| line.starts_with('#')) && mend.contains("kill 8"),
                "{mend}"
            );
        }
    }

    #[test]
    fn nobody_silence_and_anothers_answer_are_told_apart() {
        let nobody = judged(State::Absent("none".into()), &[], Err("refused"));
        assert_eq!(nobody[0].what, format!("{AT} by UDP and TCP: nobody listens"));
        assert_eq!((nobody[0].level, nobody[0].mend.as_str()), (Level::Problem, START));
        let silent = judged(ready(), &[(AT, 7, "nodens")], Err("no answer within 1 s"));
        assert_eq!(silent[0].level, Level::Problem);
        assert!(silent[0].what.ends_with("came to nothing: no answer within 1 s"), "{}", silent[0].what);
        let other = judged(ready(), &[(AT, 7, "nodens")], Ok(Answerer::Other));
        assert!(other[0].what.ends_with("the answer is not its own"), "{}", other[0].what);
    }

    #[test]
    fn what_is_not_seen_is_not_taken_for_good() {
        assert_eq!(
            judged(ready(), &[(AT, 0, "")], Ok(Answerer::Agent))[0].level,
            Level::Ok,
            "it has answered"
        );
        assert_eq!(judged(ready(), &[(AT, 0, "")], Err("timed out"))[0].level, Level::Problem);
        let two = judged(ready(), &[(AT, 7, "nodens"), (AT, 0, "")], Ok(Answerer::Agent));
        assert_eq!((two[0].level, two[0].mend.as_str()), (Level::Unknown, SEES_PROCESSES));
        let every = judged(ready(), &[(AT, 7, "nodens"), ("0.0.0.0:53", 0, "")], Ok(Answerer::Agent));
        assert_eq!(every[0].level, Level::Ok, "the agent's is the nearer one");
        let (sockets, owners) = (Ok(vec![]), Ok(Owners { hidden: 1, ..Owners::default() }));
        assert!(!sees_all(&sockets, &owners));
        assert!(sees_all(&sockets, &Ok(Owners::default())));
    }
}
