//! Memory: the limit of the agent's cgroup against what its configuration lets it take.

use std::mem::size_of;

use crate::cache::failure;
use crate::config::{Config, Server};
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Seen, Unseen};
use crate::doctor::look::agent::SEES_PROCESSES;
use crate::doctor::look::memory::{Limit, limit};
use crate::doctor::words::quoted;
use crate::resolve::flight::Waiter;
use crate::serve::BUFFERED;
use crate::upstream::connection;

const CHECK: &str = "memory";

/// An agent that has nothing to do. Its RSS is 6.9 MiB, mostly pages of the program's file, which the kernel can take back:
/// in benches/README.md, `flood`, the cgroup's peak is 43.9 MiB where RSS has grown by 42.1.
const IDLE: u64 = 2 << 20;
/// benches/README.md, `flood`: by the growth of RSS a flight is 5 to 6 KiB in all.
const FLIGHT: u64 = 6 << 10;
/// The same run: of the growth by 42.1 MiB a full cache and 4,096 flights leave this for each of 8,192 failures.
const FAILURE: u64 = 336;
/// A waiter has its name on the heap (RFC 1035 §2.3.4: 255 octets at most, some 40 as a rule), and is known by its
/// address and ID.
const WAITER: u64 = size_of::<Waiter>() as u64 + 128;
/// resolv.conf(5), MAXNS: what `system` can be.
const SYSTEM_SERVERS: u64 = 3;
/// This much more than a flood takes is left, or it is a near thing: the allocator's own share moves by some percent
/// (41.3 to 43.2 MiB in benches/README.md).
const SPARE_PERCENT: u64 = 10;

/// What a configuration lets the agent take, in bytes, by its bounds (ARCHITECTURE.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reckoning {
    /// The program, a full cache, and as many flights and failures as there may be. A zone whose servers are silent is
    /// enough for that.
    flood: u64,
    /// And as many waiters, buffers of TCP clients and connections to servers, all at once.
    most: u64,
}

/// The sockets' buffers are not in it: at the limit the kernel takes no more packets, and ends nobody for them.
fn reckon(config: &Config) -> Reckoning {
    let flights = config.limits.flights as u64;
    let flood = IDLE + config.cache.size + flights * FLIGHT + failure::CAPACITY * FAILURE;
    let waiters = (config.limits.waiters as u64).saturating_sub(flights);
    let mut pools: Vec<_> = config.zones.iter().map(|zone| &zone.upstream).collect();
    pools.dedup();
    let connections = pools.into_iter().map(|upstream| {
        let servers = upstream.servers.iter().map(|server| match server {
            Server::System => SYSTEM_SERVERS,
            _ => 1,
        });
        servers.sum::<u64>() * upstream.connections.max as u64
    });
    let buffers = BUFFERED as u64 + connections.sum::<u64>() * connection::READ as u64;
    Reckoning { flood, most: flood + waiters * WAITER + buffers }
}

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    let pid = patient.agent.pid.ok_or_else(|| {
        Unseen::new("The agent's process is not to be seen from here, or does not run.", SEES_PROCESSES)
    });
    vec![judge(&patient.config, &pid.and_then(|pid| limit(&patient.sources, &pid.to_string())))]
}

fn judge(config: &Config, limit: &Seen<Option<Limit>>) -> Finding {
    let Reckoning { flood, most } = reckon(config);
    let takes = format!(
        "a full cache and a flood of misses take {} MiB, everything at its bounds at once {} MiB",
        mib(flood),
        mib(most)
    );
    let limit = match limit {
        Err(unseen) => {
            return Finding::unknown(CHECK, format!("the memory limit could not be read; {takes}"), unseen);
        }
        Ok(None) => return Finding::ok(CHECK, format!("no memory limit; {takes}")),
        Ok(Some(limit)) => limit,
    };
    let what = format!("the limit is {} MiB ({}); {takes}", mib(limit.bytes), limit.file.display());
    let near = flood + flood * SPARE_PERCENT / 100;
    if limit.bytes >= most.max(near) {
        return Finding::ok(CHECK, what);
    }
    let mend = mend(config, limit, most.max(near));
    if limit.bytes < flood {
        let why = "When the servers of a zone are silent and clients keep asking, the kernel ends the agent for want of memory, \
                   and its cache is lost when it is needed most.";
        return Finding::problem(CHECK, what, why, mend);
    }
    let why = "Not everything that the configuration allows has room. At the limit the kernel ends the agent, and its cache is \
               lost.";
    Finding::warning(CHECK, what, why, mend)
}

/// Rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// More memory, or less to keep in it.
fn mend(config: &Config, limit: &Limit, wanted: u64) -> String {
    let wanted_mib = mib(wanted);
    let file = limit.file.to_string_lossy();
    let manifest =
        format!("# in the agent's manifest:\n#   resources: {{ limits: {{ memory: {wanted_mib}Mi }} }}");
    let set = |unit: &str| format!("systemctl set-property {} MemoryMax={wanted_mib}M", quoted(unit));
    // A limit of a slice is for others as well, and a user's units are none of the system's.
    let holder =
        limit.file.parent().and_then(|folder| folder.file_name()).unwrap_or_default().to_string_lossy();
    let is_of_the_system = !file.contains("/user.slice/") && !file.contains("/user@");
    let mut lines = vec![if file.contains("kubepods") {
        manifest
    } else if holder.ends_with(".service") && is_of_the_system {
        set(&holder)
    } else if holder.ends_with(".slice") || holder.ends_with(".scope") {
        format!("# {} has the limit, for all that is in it:\n#   {}", quoted(&holder), set(&holder))
    } else {
        format!("{manifest}\n# or, for its unit of systemd:\n#   {}", set("UNIT"))
    }];
    let rest = wanted - config.cache.size;
    let cache = limit.bytes.saturating_sub(rest + rest * SPARE_PERCENT / 100) >> 20;
    if cache > 0 {
        lines.push(format!("# or, in its configuration:\n#   cache: {{ size: {cache}MiB }}"));
    } else {
        lines.push("# or lower cache.size and limits.flights in its configuration".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    fn limit_of(mib: u64, file: &str) -> Seen<Option<Limit>> {
        Ok(Some(Limit { bytes: mib << 20, file: file.into() }))
    }

    fn level(config: &Config, mib: u64) -> Level {
        judge(config, &limit_of(mib, "/sys/fs/cgroup/memory.max")).level
    }

    #[test]
    fn the_defaults_are_reckoned_as_they_were_measured() {
        // benches/README.md, `silent`: the cgroup's peak is 43.9 MiB.
        let Reckoning { flood, most } = reckon(&Config::default());
        assert_eq!(mib(flood), 45);
        assert!(most < 64 << 20, "the limit that the agent is made for: {most}");
    }

    #[test]
    fn the_limit_that_the_agent_is_made_for_is_good() {
        assert_eq!(level(&Config::default(), 64), Level::Ok);
    }

    #[test]
    fn a_limit_that_is_nearly_reached_is_a_warning_and_one_that_is_passed_a_problem() {
        assert_eq!(level(&Config::default(), 48), Level::Warning);
        assert_eq!(level(&Config::default(), 60), Level::Warning);
        assert_eq!(level(&Config::default(), 44), Level::Problem);
    }

    #[test]
    fn a_larger_cache_needs_a_larger_limit_and_both_mends_are_good_then() {
        let mut config = Config::default();
        config.cache.size = 64 << 20;
        let finding = judge(&config, &limit_of(64, "/sys/fs/cgroup/kubepods.slice/pod1/memory.max"));
        assert_eq!(finding.level, Level::Problem, "{finding:?}");
        let number = |before: &str, after: &str| -> u64 {
            let (_, rest) = finding.mend.split_once(before).unwrap();
            rest.split_once(after).unwrap().0.parse().unwrap()
        };
        assert_eq!(level(&config, number("memory: ", "Mi")), Level::Ok);
        config.cache.size = number("size: ", "MiB") << 20;
        assert_eq!(level(&config, 64), Level::Ok, "{finding:?}");
    }

    #[test]
    fn every_bound_of_the_configuration_counts() {
        let base = reckon(&Config::default());
        let mut config = Config::default();
        config.limits.flights *= 2;
        config.limits.waiters *= 2;
        let more = reckon(&config);
        assert_eq!(more.flood - base.flood, 4096 * FLIGHT);
        assert!(more.most - base.most > 4096 * FLIGHT);
        let mut config = Config::default();
        config.zones[0].upstream.connections.max += 1;
        assert_eq!(reckon(&config).most - base.most, SYSTEM_SERVERS * connection::READ as u64);
    }

    #[test]
    fn the_mend_is_for_whoever_set_the_limit() {
        let mend = |file| judge(&Config::default(), &limit_of(40, file)).mend;
        let unit = mend("/sys/fs/cgroup/system.slice/nodens.service/memory.max");
        assert!(unit.starts_with("systemctl set-property nodens.service MemoryMax="), "{unit}");
        let other = mend("/sys/fs/cgroup/system.slice/dns-cache.service/memory.max");
        assert!(other.starts_with("systemctl set-property dns-cache.service MemoryMax="), "{other}");
        let odd = mend("/sys/fs/cgroup/system.slice/a$(id)\\x2d.service/memory.max");
        assert!(odd.starts_with("systemctl set-property 'a$(id)\\x2d.service' MemoryMax="), "{odd}");
        for shared in
            ["/sys/fs/cgroup/system.slice/memory.max", "/sys/fs/cgroup/user.slice/user@1.service/memory.max"]
        {
            let shared = mend(shared);
            assert!(shared.lines().all(|line| line.starts_with('#')), "{shared}");
        }
        let pod = mend("/sys/fs/cgroup/kubepods.slice/memory.max");
        assert!(pod.contains("resources: { limits: { memory: ") && !pod.contains("systemctl"), "{pod}");
        let either = mend("/sys/fs/cgroup/memory.max");
        assert!(either.contains("systemctl") && either.contains("resources"), "{either}");
    }

    #[test]
    fn no_limit_is_good_and_one_that_is_not_seen_is_not() {
        let none = judge(&Config::default(), &Ok(None));
        assert_eq!(none.level, Level::Ok);
        assert!(none.what.contains("45 MiB"), "{none:?}");
        let unseen = judge(&Config::default(), &Err(Unseen::new("not root", "")));
        assert_eq!(unseen.level, Level::Unknown);
    }
}
