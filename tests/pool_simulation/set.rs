//! What servers there are, and which of their connections, changes in peace.

use std::time::Duration;

use nodens::config;
use nodens::upstream::server::How;

use crate::case::{Case, each_seed, seeds};
use crate::endpoint::Service;
use crate::load::{Figures, ms};
use crate::world::{World, address};

const SECOND: Duration = Duration::from_secs(1);
/// Of connections, so that a test need not wait for five minutes.
const MAX_AGE: Duration = Duration::from_secs(5);

/// Queries to each of four endpoints in the next seconds, as shares of an even part.
async fn shares(world: &World, time: Duration) -> [f64; 4] {
    let before: [u64; 4] = world.asked();
    world.wait(time).await;
    let asked: [u64; 4] = world.asked();
    let each: [u64; 4] = std::array::from_fn(|n| asked[n] - before[n]);
    let even = each.iter().sum::<u64>() as f64 / 4.0;
    each.map(|count| count as f64 / even)
}

fn worst(shares: [f64; 4]) -> f64 {
    shares.iter().map(|share| (share - 1.0).abs()).fold(0.0, f64::max) * 100.0
}

/// The one place that knows how a set of servers changes.
fn follow(world: &World, count: usize) {
    let servers: Vec<_> = (0..count).map(|n| (address(n), How::Tcp)).collect();
    world.pool.follow(&servers);
}

#[test]
fn load_follows_a_set_of_servers() {
    each_seed("2 to 4 to 3 servers", async |seed, case| {
        let world =
            World::listed_as(seed, &[Service::serial(2), Service::serial(2)], config::Server::Tcp, |of| {
                of.connections.max_age = MAX_AGE;
            });
        for n in 2..4 {
            let endpoint = world.net.endpoint(Service::serial(2));
            world.net.lead(address(n), &[endpoint]);
        }
        let load = world.load(1000.0);
        world.wait(SECOND).await;
        follow(&world, 4);
        world.wait(SECOND).await;
        let shares = shares(&world, MAX_AGE - SECOND).await;
        follow(&world, 3);
        world.wait(SECOND).await;
        let before = world.net.look(3, |of| of.asked);
        world.wait(2 * SECOND).await;
        let late = world.net.look(3, |of| of.asked) - before;
        let left_open = world.net.look(3, |of| of.open);
        drop(load);
        case.ends_well(&world).await;
        let figures = world.figures(SECOND / 2, world.now());
        case.say("all", &figures);
        case.say("shares of even", format!("{shares:.2?}"));
        case.none_failed("all", &figures);
        case.at_most("worst share, % off even", worst(shares), 15.0);
        case.at_most("queries to the one that left", late, 0);
        case.at_most("connections to the one that left", left_open, 0);
        case.tell(&world);
    });
}

#[test]
fn load_spreads_behind_a_cluster_ip() {
    each_seed("2 to 4 endpoints", async |seed, case| {
        // Slow enough that there are a dozen connections: with fewer, chance may leave an endpoint out.
        let services = vec![Service::serial(20); 4];
        let world = World::behind_one(seed, &services, |of| of.connections.max_age = MAX_AGE);
        world.net.lead(address(0), &[0, 1]);
        let load = world.load(400.0);
        world.wait(2 * SECOND).await;
        world.net.lead(address(0), &[0, 1, 2, 3]);
        world.wait(MAX_AGE.mul_f64(1.1)).await;
        let shares = shares(&world, MAX_AGE).await;
        drop(load);
        case.ends_well(&world).await;
        let figures = world.figures(SECOND / 2, world.now());
        let opened: u64 = (0..4).map(|n| world.net.look(n, |of| of.opened)).sum();
        case.say("all", &figures);
        case.say("shares of even", format!("{shares:.2?}, {:.0} % off, {opened} opened", worst(shares)));
        case.none_failed("all", &figures);
        let of_new = (shares[2] + shares[3]) / 4.0;
        case.must(of_new >= 0.1, format!("the new endpoints' part of the load is {of_new:.2}"));
        case.at_most("p99, ms", ms(figures.p99()), 100.0);
    });
}

