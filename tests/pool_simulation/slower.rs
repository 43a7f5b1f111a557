//! Servers that are slow as a whole, or become so: no reason to give them up, or to ask everything twice.

use std::time::Duration;

use nodens::config;

use crate::case::{Case, each_seed};
use crate::endpoint::Service;
use crate::load::{Figures, ms};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// Load for some seconds, of which `change` knows when they began; the figures and the extra queries from then on.
async fn under_load(case: &Case, world: &World, rate: f64, change: impl AsyncFn()) -> Figures {
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
        let figures = under_load(case, &world, 500.0, async || ()).await;
        case.at_most("max, ms", ms(figures.max()), 250.0);
    });
}

#[test]
fn far_servers_are_asked_once() {
    each_seed("300 ms", async |seed, case| {
        let service = Service { jitter: SECOND / 20, ..Service::concurrent(300) };
        let world = World::listed(seed, &[service.clone(), service]);
        let figures = under_load(case, &world, 500.0, async || ()).await;
        case.at_most("p99, ms", ms(figures.p99()), 400.0);
    });
}

#[test]
fn a_server_that_becomes_slower_stays() {
    each_seed("2 to 60 ms", async |seed, case| {
        let world = World::listed(seed, &[Service::concurrent(2)]);
        let change = async || world.net.service(0, |of| of.base = SECOND * 6 / 100);
        let figures = under_load(case, &world, 500.0, change).await;
        case.at_most("p99, ms", ms(figures.p99()), 130.0);
    });
}

#[test]
fn servers_that_become_slower_together_stay() {
    each_seed("2 to 60 ms, both", async |seed, case| {
        let world = World::listed(seed, &[Service::serial(2), Service::serial(2)]);
        let change =
            async || [0, 1].into_iter().for_each(|n| world.net.service(n, |of| of.base = SECOND * 6 / 100));
        let figures = under_load(case, &world, 200.0, change).await;
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
        let figures = under_load(case, &world, 500.0, change).await;
        case.at_most("max, ms", ms(figures.max()), 250.0);
    });
}

#[test]
fn a_pause_of_all_servers_is_waited_for() {
    each_seed("a pause", async |seed, case| {
        let world = World::listed(seed, &[Service::serial(2), Service::serial(2)]);
        let change = async || {
            [0, 1].into_iter().for_each(|n| world.net.freeze(n));
            world.wait_ms(400).await;
            [0, 1].into_iter().for_each(|n| world.net.back(n));
        };
        under_load(case, &world, 500.0, change).await;
        let after = world.figures(3 * SECOND + SECOND / 2, 6 * SECOND);
        case.say("1.1 s after the pause", &after);
        case.at_most("1.1 s after the pause: p99, ms", ms(after.p99()), 10.0);
    });
}
