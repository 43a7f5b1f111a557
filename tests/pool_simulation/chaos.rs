//! Stories that a seed makes up: one to four servers that fail in every way there is, at random times.
//!
//! What each query gets cannot be told beforehand, but this holds for all: it ends by its deadline; it is answered
//! if some server was well for the whole of its life, and had been for half a second if that was short; and when all have been well for a while, all is as it was.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use nodens::config::{self, Server, ServerPolicy};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::case::{Case, seeds};
use crate::endpoint::Service;
use crate::load::{Record, ms};
use crate::world::{World, address};

const SECOND: Duration = Duration::from_secs(1);
/// Quiet at first, to know what that is.
const QUIET: Duration = Duration::from_millis(2500);
/// Then for so long something happens.
const TROUBLE: Duration = Duration::from_secs(8);
/// A query may fail at once as long as the pool takes nobody to be there, which it does no longer after their return.
const NOTICED: Duration = Duration::from_millis(500);
/// The same behind a ClusterIP, where a probe goes to any endpoint, the dead ones among them.
const NOTICED_BEHIND_ONE: Duration = Duration::from_secs(2);
/// After the last connection's life, with what lingers.
const REST: Duration = Duration::from_secs(30);
/// The server sees connections that were given up for as long as answers may be under way on them: up to twice as many
/// as there may be in use.
const GIVEN_UP: usize = 3;
/// Connections of probes under way.
const PROBES: usize = 5;

/// When an endpoint was not well.
type Ills = Rc<RefCell<Vec<Ill>>>;

struct Ill {
    endpoint: usize,
    from: Duration,
    /// When it was well again.
    to: Duration,
    what: &'static str,
}

/// What a seed has made up.
struct Story {
    world: World,
    random: StdRng,
    endpoints: usize,
    is_cluster_ip: bool,
    rate: f64,
    told: String,
    ills: Ills,
}

