//! Connection tracking: how full it is, how much of it is DNS, and whether our queries are in it.

use std::net::{IpAddr, SocketAddr};

use crate::config::DNS_PORT;
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Seen};
use crate::doctor::look::node::refused;
use crate::node::netfilter::{Tracked, conntrack};

const CHECK: &str = "conntrack";
/// From here on a burst may fill it.
const NEARLY_FULL: u64 = 80;
/// From here on it is as good as full.
const FULL: u64 = 95;

/// Entries in use in this network namespace, and how many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Table {
    count: u64,
    max: u64,
}

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    let sources = &patient.sources;
    let file = |name: &str| format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
    if let Ok(None) = sources.read_if_there(file("count")) {
        return vec![Finding::ok(CHECK, "this kernel tracks no connections")];
    }
    let table = sources
        .number(file("count"))
        .and_then(|count| Ok(Table { count, max: sources.number(file("max"))? }));
    // Without an agent there are no rules, and our own questions are tracked.
    let notrack = patient.config.network.notrack && !patient.agent.is_absent();
    let addresses: Vec<IpAddr> = if notrack {
        let dns = patient.config.listen.iter().filter(|at| at.port() == DNS_PORT);
        dns.map(SocketAddr::ip).collect()
    } else {
        Vec::new()
    };
    let tracked = conntrack(&addresses).map_err(|refusal| refused(&refusal));
    judge(&table, &tracked)
}

fn judge(table: &Seen<Table>, tracked: &Seen<Tracked>) -> Vec<Finding> {
    let mut findings = match table {
        Ok(table) => vec![room(*table, tracked.as_ref().ok())],
        Err(unseen) => vec![Finding::unknown(CHECK, "how full it is could not be read", unseen)],
    };
    match tracked {
        Ok(tracked) => findings.extend(tracked.dns_to.iter().filter(|(_, count)| *count > 0).map(entries)),
        Err(unseen) => findings.push(Finding::unknown(CHECK, "its entries could not be listed", unseen)),
    }
    findings
}

fn room(Table { count, max }: Table, tracked: Option<&Tracked>) -> Finding {
    let dns = tracked.map_or(String::new(), |tracked| {
        let Tracked { entries, dns_udp, dns_tcp, .. } = *tracked;
        let share = percent(dns_udp + dns_tcp, entries);
        format!("; DNS has {dns_udp} by UDP and {dns_tcp} by TCP, {share} % of {entries} listed")
    });
    let used = count.saturating_mul(100).checked_div(max).unwrap_or_default();
    let what = format!("{count} of {max} entries, {used} %{dns}");
    let why = "When it is full the kernel drops packets of new connections, DNS or not.";
    let mend = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}   # on the node, not in a container",
        max.saturating_mul(2)
    );
    match used {
        FULL.. => Finding::problem(CHECK, what, why, mend),
        NEARLY_FULL.. => Finding::warning(CHECK, what, why, mend),
        _ => Finding::ok(CHECK, what),
    }
}

fn percent(part: usize, all: usize) -> usize {
    part.saturating_mul(100).checked_div(all).unwrap_or_default()
}

fn entries((address, count): &(IpAddr, usize)) -> Finding {
    Finding::warning(
        CHECK,
        format!("{count} entries for queries to {address}, though network.notrack is on"),
        "They are of before the rules came, and end within minutes; if they come again, the rules do not act.",
        format!(
            "conntrack -D -f {} -d {address} -p udp --dport 53; conntrack -D -f {0} -d {address} -p tcp --dport 53   \
                 # Debian package conntrack",
            if address.is_ipv4() { "ipv4" } else { "ipv6" }
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::{Level, Unseen};

    #[test]
    fn a_table_is_bad_when_it_is_nearly_full() {
        let level = |count, max| room(Table { count, max }, None).level;
        assert_eq!([level(0, 100), level(79, 100), level(0, 0)], [Level::Ok; 3]);
        assert_eq!([level(80, 100), level(94, 100)], [Level::Warning; 2]);
        assert_eq!([level(95, 100), level(120, 100)], [Level::Problem; 2]);
        assert!(
            room(Table { count: 9, max: 10 }, None)
                .mend
                .starts_with("sysctl -w net.netfilter.nf_conntrack_max=20 ")
        );
    }

    #[test]
    fn the_share_of_dns_and_our_own_entries_are_told() {
        let ours: IpAddr = "169.254.20.10".parse().unwrap();
        let tracked = Tracked { entries: 40, dns_udp: 9, dns_tcp: 1, dns_to: vec![(ours, 2)], cut: false };
        let found = judge(&Ok(Table { count: 40, max: 100 }), &Ok(tracked));
        assert_eq!(
            found[0].what,
            "40 of 100 entries, 40 %; DNS has 9 by UDP and 1 by TCP, 25 % of 40 listed"
        );
        assert_eq!((found[0].level, found[1].level), (Level::Ok, Level::Warning));
        assert!(found[1].mend.starts_with("conntrack -D -f ipv4 -d 169.254.20.10 -p udp --dport 53; "));
        let unseen = Unseen::new("closed", "");
        let found = judge(&Err(unseen.clone()), &Err(unseen));
        assert_eq!(found.iter().map(|found| found.level).collect::<Vec<_>>(), [Level::Unknown; 2]);
    }
}
