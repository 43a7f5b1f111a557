//! Servers that are slow: about one name, now and then, or because there is too much to do.

use std::time::Duration;

use nodens::config;

use crate::case::{Case, each_seed, seeds};
use crate::endpoint::Service;
use crate::load::{Figures, ms};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// 1,000 misses a second for some seconds, beside this many names that are slow, each asked again 2 s after the
/// last time ended.
async fn beside_slow_names(case: &Case, seed: u64, service: &Service, names: usize) -> Figures {
    let world = World::listed(seed, std::slice::from_ref(service));
    let load = world.load(1000.0);
    world.wait(SECOND).await;
    for name in 0..names {
        let world = world.clone();
        tokio::spawn(async move {
            while world.now() < 5 * SECOND {
                world.ask_slow(name).await;
                world.wait(2 * SECOND).await;
            }
        });
    }
    let time = if names > 0 { 6 * SECOND } else { 2 * SECOND };
    world.wait(time).await;
    drop(load);
    world.wait(2 * SECOND).await;
    case.ends_well(&world).await;
    let figures = world.figures(SECOND, SECOND + time);
    case.say(&format!("beside {names} slow names"), &figures);
    let slow: Vec<_> = world.records().into_iter().filter(|record| record.apart).collect();
    if names > 0 {
        case.say("the slow names", Figures::of(slow.iter()));
        let is_answered = service.slow_name + SECOND / 2 < world.pool.definition().timeout;
        let failed = slow.iter().filter(|record| record.failed.is_some()).count();
        case.must(!is_answered || failed == 0, format!("{failed} of {} slow queries failed", slow.len()));
    }
    figures
}

async fn does_not_block(case: &Case, seed: u64, service: Service, names: usize) {
    let without = beside_slow_names(case, seed, &service, 0).await;
    let beside = beside_slow_names(case, seed, &service, names).await;
    case.none_failed("beside slow names", &beside);
    case.at_most("beside slow names: p99, ms", ms(beside.p99()), 3.0 * ms(without.p99()));
    case.at_most("beside slow names: max, ms", ms(beside.max()), 1000.0);
}

#[test]
fn one_slow_name_does_not_delay_the_others() {
    each_seed("a slow name", async |seed, case| does_not_block(case, seed, Service::serial(2), 1).await);
}

#[test]
fn slow_names_do_not_delay_the_others() {
    each_seed("4 slow names", async |seed, case| does_not_block(case, seed, Service::serial(2), 4).await);
}

#[test]
fn a_name_that_is_never_answered_does_not_delay_the_others() {
    each_seed("a name of 10 s", async |seed, case| {
        let service = Service { slow_name: 10 * SECOND, ..Service::serial(2) };
        does_not_block(case, seed, service, 1).await;
    });
}

/// Servers that are late with a share of their answers by half a second.
async fn late(case: &Case, world: &World, rate: f64) -> (Figures, f64, usize) {
    let load = world.load(rate);
    world.wait(2 * SECOND).await;
    let before = world.so_far();
    world.wait(6 * SECOND).await;
    let extra = world.extra(before);
    let asked = world.so_far().0 - before.0;
    drop(load);
    case.ends_well(world).await;
    let figures = world.figures(2 * SECOND, 8 * SECOND);
    case.say("late answers", &figures);
    case.say("extra queries", format!("{extra:.2} %"));
    case.none_failed("late answers", &figures);
    case.tell(world);
    (figures, extra, asked)
}

async fn hedges(case: &Case, world: &World, rate: f64) {
    let (figures, extra, _) = late(case, world, rate).await;
    case.at_most("p99.5, ms", ms(figures.quantile(0.995)), 40.0);
    case.at_most("extra queries, %", extra, 5.0);
}

fn sometimes_late(share: f64, service: Service) -> Service {
    Service { late: share, late_by: SECOND / 2, ..service }
}

#[test]
fn one_answer_in_a_hundred_is_late() {
    each_seed("1 % late", async |seed, case| {
        let service = sometimes_late(0.01, Service::concurrent(5));
        hedges(case, &World::listed(seed, &[service.clone(), service]), 1000.0).await;
    });
}

