//! What wakes the agent, and what does not.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nodens::node::events::{Change, Events};
use nodens::node::netfilter::Bits;
use nodens::node::route::lead_here;
use tokio::time::timeout;

use crate::node::{ON, V4, V6, addresses, answers, hold_all, ip, make_link, on_a_node, place, wait_for};
use crate::support::wait_until;

const MARK: Bits = Bits { value: 0x35, mask: 0xff };
/// Events are there when the call that makes them returns, so this is plenty.
const SOON: Duration = Duration::from_secs(2);
/// After which nothing more is expected.
const QUIET: Duration = Duration::from_millis(100);

fn open() -> Events {
    Events::open(ON, &addresses(&[V4, V6])).expect("a subscription")
}

async fn told(events: &mut Events) -> BTreeSet<Change> {
    timeout(SOON, events.next()).await.expect("something is told").expect("events")
}

async fn nothing_is_told(events: &mut Events, after: &str) {
    if let Ok(told) = timeout(QUIET, events.next()).await {
        panic!("after {after}: {told:?}");
    }
}

/// Until nothing more is told.
async fn quiet(events: &mut Events) {
    for _ in 0..10 {
        if timeout(QUIET, events.next()).await.is_err() {
            return;
        }
    }
    panic!("there is no end of it");
}

fn of(texts: &[&str]) -> BTreeSet<Change> {
    texts.iter().map(|text| Change::Address(text.parse::<IpAddr>().expect("an address"))).collect()
}

#[test]
fn an_address_that_is_taken_away_wakes_and_is_put_back_at_once() {
    on_a_node(|| {
        make_link(ON);
        hold_all(ON, &[V4, V6]);
        wait_for(async {
            let mut events = open();
            for (address, length) in [(V4, 32), (V6, 128)] {
                quiet(&mut events).await;
                ip(&format!("address del {address}/{length} dev {ON}"));
                let gone = Instant::now();
                assert_eq!(told(&mut events).await, of(&[address]));
                let held = hold_all(ON, &[V4, V6]);
                let took = gone.elapsed();
                assert_eq!(held.added, [place(address, ON)]);
                wait_until("it answers", SOON, || answers(address));
                eprintln!("{address}: there again {} µs after `ip address del` had ended", took.as_micros());
                // Our own addition is told, by IPv6 twice: whoever then finds nothing to do is left alone.
                assert_eq!(told(&mut events).await, of(&[address]));
                quiet(&mut events).await;
                assert!(!hold_all(ON, &[V4, V6]).changed());
                nothing_is_told(&mut events, "a look that changes nothing").await;
            }
        });
    });
}

#[test]
fn a_link_that_is_deleted_wakes_and_the_addresses_are_put_back() {
    on_a_node(|| {
        make_link(ON);
        hold_all(ON, &[V4, V6]);
        wait_for(async {
            let mut events = open();
            quiet(&mut events).await;
            ip(&format!("link del {ON}"));
            let gone = Instant::now();
            let changes = told(&mut events).await;
            assert!(changes.is_superset(&of(&[V4, V6])) && changes.contains(&Change::Link), "{changes:?}");
            let held = hold_all(ON, &[V4, V6]);
            eprintln!("there again {} µs after `ip link del` had ended", gone.elapsed().as_micros());
            assert_eq!(held.added.len(), 2);
            wait_until("they answer", SOON, || answers(V4) && answers(V6));
        });
    });
}

#[test]
fn a_link_that_goes_without_our_addresses_wakes() {
    on_a_node(|| {
        make_link(ON);
        ip(&format!("link set {ON} up"));
        wait_for(async {
            let mut events = open();
            ip(&format!("link set {ON} down"));
            assert_eq!(told(&mut events).await, BTreeSet::from([Change::Link]));
            ip(&format!("link set {ON} up"));
            nothing_is_told(&mut events, "up").await;
            ip(&format!("link del {ON}"));
            assert_eq!(told(&mut events).await, BTreeSet::from([Change::Link]));
            ip("link set lo down");
            assert_eq!(told(&mut events).await, BTreeSet::from([Change::Link]));
        });
    });
}

#[test]
fn a_rule_or_route_of_ours_that_is_deleted_wakes() {
    on_a_node(|| {
        let cluster_ips = addresses(&["10.96.0.10", "fd00:96::10"]);
        lead_here(&cluster_ips, MARK).expect("led");
        wait_for(async {
            let mut events = open();
            for (family, address) in [("-4", "10.96.0.10"), ("-6", "fd00:96::10")] {
                ip(&format!("{family} rule del pref 100"));
                assert_eq!(told(&mut events).await, BTreeSet::from([Change::Rule]), "{family}");
                ip(&format!("{family} route del local {address} dev lo table 10053"));
                assert_eq!(told(&mut events).await, BTreeSet::from([Change::Route]), "{family}");
                // What we add ourselves is not told at all.
                assert!(!lead_here(&cluster_ips, MARK).expect("led").is_empty());
                nothing_is_told(&mut events, "a rule and a route of our own").await;
            }
        });
    });
}

