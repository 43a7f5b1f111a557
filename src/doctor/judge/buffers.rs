//! Datagrams that were lost because a receive buffer was full, and how large ours can be.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::sleep;

use crate::config::{Config, DNS_PORT};
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Seen};
use crate::doctor::look::agent::Capabilities;
use crate::doctor::look::counters::buffer_errors;
use crate::doctor::look::sockets::{Protocol, bound};
use crate::doctor::look::sysctls::sysctls;
use crate::doctor::sources::Sources;

const CHECK: &str = "buffers";
/// Between two looks at a counter. What grows by ten or more a second is seen to grow.
const BETWEEN: Duration = Duration::from_millis(200);
/// linux/capability.h: the number of CAP_NET_ADMIN.
const CAP_NET_ADMIN: u32 = 12;
const RMEM_MAX: &str = "net.core.rmem_max";

/// A counter, looked at twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Twice {
    first: u64,
    second: u64,
}

impl Twice {
    fn rises(self) -> bool {
        self.second > self.first
    }
}

/// What was seen.
#[derive(Debug, Clone)]
struct Facts {
    /// Datagrams that the sockets at our addresses lost; `None` where there is no such socket.
    ours: Seen<Option<Twice>>,
    /// Those of all sockets of this network namespace.
    all: Seen<Twice>,
    /// The sysctl, bytes.
    rmem_max: Seen<u64>,
    /// What the agent asks for, bytes.
    wanted: u64,
    /// The agent goes beyond it (socket(7), SO_RCVBUFFORCE).
    may_exceed: bool,
}

/// Looks twice, and judges.
pub async fn check(patient: &Patient) -> Vec<Finding> {
    if let Some(unseen) = super::elsewhere(patient) {
        return vec![Finding::unknown(
            CHECK,
            "the sockets of the agent's network are not to be seen",
            &unseen,
        )];
    }
    let Patient { config, sources, agent, .. } = patient;
    let look = || (drops(sources, config), buffer_errors(sources));
    let (ours, all) = look();
    sleep(BETWEEN).await;
    let (ours_later, all_later) = look();
    let twice = |(first, second)| Twice { first, second };
    let facts = Facts {
        ours: ours.and_then(|first| Ok(first.zip(ours_later?).map(twice))),
        all: all.and_then(|first| Ok(twice((first, all_later?)))),
        rmem_max: sysctls(sources).rmem_max,
        wanted: patient.config.keep.receive_buffer as u64,
        may_exceed: may_exceed(config, agent.capabilities.as_ref().ok()),
    };
    judge(&facts)
}

/// Of all UDP sockets at the addresses that we answer at, whoever has them.
fn drops(sources: &Sources, config: &Config) -> Seen<Option<u64>> {
    let intercepted = config.network.intercept.iter().map(|&ip| SocketAddr::new(ip, DNS_PORT));
    let places: Vec<SocketAddr> = config.listen.iter().copied().chain(intercepted).collect();
    let sockets = bound(sources)?;
    let ours =
        sockets.iter().filter(|socket| socket.protocol == Protocol::Udp && places.contains(&socket.addr));
    Ok(ours.map(|socket| socket.drops).reduce(|sum, drops| sum + drops))
}

/// The running agent's power, or the one that it keeps by this configuration (docs/privileges.md).
fn may_exceed(config: &Config, capabilities: Option<&Capabilities>) -> bool {
    let network = &config.network;
    let keeps = network.address_on.is_some()
        || network.notrack
        || network.accept_untracked
        || network.upstream_notrack
        || !network.intercept.is_empty();
    capabilities.map_or(keeps, |capabilities| capabilities.effective >> CAP_NET_ADMIN & 1 == 1)
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![lost(&facts.ours)];
    findings.extend(lost_elsewhere(&facts.ours, &facts.all));
    findings.push(room(facts));
    findings
}

const WHY_LOST: &str = "Queries came faster than they were taken, for longer than the buffer holds them. Their clients wait for \
                        their timeout, 5 s as a rule.";

