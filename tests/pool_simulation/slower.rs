//! Servers that are slow as a whole, or become so: no reason to give them up, or to ask everything twice.

use std::time::Duration;

use nodens::config;

use crate::case::{Case, each_seed};
use crate::endpoint::Service;
use crate::load::{Figures, ms};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// Load for some seconds, of which `change` knows when they began; the figures and the extra queries from then on, and
/// after how many queries.
async fn under_load(case: &Case, world: &World, rate: f64, change: impl AsyncFn()) -> (Figures, f64, usize) {
    let load = world.load(rate);
    world.wait(2 * SECOND).await;
    let (from, before) = (world.now(), world.so_far());
    change().await;
    world.wait(from + 4 * SECOND - world.now()).await;
    let (to, extra, asked) = (world.now(), world.extra(before), world.so_far().0 - before.0);
    drop(load);
    case.ends_well(world).await;
    let figures = world.figures(from, to);
    case.say("figures", &figures);
    let opened: u64 = (0..world.pool.servers().len()).map(|n| world.net.look(n, |of| of.opened)).sum();
    case.say("extra", format!("{extra:.2} %, {opened} connections opened"));
    (figures, extra, asked)
}

/// The same, where nothing speaks for more extra queries than the budget of hedges allows.
async fn without_storm(case: &Case, world: &World, rate: f64, change: impl AsyncFn()) -> Figures {
    let (figures, extra, asked) = under_load(case, world, rate, change).await;
    case.none_failed("under load", &figures);
    let hedge = config::Hedge::default();
    let burst = f64::from(hedge.burst) / asked as f64 * 100.0;
    case.at_most("extra queries, %", extra, f64::from(hedge.budget) + burst);
    case.tell(world);
    figures
}

#[test]
fn answers_that_take_different_times_are_not_asked_for_twice() {
    each_seed("5 to 105 ms", async |seed, case| {
        let service = Service { jitter: SECOND / 10, ..Service::concurrent(5) };
        let world = World::listed(seed, &[service.clone(), service]);
        let figures = without_storm(case, &world, 500.0, async || ()).await;
        case.at_most("max, ms", ms(figures.max()), 250.0);
    });
}

#[test]
fn far_servers_are_asked_once() {
    each_seed("300 ms", async |seed, case| {
        let service = Service { jitter: SECOND / 20, ..Service::concurrent(300) };
        let world = World::listed(seed, &[service.clone(), service]);
        let figures = without_storm(case, &world, 500.0, async || ()).await;
        case.at_most("p99, ms", ms(figures.p99()), 400.0);
    });
}

#[test]
fn a_server_that_becomes_slower_stays() {
    each_seed("2 to 60 ms", async |seed, case| {
        let world = World::listed(seed, &[Service::concurrent(2)]);
        let change = async || world.net.service(0, |of| of.base = SECOND * 6 / 100);
        let figures = without_storm(case, &world, 500.0, change).await;
        case.at_most("p99, ms", ms(figures.p99()), 130.0);
    });
}

#[test]
fn servers_that_become_slower_together_stay() {
    each_seed("2 to 60 ms, both", async |seed, case| {
        let world = World::listed(seed, &[Service::serial(2), Service::serial(2)]);
        let change =
            async || [0, 1].into_iter().for_each(|n| world.net.service(n, |of| of.base = SECOND * 6 / 100));
        let figures = without_storm(case, &world, 200.0, change).await;
        case.at_most("p99, ms", ms(figures.p99()), 250.0);
    });
}

#[test]
fn servers_that_are_throttled_now_and_then_stay() {
    each_seed("throttled", async |seed, case| {
        // A process over its CPU limit stands still until the next period of 100 ms.
        let world = World::listed(seed, &[Service::serial(2), Service::serial(2)]);
        let change = async || {
            for turn in 0..30 {
                world.wait_ms(60).await;
                world.net.freeze(turn % 2);
                world.wait_ms(40).await;
                world.net.back(turn % 2);
            }
        };
        let figures = without_storm(case, &world, 500.0, change).await;
        case.at_most("max, ms", ms(figures.max()), 250.0);
    });
}

/// All servers stand still for this long. Gives how many were asked in that time.
async fn pause(case: &Case, seed: u64, time: Duration) -> (Figures, f64) {
    let world = World::listed(seed, &[Service::serial(2), Service::serial(2)]);
    let change = async || {
        [0, 1].into_iter().for_each(|n| world.net.freeze(n));
        world.wait(time).await;
        [0, 1].into_iter().for_each(|n| world.net.back(n));
    };
    let (_, extra, asked) = under_load(case, &world, 500.0, change).await;
    let paused = world.figures(2 * SECOND, 2 * SECOND + time);
    case.say("in the pause", &paused);
    let each = extra * asked as f64 / 100.0 / paused.count() as f64;
    case.say("extra for each of these", format!("{each:.1}"));
    let after = world.figures(2 * SECOND + time + SECOND, 6 * SECOND);
    case.say("a second later", &after);
    case.none_failed("a second later", &after);
    case.at_most("a second later: p99, ms", ms(after.p99()), 10.0);
    case.tell(&world);
    (paused, each)
}

#[test]
fn a_short_pause_of_all_servers_is_waited_for() {
    each_seed("a pause of 400 ms", async |seed, case| {
        let (paused, each) = pause(case, seed, SECOND * 4 / 10).await;
        case.none_failed("in the pause", &paused);
        case.at_most("extra queries for each in the pause", each, 2.0);
    });
}

#[test]
fn after_a_pause_of_all_servers_all_is_well() {
    each_seed("a pause of 1.5 s", async |seed, case| {
        let (_, each) = pause(case, seed, SECOND * 3 / 2).await;
        case.at_most("extra queries for each in the pause", each, 2.0);
    });
}