#[test]
fn one_answer_in_a_hundred_of_the_only_server_is_late() {
    each_seed("1 % late, one server", async |seed, case| {
        hedges(case, &World::listed(seed, &[sometimes_late(0.01, Service::concurrent(5))]), 1000.0).await;
    });
}

#[test]
fn one_answer_in_a_hundred_of_serial_servers_is_late() {
    each_seed("1 % late, serial", async |seed, case| {
        let service = sometimes_late(0.01, Service::serial(5));
        hedges(case, &World::listed(seed, &[service.clone(), service]), 500.0).await;
    });
}

#[test]
fn one_answer_in_a_hundred_behind_a_cluster_ip_is_late() {
    each_seed("1 % late, ClusterIP", async |seed, case| {
        let service = sometimes_late(0.01, Service::serial(5));
        hedges(case, &World::behind_one(seed, &[service.clone(), service], |_| {}), 500.0).await;
    });
}

#[test]
fn extra_queries_have_a_budget() {
    each_seed("30 % late", async |seed, case| {
        let service = sometimes_late(0.3, Service::concurrent(5));
        let world = World::listed(seed, &[service.clone(), service]);
        let (_, extra, asked) = late(case, &world, 500.0).await;
        let hedge = config::Hedge::default();
        let burst = f64::from(hedge.burst) / asked as f64 * 100.0;
        case.at_most("extra queries, %", extra, f64::from(hedge.budget) + burst);
    });
}

#[test]
fn what_cannot_be_served_fails_by_its_deadline() {
    seeds(1, "overload", async |seed, case| {
        let world = World::listed_as(seed, &[Service::serial(10)], config::Server::Tcp, |definition| {
            definition.timeout = 2 * SECOND;
        });
        let capacity = world.pool.definition().connections.max as f64 * 100.0;
        let load = world.load(capacity / 4.0);
        world.wait(2 * SECOND).await;
        let (flood, before) = (world.load(capacity * 1.5), world.so_far());
        let mut most = 0;
        for _ in 0..60 {
            world.wait_ms(100).await;
            most = most.max(world.in_flight());
        }
        let extra = world.extra(before);
        drop(flood);
        world.wait(6 * SECOND).await;
        drop(load);
        case.ends_well(&world).await;
        let quiet = world.figures(SECOND, 2 * SECOND);
        let over = world.figures(4 * SECOND, 8 * SECOND);
        let after = world.figures(12 * SECOND, 14 * SECOND);
        for (what, figures) in [("quiet", &quiet), ("overload", &over), ("afterwards", &after)] {
            case.say(what, figures);
        }
        let served = (over.count() - over.failed) as f64 / 4.0;
        let open = world.net.look(0, |of| of.most_open);
        case.say(
            "served",
            format!("{served:.0}/s of {capacity:.0}, {open} open, {most} in flight, extra {extra:.1} %"),
        );
        case.none_failed("quiet", &quiet);
        case.is_quiet_again("4 s afterwards", &after, &quiet, 2);
        case.must(served >= 0.8 * capacity, format!("{served:.0}/s served of {capacity:.0} that could be"));
        case.at_most("extra queries, %", extra, 5.0);
        // Those that were given up stay for the answers under way on them.
        case.at_most("connections, as the server sees it", open, 2 * world.pool.definition().connections.max);
        case.tell(&world);
    });
}

#[test]
fn a_lost_datagram_is_sent_again() {
    each_seed("10 % loss", async |seed, case| {
        let service = Service { loss: 0.1, ..Service::concurrent(2) };
        let world = World::listed_as(seed, &[service], config::Server::Udp, |_| {});
        let load = world.load(200.0);
        world.wait(10 * SECOND).await;
        drop(load);
        case.ends_well(&world).await;
        let figures = world.figures(Duration::ZERO, 10 * SECOND);
        case.say("loss", &figures);
        case.say("extra queries", format!("{:.1} %", world.extra((0, 0))));
        // Each way loses a tenth: three datagrams in a row are lost of seven queries in a thousand.
        case.at_most("failed", figures.failed * 1000, figures.count() * 15);
        case.at_most("p50, ms", ms(figures.quantile(0.5)), 5.0);
    });
}
