//! No server is left for a while, or every connection is cut.

use std::time::Duration;

use crate::case::{Case, each_seed};
use crate::endpoint::Service;
use crate::load::ms;
use crate::world::{World, address};

const SECOND: Duration = Duration::from_secs(1);

fn servers(seed: u64, count: usize) -> World {
    World::listed(seed, &vec![Service::serial(2); count])
}

/// All endpoints do `stop` for this long. The first good answer must be there this soon after the return, and
/// a second later all must be as before. Gives when they stopped and when they were back.
async fn all_gone(
    case: &Case,
    world: &World,
    rate: f64,
    down: Duration,
    [stop, back]: [fn(&World); 2],
) -> [Duration; 2] {
    let load = world.load(rate);
    world.wait(SECOND.mul_f64(1.0 + 40.0 / rate)).await;
    let stopped = world.now();
    stop(world);
    world.wait(down).await;
    let returned = world.now();
    back(world);
    world.wait_ms(490).await;
    let asked = world.ask().await;
    case.must(asked.failed.is_none(), format!("asked 490 ms after the return: {:?}", asked.failed));
    world.wait_ms(2500).await;
    let end = world.now();
    drop(load);
    case.ends_well(world).await;
    let quiet = world.figures(SECOND / 2, stopped - Duration::from_millis(50));
    let calm = world.figures(returned + SECOND, end);
    let later = world.figures(returned + 2 * SECOND, end);
    case.say("quiet", &quiet);
    case.say("gone", world.figures(stopped, returned));
    case.say("back", world.figures(returned, returned + SECOND));
    case.say("back for 1 s", &calm);
    let good = world.first_good(returned).map_or(f64::INFINITY, ms);
    case.say("first good answer", format!("{good:.0} ms after the return"));
    case.at_most("first good answer after the return, ms", good, 500.0);
    case.none_failed("quiet", &quiet);
    case.none_failed("back for 1 s", &calm);
    case.is_quiet_again("back for 2 s", &later, &quiet, 2);
    [stopped, returned]
}

const REFUSE: [fn(&World); 2] = [
    |world| [0, 1].into_iter().for_each(|n| world.net.refuse(n)),
    |world| [0, 1].into_iter().for_each(|n| world.net.back(n)),
];
const SILENCE: [fn(&World); 2] = [
    |world| [0, 1].into_iter().for_each(|n| world.net.silence(n)),
    |world| [0, 1].into_iter().for_each(|n| world.net.restarted(n)),
];
const FREEZE: [fn(&World); 2] = [
    |world| [0, 1].into_iter().for_each(|n| world.net.freeze(n)),
    |world| [0, 1].into_iter().for_each(|n| world.net.back(n)),
];
/// kube-proxy rejects once no endpoint is left.
const REJECT: [fn(&World); 2] = [
    |world| {
        [0, 1].into_iter().for_each(|n| world.net.silence(n));
        world.net.lead(address(0), &[]);
    },
    |world| {
        [0, 1].into_iter().for_each(|n| world.net.restarted(n));
        world.net.lead(address(0), &[0, 1]);
    },
];

/// Once it is known that nobody is there, no query waits.
async fn fails_at_once(case: &Case, world: &World, first: Duration, [stopped, returned]: [Duration; 2]) {
    let gone = world.figures(stopped + first, returned - Duration::from_millis(10));
    case.say("gone, later", &gone);
    case.must(gone.failed == gone.count(), "somebody was answered by nobody");
    case.at_most("until a query fails, ms", ms(gone.max()), 5.0);
    case.tell(world);
}

#[test]
fn both_servers_refuse() {
    each_seed("both refuse", async |seed, case| {
        let world = servers(seed, 2);
        let times = all_gone(case, &world, 500.0, 4 * SECOND, REFUSE).await;
        fails_at_once(case, &world, SECOND / 2, times).await;
    });
}

#[test]
fn both_servers_refuse_few_queries() {
    each_seed("both refuse, 2/s", async |seed, case| {
        let world = servers(seed, 2);
        let times = all_gone(case, &world, 2.0, 10 * SECOND, REFUSE).await;
        fails_at_once(case, &world, SECOND / 2, times).await;
    });
}

#[test]
fn a_cluster_ip_without_endpoints_is_rejected() {
    each_seed("both rejected", async |seed, case| {
        let world = World::behind_one(seed, &[Service::serial(2), Service::serial(2)], |_| {});
        // What was asked on the old connections is only given up when they are.
        let times = all_gone(case, &world, 500.0, 4 * SECOND, REJECT).await;
        fails_at_once(case, &world, 2 * SECOND, times).await;
    });
}

#[test]
fn both_servers_fall_silent() {
    each_seed("both silent", async |seed, case| {
        let world = servers(seed, 2);
        let [_, returned] = all_gone(case, &world, 300.0, 7 * SECOND, SILENCE).await;
        let new = world.figures(returned - 3 * SECOND, returned - SECOND);
        case.say("silent for 4 s", &new);
        case.tell(&world);
    });
}

#[test]
fn both_servers_freeze() {
    each_seed("both frozen", async |seed, case| {
        let world = servers(seed, 2);
        let [_, returned] = all_gone(case, &world, 300.0, 7 * SECOND, FREEZE).await;
        let new = world.figures(returned - 3 * SECOND, returned - SECOND);
        case.say("frozen for 4 s", &new);
        case.tell(&world);
    });
}

#[test]
fn both_servers_fall_silent_for_few_queries() {
    each_seed("both silent, 2/s", async |seed, case| {
        let world = servers(seed, 2);
        all_gone(case, &world, 2.0, 10 * SECOND, SILENCE).await;
        case.tell(&world);
    });
}

#[test]
fn the_only_server_restarts() {
    const RESTART: [fn(&World); 2] = [|world| world.net.refuse(0), |world| world.net.restarted(0)];
    each_seed("restart", async |seed, case| {
        let world = servers(seed, 1);
        all_gone(case, &world, 1000.0, 2 * SECOND, RESTART).await;
        case.tell(&world);
    });
}

/// All connections end at once, each second. Nobody may notice.
async fn resets(case: &Case, world: &World, endpoints: usize) {
    let load = world.load(2000.0);
    world.wait_ms(1000).await;
    let stopped = world.now();
    for _ in 0..3 {
        (0..endpoints).for_each(|endpoint| world.net.reset(endpoint));
        world.wait(SECOND).await;
    }
    let end = world.now();
    drop(load);
    case.ends_well(world).await;
    let quiet = world.figures(SECOND / 2, stopped - Duration::from_millis(50));
    let resets = world.figures(stopped - Duration::from_millis(50), end);
    for (what, figures) in [("quiet", &quiet), ("resets", &resets)] {
        case.say(what, figures);
        case.none_failed(what, figures);
    }
    case.at_most("resets: p99, ms", ms(resets.p99()), 2.0 * ms(quiet.p99()));
    case.at_most("resets: max, ms", ms(resets.max()), 100.0);
    case.tell(world);
}

#[test]
fn every_connection_of_two_servers_is_reset_at_once() {
    each_seed("resets of two", async |seed, case| resets(case, &servers(seed, 2), 2).await);
}

#[test]
fn every_connection_of_one_server_is_reset_at_once() {
    each_seed("resets of one", async |seed, case| resets(case, &servers(seed, 1), 1).await);
}

#[test]
fn every_connection_of_a_busier_server_is_reset_at_once() {
    each_seed("resets, 20 ms", async |seed, case| {
        resets(case, &World::listed(seed, &[Service::concurrent(20)]), 1).await;
    });
}