/// A pod that comes and goes: a link, addresses, neighbours, routes, rules.
#[test]
fn pods_that_come_and_go_do_not_wake() {
    on_a_node(|| {
        make_link(ON);
        hold_all(ON, &[V4, V6]);
        lead_here(&addresses(&["10.96.0.10"]), MARK).expect("led");
        wait_for(async {
            let mut events = open();
            quiet(&mut events).await;
            for round in 0..3 {
                for command in [
                    "link add pod0 type veth peer name eth0",
                    "address add 10.244.0.1/24 dev pod0",
                    "address add fd00:244::1/64 dev pod0",
                    "link set pod0 up",
                    "link set eth0 up",
                    "route add 10.244.7.0/24 dev pod0",
                    "-6 route add fd00:247::/64 dev pod0",
                    "route add local 10.96.0.10 dev lo table 77",
                    "rule add from 10.244.0.2 lookup 77 pref 100",
                    "-6 rule add from fd00:244::2 lookup 77",
                    "-6 rule del from fd00:244::2 lookup 77",
                    "rule del from 10.244.0.2 lookup 77 pref 100",
                    "route del local 10.96.0.10 dev lo table 77",
                    "-6 route del fd00:247::/64 dev pod0",
                    "route del 10.244.7.0/24 dev pod0",
                    "address del fd00:244::1/64 dev pod0",
                    "address del 10.244.0.1/24 dev pod0",
                    "link set pod0 down",
                    "link del pod0",
                ] {
                    ip(command);
                }
                nothing_is_told(&mut events, &format!("round {round}")).await;
            }
            // It was listening.
            ip(&format!("address del {V4}/32 dev {ON}"));
            assert_eq!(told(&mut events).await, of(&[V4]));
        });
    });
}

/// A bridge says of a link that leaves it what is else said of one that is gone.
#[test]
fn our_link_leaving_a_bridge_does_not_wake() {
    on_a_node(|| {
        ip("link add bridge0 type bridge");
        ip(&format!("link add {ON} type veth peer name other"));
        hold_all(ON, &[V4]);
        wait_for(async {
            let mut events = open();
            ip(&format!("link set {ON} master bridge0"));
            ip(&format!("link set {ON} nomaster"));
            nothing_is_told(&mut events, "a bridge").await;
            ip(&format!("link del {ON}"));
            assert!(told(&mut events).await.contains(&Change::Link));
        });
    });
}

#[test]
fn an_address_of_ours_on_another_link_wakes() {
    on_a_node(|| {
        make_link("kube-ipvs0");
        wait_for(async {
            let mut events = open();
            ip(&format!("address add {V4}/32 dev kube-ipvs0"));
            assert_eq!(told(&mut events).await, of(&[V4]));
        });
    });
}

#[test]
fn events_that_were_lost_count_as_a_change() {
    on_a_node(|| {
        make_link(ON);
        hold_all(ON, &[V4, V6]);
        wait_for(async {
            let mut events = open();
            quiet(&mut events).await;
            let commands: String = (0..250)
                .flat_map(|net| {
                    (0..40).map(move |host| format!("route add blackhole 10.{net}.{host}.0/24\n"))
                })
                .collect();
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("routes");
            std::fs::write(&file, commands).expect("a file");
            // Nobody reads meanwhile, so that more comes than the socket can hold.
            ip(&format!("-batch {}", file.display()));
            assert_eq!(told(&mut events).await, BTreeSet::from([Change::Lost]));
            let held = hold_all(ON, &[V4, V6]);
            assert!(!held.changed());
            ip(&format!("address del {V4}/32 dev {ON}"));
            // What was in the socket comes first.
            let mut changes = told(&mut events).await;
            if !changes.contains(&Change::Address(addresses(&[V4])[0])) {
                changes = told(&mut events).await;
            }
            assert!(changes.is_superset(&of(&[V4])), "{changes:?}");
        });
    });
}

/// The agent waits for several things at once, and drops this one each time another comes first.
#[test]
fn a_wait_that_is_given_up_loses_nothing() {
    on_a_node(|| {
        make_link(ON);
        hold_all(ON, &[V4, V6]);
        wait_for(async {
            let mut events = open();
            quiet(&mut events).await;
            for _ in 0..50 {
                let _ = timeout(Duration::ZERO, events.next()).await;
            }
            ip(&format!("address del {V4}/32 dev {ON}"));
            let mut changes = BTreeSet::new();
            for _ in 0..200 {
                tokio::select! {
                    biased;
                    () = tokio::task::yield_now() => {}
                    told = events.next() => changes.extend(told.expect("events")),
                }
                tokio::select! {
                    told = timeout(Duration::from_millis(1), events.next()) => {
                        if let Ok(told) = told { changes.extend(told.expect("events")) }
                    }
                    () = tokio::task::yield_now() => {}
                }
            }
            assert_eq!(changes, of(&[V4]));
        });
    });
}