/// Two old endpoints behind one address give way to two new ones, as in a rolling update. Each old one ends by `stop`
/// while it is still listed, half a second after a new one has come.
async fn rolling_update(case: &Case, seed: u64, rate: f64, stop: fn(&World, usize)) {
    let world = World::behind_one(seed, &vec![Service::serial(2); 4], |_| {});
    let listed = |endpoints: &[usize]| world.net.lead(address(0), endpoints);
    listed(&[0, 1]);
    let load = world.load(rate);
    world.wait(SECOND + SECOND.mul_f64(50.0 / rate)).await;
    let began = world.now();
    for (old, before, after) in [(0, [0, 1, 2], [1, 2]), (1, [1, 2, 3], [2, 3])] {
        listed(&before);
        world.wait(SECOND / 2).await;
        stop(&world, old);
        world.wait(SECOND / 2).await;
        listed(&after);
        world.wait(SECOND).await;
    }
    drop(load);
    case.ends_well(&world).await;
    let quiet = world.figures(SECOND / 2, began);
    let update = world.figures(began, world.now());
    case.say("quiet", &quiet);
    case.say("update", &update);
    case.none_failed("update", &update);
    case.at_most("update: max, ms", ms(update.max()), 250.0);
    case.tell(&world);
}

#[test]
fn nobody_notices_a_rolling_update() {
    for (name, rate) in [("update, refusing", 500.0), ("update, refusing, 20/s", 20.0)] {
        seeds(6, name, async |seed, case| {
            rolling_update(case, seed, rate, |world, old| world.net.refuse(old)).await;
        });
    }
    for (name, rate) in [("update, silent", 500.0), ("update, silent, 20/s", 20.0)] {
        seeds(6, name, async |seed, case| {
            rolling_update(case, seed, rate, |world, old| world.net.silence(old)).await;
        });
    }
}

/// So few queries that the server closes connections in between.
async fn at_rest(case: &Case, world: &World, pauses_ms: impl Iterator<Item = u64>, at_once: usize) {
    let mut records = Vec::new();
    for pause in pauses_ms {
        world.wait_ms(pause).await;
        let asked: Vec<_> = (0..at_once)
            .map(|_| {
                let world = world.clone();
                tokio::spawn(async move { world.ask().await })
            })
            .collect();
        for record in asked {
            records.push(record.await.expect("a query that ends"));
        }
    }
    case.ends_well(world).await;
    let figures = Figures::of(records.iter());
    let (asked, opened) = world.net.look(0, |of| (of.asked, of.opened));
    case.say("all", &figures);
    case.say("sent", format!("{asked} queries on {opened} connections"));
    case.none_failed("all", &figures);
    // A handshake and an answer of 2 ms each, and what the clock rounds.
    case.at_most("longest, ms", ms(figures.max()), if at_once == 1 { 10.0 } else { 40.0 });
    case.at_most("queries sent", asked, (records.len() as u64 * 21).div_ceil(20));
    case.at_most("connections opened", opened, 2 * records.len() as u64);
}

#[test]
fn a_connection_that_the_server_closes_is_opened_again_quietly() {
    for (name, pause) in
        [("a query each 20 s", 20_000), ("a query each 5 s", 5_000), ("a query a second", 1000)]
    {
        each_seed(name, async |seed, case| {
            let world = World::listed(seed, &[Service::serial(2)]);
            at_rest(case, &world, (0..60).map(|n| pause + n % 7), 1).await;
        });
    }
}

#[test]
fn a_query_that_meets_the_end_of_its_connection_is_asked_again() {
    each_seed("closed in between", async |seed, case| {
        // The server is less patient than the pool, and the network slow: some queries meet the end.
        let service = Service {
            idle: Duration::from_millis(2000),
            rtt: Duration::from_millis(6),
            ..Service::serial(2)
        };
        let world = World::listed(seed, &[service]);
        for pause in 1985..2010 {
            for _ in 0..2 {
                world.wait_ms(pause).await;
                let record = world.ask().await;
                case.must(record.failed.is_none(), format!("after {pause} ms: {:?}", record.failed));
                case.at_most("ms", ms(record.took), 30.0);
            }
        }
        case.say("opened", world.net.look(0, |of| of.opened));
        case.ends_well(&world).await;
    });
}

#[test]
fn bursts_after_a_rest_are_answered() {
    each_seed("bursts", async |seed, case| {
        let world = World::listed(seed, &[Service::serial(2)]);
        at_rest(case, &world, (0..20).map(|n| 2000 + 700 * n), 40).await;
    });
}
