//! The agent: whether it is there and ready, where, and what it may do.

use std::path::Path;

use super::START;
use crate::config::Network;
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Seen};
use crate::doctor::look::agent::{Agent, Capabilities, State};
use crate::privileges::{Capability, Need, needed};

const CHECK: &str = "agent";
/// From here on the kernel removes our rules when the agent ends (nft(8), `flags owner`).
const OWNERS: (u32, u32) = (5, 12);
/// All that any setting needs (docs/privileges.md).
const ENOUGH: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_BIND_SERVICE];

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    let Patient { agent, config, control, .. } = patient;
    let mut findings = vec![state(agent, control)];
    findings.extend(place(agent, &there(patient)));
    if agent.pid.is_some() {
        findings.push(capabilities(&agent.capabilities, &needed(config)));
    }
    let release = patient.sources.read("/proc/sys/kernel/osrelease");
    findings.extend(kernel(&release, &config.network));
    findings
}

/// What examines the network that the agent is in.
pub fn there(patient: &Patient) -> String {
    let pid = patient.agent.pid.unwrap_or_default();
    format!("nsenter --target {pid} --net {}", patient.again)
}

fn state(agent: &Agent, control: &Path) -> Finding {
    let process = agent.pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
    match &agent.state {
        State::Works { reasons } if reasons.is_empty() => {
            Finding::ok(CHECK, format!("the agent{process} answers at {}, and is ready", control.display()))
        }
        State::Works { reasons } => Finding::problem(
            CHECK,
            format!("the agent{process} is not ready: {}", reasons.join("; ")),
            "Queries are not led to it, or not answered, until it is; it tries again by itself.",
            "# each reason says what helps; the findings below tell more",
        ),
        State::Hangs(why) => Finding::problem(
            CHECK,
            format!("the agent{process} cannot answer: {why}"),
            "A process that holds its sockets and does not answer loses every query.",
            START,
        ),
        State::Absent(why) => Finding::problem(
            CHECK,
            format!("no agent runs: {why}"),
            "Queries to the listen addresses are lost; those to ClusterIPs go to the cluster's DNS.",
            START,
        ),
        State::Unseen(unseen) => Finding::unknown(CHECK, "the agent could not be asked", unseen),
    }
}

/// What we see of the network is worth nothing if it is another one.
fn place(agent: &Agent, there: &str) -> Option<Finding> {
    agent.pid?;
    match &agent.is_in_our_network {
        Ok(true) => None,
        Ok(false) => Some(Finding::warning(
            CHECK,
            "the agent is in another network namespace than this examination",
            "Addresses, ports and rules of this one say nothing about it; an agent that is to serve a node has to \
             be in the node's (hostNetwork: true).",
            there,
        )),
        Err(unseen) => Some(Finding::unknown(CHECK, "whether this is the agent's network", unseen)),
    }
}

fn capabilities(held: &Seen<Capabilities>, needs: &[Need]) -> Finding {
    let held = match held {
        Ok(held) => held,
        Err(unseen) => return Finding::unknown(CHECK, "its capabilities could not be read", unseen),
    };
    let missing: Vec<String> = needs
        .iter()
        .filter(|need| held.effective & need.capability.bitmask() == 0)
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        return Finding::problem(
            CHECK,
            format!("the agent lacks capabilities: {}", missing.join("; ")),
            "What a setting asks for is not there.",
            START,
        );
    }
    let enough = ENOUGH.iter().fold(0, |bits, capability| bits | capability.bitmask());
    let superfluous = (held.effective | held.permitted) & !enough;
    if superfluous == 0 {
        return Finding::ok(CHECK, "it has no capability but those that it needs");
    }
    Finding::warning(
        CHECK,
        format!("the agent has capabilities that it does not need: {}", names(superfluous)),
        "Who takes the agent over has them too; it gives them up at its start unless something keeps it from that.",
        "# in a securityContext: capabilities: { drop: [ALL], add: [NET_ADMIN, NET_BIND_SERVICE] }\n\
         # in a unit: CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE",
    )
}

/// As capabilities(7) has them, those that are not known as bits.
fn names(bits: u64) -> String {
    let mut known: Vec<Capability> = caps::all().into_iter().collect();
    known.sort_by_key(Capability::index);
    let named = known.iter().filter(|capability| bits & capability.bitmask() != 0);
    let mut names: Vec<String> = named.map(ToString::to_string).collect();
    let rest = known.iter().fold(bits, |bits, capability| bits & !capability.bitmask());
    if rest != 0 {
        names.push(format!("{rest:#x}"));
    }
    names.join(", ")
}

