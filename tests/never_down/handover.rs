//! One `keep` takes over from another.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Load;
use crate::home::Home;
use crate::seen::Events;
use crate::support::{bound_ms, on_a_node, rate, seconds};

/// The control: nothing happens for so long.
const CALM: Duration = Duration::from_secs(2);
const TIMES: usize = 10;

/// What the upstream was asked in the second after each, of names that the agent before had in its cache.
fn hits_lost_to_a_cold_cache(asked: &[u64]) -> String {
    let per_second = rate() / 2;
    let share = |asked: &u64| format!("{:.1}", 100.0 - 100.0 * *asked as f64 / per_second as f64);
    asked.iter().map(share).collect::<Vec<_>>().join(" ")
}

#[test]
fn handing_over_loses_nothing() {
    on_a_node(|| {
        let home = Home::new("watchdog: 3s");
        let mut keep = home.keep();
        home.wait_until_ready(&mut keep);
        let load = Load::start(home.listen(), rate());
        thread::sleep(CALM);
        let (mut events, mut asked) = (Events::default(), Vec::new());
        for number in 1..=TIMES {
            events.happens(format!("handover {number}"));
            let next = home.keep();
            next.must_say("the agent is ready, and the previous one may go", seconds(15));
            let (before, begun) = (home.upstream.asked_for_hot(), Instant::now());
            // As Kubernetes does with the pod that is replaced. It is about to leave anyway.
            if keep.process.ended().is_none() {
                keep.signal(Signal::TERM);
            }
            keep.must_end(seconds(10));
            thread::sleep(seconds(1).saturating_sub(begun.elapsed()));
            asked.push(home.upstream.asked_for_hot() - before);
            keep = next;
        }
        let seen = load.finish();
        eprint!("{}", seen.report("handover", &events));
        eprintln!("  hit ratio in the second after it, %: {}", hits_lost_to_a_cold_cache(&asked));
        seen.must_be_whole();
        assert!(seen.slowest_ms() <= bound_ms(50, 500), "{} ms", seen.slowest_ms());
    });
}
