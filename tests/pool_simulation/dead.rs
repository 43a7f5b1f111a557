//! One of two servers falls silent, freezes, refuses or vanishes, and comes back.

use std::time::Duration;

use nodens::config::{Server, ServerPolicy};

use crate::case::{Case, each_seed, seeds};
use crate::endpoint::Service;
use crate::load::ms;
use crate::world::{World, address};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than a query takes in peace.
const UNDER_WAY: Duration = Duration::from_millis(50);

/// One of two endpoints does `stop`, and is back later by `back`, at this many misses a second.
async fn one_of_two(case: &Case, world: &World, rate: f64, stop: fn(&World), back: fn(&World)) {
    let load = world.load(rate);
    world.wait_ms(1200).await;
    let (stopped, before) = (world.now(), world.so_far());
    stop(world);
    world.wait_ms(3000).await;
    let (returned, extra) = (world.now(), world.extra(before));
    back(world);
    world.wait_ms(2500).await;
    let even: [u64; 2] = world.asked();
    world.wait_ms(500).await;
    let (end, later) = (world.now(), world.asked::<2>());
    drop(load);
    case.ends_well(world).await;
    // What was under way when it happened belongs to what came after.
    let quiet = world.figures(SECOND / 2, stopped - UNDER_WAY);
    let first = world.figures(stopped - UNDER_WAY, stopped + SECOND);
    let after = world.figures(stopped + 2 * SECOND, returned);
    let back = world.figures(returned, end);
    let calm = world.figures(returned + 2 * SECOND, end);
    let second = world.figures(stopped + SECOND, stopped + 2 * SECOND);
    let all = [("quiet", &quiet), ("first second", &first), ("second", &second), ("after 2 s", &after)];
    for (what, figures) in all.into_iter().chain([("back", &back), ("back for 2 s", &calm)]) {
        case.say(what, figures);
        case.none_failed(what, figures);
    }
    let share = (later[0] - even[0]) as f64 / (later[0] + later[1] - even[0] - even[1]) as f64;
    case.say("extra, share of the returned", format!("{extra:.1} %, {:.0} %", share * 100.0));
    case.at_most("first second: p99, ms", ms(first.p99()), 100.0);
    case.is_quiet_again("after 2 s", &after, &quiet, 2);
    case.at_most("back: p99, ms", ms(back.p99()), 100.0);
    case.is_quiet_again("back for 2 s", &calm, &quiet, 2);
    case.tell(world);
}

/// The same for servers that are listed: both have their share again in the end, whatever the policy.
async fn of_listed(case: &Case, world: &World, rate: f64, stop: fn(&World), back: fn(&World)) {
    one_of_two(case, world, rate, stop, back).await;
    let load = world.load(rate);
    let before: [u64; 2] = world.asked();
    world.wait(SECOND.mul_f64(1000.0 / rate)).await;
    let after: [u64; 2] = world.asked();
    drop(load);
    world.settle().await;
    let share = (after[0] - before[0]) as f64 / (after[0] + after[1] - before[0] - before[1]) as f64;
    case.must((0.42..=0.58).contains(&share), format!("the returned one's share stays {share:.2}"));
}

fn two(seed: u64, service: &Service, policy: ServerPolicy) -> World {
    World::listed_as(seed, &[service.clone(), service.clone()], Server::Tcp, |definition| {
        definition.policy = policy;
    })
}

#[test]
fn one_of_two_servers_falls_silent() {
    each_seed("silent server", async |seed, case| {
        let world = two(seed, &Service::serial(2), ServerPolicy::LeastLoaded);
        of_listed(case, &world, 2000.0, |world| world.net.silence(0), |world| world.net.back(0)).await;
    });
}

#[test]
fn one_of_two_busier_servers_falls_silent() {
    each_seed("silent, 20 ms", async |seed, case| {
        let service = Service { jitter: Duration::from_millis(10), ..Service::concurrent(20) };
        let world = two(seed, &service, ServerPolicy::LeastLoaded);
        of_listed(case, &world, 1000.0, |world| world.net.silence(0), |world| world.net.back(0)).await;
    });
}