/// Whether rules end with the agent.
fn kernel(release: &Seen<String>, network: &Network) -> Option<Finding> {
    if !network.notrack && !network.upstream_notrack && network.intercept.is_empty() {
        return None;
    }
    let release = match release {
        Ok(release) => release.trim(),
        Err(unseen) => return Some(Finding::unknown(CHECK, "the kernel's version", unseen)),
    };
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        let odd = crate::doctor::finding::Unseen::new(format!("`{release}` is no version"), "uname -r");
        return Some(Finding::unknown(CHECK, "the kernel's version", &odd));
    };
    if (major, minor) >= OWNERS {
        return Some(Finding::ok(CHECK, format!("Linux {release} takes the rules away when the agent ends")));
    }
    let what =
        format!("Linux {release} leaves rules behind when the agent is killed (5.12 and later do not)");
    Some(if network.intercept.is_empty() {
        let why =
            "They spare queries connection tracking though nobody answers them; the next agent removes them.";
        Finding::warning(
            CHECK,
            what,
            why,
            "# boot a kernel of 5.12 or later, or set network.notrack to false",
        )
    } else {
        let why = "Rules that lead queries to an agent that has gone would lose them, so the agent refuses \
                   network.intercept.";
        Finding::problem(CHECK, what, why, "# boot a kernel of 5.12 or later, or set network.intercept to []")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::{Level, Unseen};

    fn agent(state: State) -> Agent {
        let capabilities = Ok(Capabilities::default());
        Agent { pid: Some(7), state, capabilities, is_in_our_network: Ok(true) }
    }

    fn stated(state_of: State) -> Finding {
        state(&agent(state_of), Path::new("/run/nodens/control.sock"))
    }

    #[test]
    fn an_agent_is_well_when_it_is_ready_and_nothing_else() {
        let ready = stated(State::Works { reasons: vec![] });
        assert_eq!(ready.level, Level::Ok);
        assert_eq!(ready.what, "the agent (pid 7) answers at /run/nodens/control.sock, and is ready");
        let waits = stated(State::Works { reasons: vec!["no link".into(), "no port".into()] });
        assert_eq!((waits.level, waits.what.contains("no link; no port")), (Level::Problem, true));
        assert_eq!(stated(State::Hangs("no answer within 3 s".into())).level, Level::Problem);
        let absent = stated(State::Absent("nobody".into()));
        assert_eq!(absent.level, Level::Problem);
        assert!(absent.mend.contains("systemctl") && absent.mend.contains("kubectl"), "{}", absent.mend);
        assert_eq!(stated(State::Unseen(Unseen::new("closed", "sudo"))).level, Level::Unknown);
    }

    #[test]
    fn an_agent_elsewhere_is_named_with_the_way_there() {
        let mut elsewhere = agent(State::Works { reasons: vec![] });
        assert_eq!(place(&elsewhere, "there"), None);
        elsewhere.is_in_our_network = Ok(false);
        let found = place(&elsewhere, "nsenter --target 7 --net nodens doctor").unwrap();
        assert_eq!(
            (found.level, found.mend.as_str()),
            (Level::Warning, "nsenter --target 7 --net nodens doctor")
        );
        elsewhere.is_in_our_network = Err(Unseen::new("closed", ""));
        assert_eq!(place(&elsewhere, "").unwrap().level, Level::Unknown);
    }

    #[test]
    fn capabilities_are_neither_too_few_nor_too_many() {
        let need = |capability| Need {
            capability,
            setting: "network.notrack".into(),
            instead: "set it to false".into(),
        };
        let needs = [need(Capability::CAP_NET_ADMIN)];
        let admin = Capability::CAP_NET_ADMIN.bitmask();
        let of = |effective, permitted| capabilities(&Ok(Capabilities { effective, permitted }), &needs);
        assert_eq!(of(admin, admin).level, Level::Ok);
        let few = of(0, admin);
        assert_eq!((few.level, few.what.contains("network.notrack")), (Level::Problem, true));
        let many = of(admin, admin | Capability::CAP_SYS_ADMIN.bitmask() | 1 << 63);
        assert_eq!(many.level, Level::Warning);
        assert!(many.what.ends_with(": CAP_SYS_ADMIN, 0x8000000000000000"), "{}", many.what);
        let unseen = capabilities(&Err(Unseen::new("closed", "")), &needs);
        assert_eq!(unseen.level, Level::Unknown);
    }

    #[test]
    fn an_old_kernel_matters_by_what_is_wanted_of_it() {
        let nothing = Network { notrack: false, ..Network::default() };
        let notrack = Network { notrack: true, ..Network::default() };
        let intercept = Network { intercept: vec!["10.96.0.10".parse().unwrap()], ..notrack.clone() };
        let old = Ok("5.10.0-28-amd64\n".to_owned());
        let level = |release: &Seen<String>, network| kernel(release, network).map(|found| found.level);
        assert_eq!(level(&old, &nothing), None);
        assert_eq!(level(&old, &notrack), Some(Level::Warning));
        assert_eq!(level(&old, &intercept), Some(Level::Problem));
        assert_eq!(level(&Ok("5.12.0".into()), &intercept), Some(Level::Ok));
        assert_eq!(level(&Ok("6.1\n".into()), &intercept), Some(Level::Ok));
        assert_eq!(level(&Ok("odd".into()), &intercept), Some(Level::Unknown));
        assert_eq!(level(&Err(Unseen::new("closed", "")), &intercept), Some(Level::Unknown));
    }
}