fn lost(ours: &Seen<Option<Twice>>) -> Finding {
    let mend = || {
        format!(
            "# more workers, a larger buffer or less load; which sockets, and how large their buffers are (rb):\n\
             ss -uanm 'sport = :{DNS_PORT}'\n# in the agent's configuration: workers"
        )
    };
    match ours {
        Err(unseen) => Finding::unknown(CHECK, "the sockets' lost datagrams could not be read", unseen),
        Ok(None) => {
            Finding::ok(CHECK, "no UDP socket is at the agent's addresses, so none has lost anything")
        }
        Ok(Some(Twice { second: 0, .. })) => Finding::ok(
            CHECK,
            "the sockets at the agent's addresses have lost nothing since they were opened",
        ),
        Ok(Some(twice)) if twice.rises() => {
            let (more, all) = (twice.second - twice.first, twice.second);
            let what = format!(
                "queries are being lost now: {more} in {} ms, {all} since the sockets were opened",
                BETWEEN.as_millis()
            );
            Finding::problem(CHECK, what, WHY_LOST, mend())
        }
        Ok(Some(twice)) => {
            let what =
                format!("{} queries were lost since the sockets were opened, none right now", twice.second);
            Finding::warning(CHECK, what, WHY_LOST, mend())
        }
    }
}

/// Losses that are not of sockets that we see: of other programs, or of agents that have ended.
fn lost_elsewhere(ours: &Seen<Option<Twice>>, all: &Seen<Twice>) -> Option<Finding> {
    let all = match all {
        Ok(all) => all,
        Err(unseen) => {
            return Some(Finding::unknown(
                CHECK,
                "the node's lost datagrams (RcvbufErrors) could not be read",
                unseen,
            ));
        }
    };
    let own = ours.as_ref().ok().copied().flatten().unwrap_or(Twice { first: 0, second: 0 });
    let (first, second) = (all.first.saturating_sub(own.first), all.second.saturating_sub(own.second));
    if second == 0 {
        return None;
    }
    let what = format!("other sockets have lost {second} datagrams since boot (RcvbufErrors)");
    if second <= first {
        return Some(Finding::ok(CHECK, what + ", none right now"));
    }
    let why = "Sockets of other programs, or the agent's own to its upstreams: there an answer is lost, and asked for again.";
    Some(Finding::warning(
        CHECK,
        what + ", and it grows",
        why,
        "ss -uanm\nnstat -asz UdpRcvbufErrors Udp6RcvbufErrors",
    ))
}

