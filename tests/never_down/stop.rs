//! The agent hangs: its `keep` finds out, and replaces it.

use std::thread;

use rustix::process::Signal;

use crate::client::Load;
use crate::home::{Home, send};
use crate::seen::Events;
use crate::support::{bound_ms, on_a_node, rate, seconds};

/// Stops the agent under load, this often, and waits for its replacement. The watchdog waits for so long.
#[track_caller]
fn stopped(watchdog_s: u64, times: usize) {
    let home = Home::new(&format!("watchdog: {watchdog_s}s"));
    let mut keep = home.keep();
    home.wait_until_ready(&mut keep);
    let load = Load::start(home.listen(), rate());
    let mut events = Events::default();
    for number in 0..times {
        thread::sleep(seconds(2));
        let agent = keep.agent_after(0);
        events.happens(format!("stop {}", number + 1));
        send(agent, Signal::STOP);
        home.wait_for_the_next(&mut keep, agent);
    }
    thread::sleep(seconds(1));
    let seen = load.finish();
    eprint!("{}", seen.report(&format!("worker SIGSTOP, watchdog {watchdog_s} s"), &events));
    seen.must_lose_what_was_in_flight_alone(&events, &events);
    let bound = watchdog_s * 1_000 + bound_ms(100, 1_500);
    assert!(seen.slowest_ms() <= bound, "{} ms", seen.slowest_ms());
}

#[test]
fn an_agent_that_hangs_is_replaced_within_the_watchdogs_time() {
    on_a_node(|| stopped(1, 2));
}

#[test]
fn the_usual_watchdog_takes_three_seconds() {
    on_a_node(|| stopped(3, 1));
}