#[test]
fn one_of_two_servers_falls_silent_whatever_the_policy() {
    for (name, policy) in
        [("silent, random", ServerPolicy::Random), ("silent, in turn", ServerPolicy::RoundRobin)]
    {
        each_seed(name, async |seed, case| {
            let world = two(seed, &Service::serial(2), policy);
            of_listed(case, &world, 1000.0, |world| world.net.silence(0), |world| world.net.back(0)).await;
        });
    }
}

#[test]
fn the_first_of_two_servers_in_order_falls_silent() {
    each_seed("silent, in order", async |seed, case| {
        let world = two(seed, &Service::serial(2), ServerPolicy::Sequential);
        one_of_two(case, &world, 1000.0, |world| world.net.silence(0), |world| world.net.back(0)).await;
    });
}

#[test]
fn one_of_two_servers_falls_silent_at_few_queries() {
    each_seed("silent, 50/s", async |seed, case| {
        let world = two(seed, &Service::serial(2), ServerPolicy::Random);
        of_listed(case, &world, 50.0, |world| world.net.silence(0), |world| world.net.back(0)).await;
    });
}

#[test]
fn one_of_two_servers_falls_silent_and_comes_back_as_another_process() {
    each_seed("silent, restarted", async |seed, case| {
        let world = two(seed, &Service::concurrent(2), ServerPolicy::LeastLoaded);
        of_listed(case, &world, 1000.0, |world| world.net.silence(0), |world| world.net.restarted(0)).await;
    });
}

#[test]
fn one_of_two_servers_freezes() {
    each_seed("frozen server", async |seed, case| {
        let world = two(seed, &Service::serial(2), ServerPolicy::LeastLoaded);
        of_listed(case, &world, 1000.0, |world| world.net.freeze(0), |world| world.net.back(0)).await;
    });
}

#[test]
fn one_of_two_servers_refuses() {
    each_seed("refusing server", async |seed, case| {
        let world = two(seed, &Service::serial(2), ServerPolicy::LeastLoaded);
        of_listed(case, &world, 1000.0, |world| world.net.refuse(0), |world| world.net.back(0)).await;
    });
}

#[test]
fn one_of_two_endpoints_of_a_cluster_ip_falls_silent() {
    each_seed("silent endpoint", async |seed, case| {
        let world = World::behind_one(seed, &[Service::serial(2), Service::serial(2)], |_| {});
        one_of_two(case, &world, 2000.0, |world| world.net.silence(0), |world| world.net.back(0)).await;
    });
}

#[test]
fn one_of_two_endpoints_of_a_cluster_ip_freezes() {
    each_seed("frozen endpoint", async |seed, case| {
        let world = World::behind_one(seed, &[Service::serial(2), Service::serial(2)], |_| {});
        one_of_two(case, &world, 1000.0, |world| world.net.freeze(0), |world| world.net.back(0)).await;
    });
}

#[test]
fn one_of_two_endpoints_of_a_cluster_ip_vanishes() {
    each_seed("vanished endpoint", async |seed, case| {
        let world = World::behind_one(seed, &[Service::serial(2), Service::serial(2)], |_| {});
        let vanish = |world: &World| {
            world.net.silence(0);
            world.net.lead(address(0), &[1]);
        };
        let back = |world: &World| {
            world.net.restarted(0);
            world.net.lead(address(0), &[0, 1]);
        };
        one_of_two(case, &world, 1000.0, vanish, back).await;
    });
}

#[test]
fn one_of_two_udp_servers_falls_silent() {
    each_seed("silent, UDP", async |seed, case| {
        let services = [Service::concurrent(2), Service::concurrent(2)];
        let world = World::listed_as(seed, &services, Server::Udp, |_| {});
        of_listed(case, &world, 1000.0, |world| world.net.silence(0), |world| world.net.back(0)).await;
    });
}

#[test]
fn one_of_two_endpoints_of_a_cluster_ip_refuses() {
    // At few queries all connections may lead to the one that goes.
    for (name, rate) in [("refusing endpoint", 1000.0), ("refusing endpoint, 50/s", 50.0)] {
        seeds(4, name, async |seed, case| {
            let world = World::behind_one(seed, &[Service::serial(2), Service::serial(2)], |_| {});
            one_of_two(case, &world, rate, |world| world.net.refuse(0), |world| world.net.restarted(0)).await;
        });
    }
}