/// How much waits while a worker is busy, or is started again.
fn room(Facts { rmem_max, wanted, may_exceed, .. }: &Facts) -> Finding {
    let (wanted, may_exceed) = (*wanted, *may_exceed);
    let (wanted_kib, name) = (wanted >> 10, RMEM_MAX);
    match rmem_max {
        _ if may_exceed => Finding::ok(
            CHECK,
            format!("the agent has CAP_NET_ADMIN and gets its {wanted_kib} KiB, whatever {name} is"),
        ),
        Err(unseen) => Finding::unknown(CHECK, format!("{name} could not be read"), unseen),
        Ok(bytes) if *bytes >= wanted => {
            Finding::ok(CHECK, format!("{name} allows the {wanted_kib} KiB that the agent asks for"))
        }
        Ok(bytes) => Finding::warning(
            CHECK,
            format!(
                "{name} allows {} KiB for queries that wait, where the agent asks for {wanted_kib}",
                bytes >> 10
            ),
            "208 KiB hold 256 small queries: at 10,000 a second, 25 ms of them. What comes on top while a worker is busy is lost.",
            format!(
                "{}\n# then start the agent again: it asks when it opens its sockets",
                super::sysctls::set(name, wanted)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::{Level, Unseen};
    use std::fs;
    use std::path::PathBuf;

    fn facts(ours: Option<(u64, u64)>, all: (u64, u64)) -> Facts {
        let twice = |(first, second)| Twice { first, second };
        Facts {
            ours: Ok(ours.map(twice)),
            all: Ok(twice(all)),
            rmem_max: Ok(4 << 20),
            wanted: 4 << 20,
            may_exceed: false,
        }
    }

    fn levels(facts: &Facts) -> Vec<Level> {
        judge(facts).iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn nothing_lost_is_good() {
        assert_eq!(levels(&facts(Some((0, 0)), (0, 0))), [Level::Ok, Level::Ok]);
        assert_eq!(levels(&facts(None, (0, 0))), [Level::Ok, Level::Ok]);
    }

    #[test]
    fn queries_that_were_lost_are_a_warning_and_those_being_lost_a_problem() {
        assert_eq!(levels(&facts(Some((17, 17)), (17, 17))), [Level::Warning, Level::Ok]);
        let now = judge(&facts(Some((17, 20)), (17, 20)));
        assert_eq!(now[0].level, Level::Problem);
        assert!(now[0].what.contains("3 in 200 ms, 20 since"), "{now:?}");
    }

    #[test]
    fn losses_of_others_are_told_apart() {
        let before = judge(&facts(Some((2, 2)), (10, 10)));
        assert_eq!((before[1].level, before.len()), (Level::Ok, 3));
        assert!(before[1].what.contains("lost 8 datagrams"), "{before:?}");
        assert_eq!(levels(&facts(Some((0, 0)), (10, 12))), [Level::Ok, Level::Warning, Level::Ok]);
    }

    #[test]
    fn a_small_rmem_max_matters_only_to_an_agent_without_the_capability() {
        let small = Facts { rmem_max: Ok(212_992), ..facts(None, (0, 0)) };
        let finding = judge(&small).pop().unwrap();
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.mend.starts_with("sysctl -w net.core.rmem_max=4194304\n"), "{finding:?}");
        assert!(finding.mend.contains("echo 'net.core.rmem_max = 4194304' >> /etc/sysctl.d/"), "{finding:?}");
        assert_eq!(levels(&Facts { may_exceed: true, ..small }), [Level::Ok, Level::Ok]);
    }

    #[test]
    fn what_cannot_be_read_is_not_seen() {
        let unseen = || Unseen::new("not there", "");
        let blind = Facts {
            ours: Err(unseen()),
            all: Err(unseen()),
            rmem_max: Err(unseen()),
            wanted: 0,
            may_exceed: false,
        };
        assert_eq!(levels(&blind), [Level::Unknown; 3]);
    }

    #[test]
    fn the_capability_of_the_agent_counts_or_what_its_configuration_has_it_keep() {
        let mut config = Config::default();
        assert!(!may_exceed(&config, None));
        assert!(may_exceed(&config, Some(&Capabilities { effective: 1 << 12, permitted: 0 })));
        config.network.notrack = true;
        assert!(may_exceed(&config, None));
        assert!(!may_exceed(&config, Some(&Capabilities { effective: 1 << 10, permitted: 1 << 12 })));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn sockets_at_our_addresses_are_summed_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path().join("proc/self/net");
        fs::create_dir_all(&net).unwrap();
        let line = |addr: &str, inode: u64, drops: u64| {
            format!("1: {addr}:0035 00000000:0000 07 0:0 00:0 0 0 0 {inode} 2 0 {drops}\n")
        };
        let text = [line("0A14FEA9", 1, 5), line("0A14FEA9", 2, 7), line("3500007F", 3, 100)].concat();
        fs::write(net.join("udp"), text).unwrap();
        fs::write(net.join("tcp"), "").unwrap();
        let sources = Sources { root: dir.path().to_owned(), kubelet: PathBuf::new() };
        assert_eq!(drops(&sources, &Config::default()), Ok(Some(12)));
        let elsewhere = Config { listen: vec!["192.0.2.1:53".parse().unwrap()], ..Config::default() };
        assert_eq!(drops(&sources, &elsewhere), Ok(None));
    }
}