fn between(random: &mut StdRng, from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_millis(random.random_range(from_ms..=to_ms))
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let base_ms = random.random_range(1..=10);
        let serial = random.random_bool(0.6);
        let service = Service {
            jitter: between(&mut random, 0, 3),
            ..if serial { Service::serial(base_ms) } else { Service::concurrent(base_ms) }
        };
        let endpoints = random.random_range(1..=4);
        let is_cluster_ip = endpoints > 1 && random.random_bool(0.4);
        let is_udp = !is_cluster_ip && !serial && random.random_bool(0.4);
        let policy = [
            ServerPolicy::LeastLoaded,
            ServerPolicy::LeastLoaded,
            ServerPolicy::Random,
            ServerPolicy::RoundRobin,
            ServerPolicy::Sequential,
        ][random.random_range(0..5)];
        // One of them can do four times as much alone.
        let capacity = config::Connections::default().max as f64 * 1000.0 / (base_ms + 3) as f64;
        let rate = random.random_range(20.0..(capacity / 4.0).min(1000.0));
        let services = vec![service; endpoints];
        let change = |definition: &mut config::Upstream| definition.policy = policy;
        let world = match (is_cluster_ip, is_udp) {
            (true, _) => World::behind_one(seed, &services, change),
            (false, true) => World::listed_as(seed, &services, Server::Udp, change),
            (false, false) => World::listed_as(seed, &services, Server::Tcp, change),
        };
        let told = format!(
            "{endpoints} {} of {base_ms} ms, {}{}, {policy:?}, {rate:.0}/s",
            if is_cluster_ip { "behind one address" } else { "servers" },
            if serial { "serial" } else { "concurrent" },
            if is_udp { ", UDP" } else { "" },
        );
        Self { world, random, endpoints, is_cluster_ip, rate, told, ills: Ills::default() }
    }

    /// What happens to one endpoint until the trouble is over.
    async fn trouble(&self, endpoint: usize, mut random: StdRng) {
        let (world, end) = (&self.world, QUIET + TROUBLE);
        loop {
            world.wait(between(&mut random, 200, 3000)).await;
            if world.now() >= end {
                return;
            }
            let from = world.now();
            let time = between(&mut random, 50, 3000).min(end - from);
            let what = self.befall(endpoint, time, &mut random).await;
            if what != "resets" {
                let to = world.now();
                self.ills.borrow_mut().push(Ill { endpoint, from, to, what });
            }
        }
    }

    /// One thing that happens, for this time.
    async fn befall(&self, endpoint: usize, time: Duration, random: &mut StdRng) -> &'static str {
        let (world, net) = (&self.world, &self.world.net);
        match random.random_range(0..6) {
            0 => {
                net.silence(endpoint);
                world.wait(time).await;
                net.back(endpoint);
                "silent"
            }
            1 => {
                net.silence(endpoint);
                world.wait(time).await;
                net.restarted(endpoint);
                "silent, then another process"
            }
            2 => {
                net.freeze(endpoint);
                world.wait(time).await;
                net.back(endpoint);
                "frozen"
            }
            3 => {
                net.refuse(endpoint);
                world.wait(time).await;
                net.restarted(endpoint);
                "refusing"
            }
            4 if self.is_cluster_ip => {
                // No new connection finds it, as when a pod is deleted.
                let others: Vec<_> = (0..self.endpoints).filter(|other| *other != endpoint).collect();
                net.silence(endpoint);
                net.lead(address(0), &others);
                world.wait(time).await;
                net.restarted(endpoint);
                net.lead(address(0), &(0..self.endpoints).collect::<Vec<_>>());
                "vanished"
            }
            _ => {
                for _ in 0..random.random_range(1..4) {
                    net.reset(endpoint);
                    world.wait(between(random, 1, 500)).await;
                }
                "resets"
            }
        }
    }

    /// How many were well for the whole life of a query, and for long enough that the pool knows of it.
    fn well_during(&self, record: &Record) -> usize {
        let end = record.began + record.took;
        let begin = record.began.min(end.saturating_sub(NOTICED));
        let ills = self.ills.borrow();
        let is_ill = |endpoint: usize| {
            ills.iter().any(|ill| ill.endpoint == endpoint && ill.from <= end && begin <= ill.to)
        };
        (0..self.endpoints).filter(|endpoint| !is_ill(*endpoint)).count()
    }

    /// Whether a query had to be answered: enough of them were well for all of its life. A connection to a ClusterIP
    /// goes to any: half must be well, and whether any is cannot be told from a probe or two, so they must have been
    /// for longer.
    fn had_to_be_answered(&self, record: &Record) -> bool {
        if !self.is_cluster_ip {
            return self.well_during(record) >= 1;
        }
        let enough = self.endpoints.div_ceil(2);
        let (begin, end) = (record.began.saturating_sub(NOTICED_BEHIND_ONE), record.began + record.took);
        let ills = self.ills.borrow();
        // That many fewer are well only from the beginning of some illness on.
        let mut moments = ills.iter().map(|ill| ill.from).filter(|from| (begin..=end).contains(from));
        let well_at = |moment: Duration| {
            let is_ill =
                |n| ills.iter().any(|ill| ill.endpoint == n && (ill.from..=ill.to).contains(&moment));
            (0..self.endpoints).filter(|n| !is_ill(*n)).count()
        };
        self.well_during(record) >= enough
            && well_at(begin) >= enough
            && moments.all(|moment| well_at(moment) >= enough)
    }

    async fn run(&mut self) -> usize {
        let load = self.world.load(self.rate);
        self.world.wait(QUIET).await;
        let seeds: Vec<u64> = (0..self.endpoints).map(|_| self.random.random()).collect();
        let troubles = seeds.iter().enumerate().map(|(endpoint, seed)| {
            let random = StdRng::seed_from_u64(*seed);
            self.trouble(endpoint, random)
        });
        let most = async {
            let mut most = 0;
            while self.world.now() < QUIET + TROUBLE + 5 * SECOND {
                self.world.wait_ms(50).await;
                let open = self.world.pool.servers().iter().map(|server| server.open()).max();
                most = most.max(open.unwrap_or(0));
            }
            most
        };
        let (most, _) = futures_util::future::join(most, futures_util::future::join_all(troubles)).await;
        drop(load);
        most
    }

    fn check(&self, case: &Case, most_open: usize) {
        let (world, over) = (&self.world, QUIET + TROUBLE);
        let quiet = world.figures(SECOND / 2, QUIET - SECOND / 5);
        let trouble = world.figures(QUIET, over);
        let calm = world.figures(over + 2 * SECOND, over + 5 * SECOND);
        let max = world.pool.definition().connections.max;
        let seen = (0..self.endpoints).map(|n| world.net.look(n, |of| of.most_open)).sum::<usize>();
        case.say("", &self.told);
        case.say("quiet", &quiet);
        case.say("trouble", format!("{trouble}, {most_open} open, {seen} as the servers see it"));
        case.say("calm", &calm);
        case.none_failed("quiet", &quiet);
        case.none_failed("calm", &calm);
        case.at_most("calm: p99, ms", ms(calm.p99()), 2.0 * ms(quiet.p99()));
        case.at_most("connections to one server", most_open, max);
        let servers = world.pool.servers().len();
        case.at_most("connections, as the servers see it", seen, (GIVEN_UP * max + PROBES) * servers);
        let records = world.records();
        let unjust: Vec<_> = records
            .iter()
            .filter(|record| record.failed.is_some() && self.had_to_be_answered(record))
            .collect();
        case.must(
            unjust.is_empty(),
            format!("{} failed while a server was well, the first {:?}", unjust.len(), unjust.first()),
        );
    }
}

#[test]
fn whatever_happens_a_query_is_answered_while_a_server_is_well() {
    seeds(8, "chaos", async |seed, case| {
        let mut story = Story::new(seed);
        let most_open = story.run().await;
        case.ends_well(&story.world).await;
        story.check(case, most_open);
        story.world.wait(REST).await;
        let open = (0..story.endpoints).map(|n| story.world.net.look(n, |of| of.open)).sum::<usize>();
        case.at_most("connections after a rest", open, 0);
        if case.tell(&story.world) {
            for Ill { endpoint, from, to, what } in &*story.ills.borrow() {
                println!("      {:6.0} to {:6.0} ms: endpoint {endpoint} {what}", ms(*from), ms(*to));
            }
        }
    });
}
