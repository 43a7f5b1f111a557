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
/// After so long a `keep` holds all that it ever does: the socket from which its watchdog asks, too.
const SETTLED: Duration = Duration::from_millis(2_500);

/// Of hits, percent: the bound, of a ratio that was 100 before.
const WARM: f64 = 95.0;

/// Hit ratios in the second after each, percent, by how often the upstream was asked in it for what the agent before had in
/// its cache.
fn hit_ratios(asked: &[u64]) -> Vec<f64> {
    let per_second = rate() as f64 / 2.0;
    asked.iter().map(|&asked| 100.0 - 100.0 * asked as f64 / per_second).collect()
}

#[test]
fn handing_over_loses_nothing() {
    on_a_node(|| {
        let home = Home::new("watchdog: 3s");
        let mut keep = home.keep();
        home.wait_until_ready(&mut keep);
        let load = Load::start(home.listen(), rate());
        thread::sleep(CALM);
        let (mut events, mut asked, mut sizes) = (Events::default(), Vec::new(), Vec::new());
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
            thread::sleep(SETTLED.saturating_sub(begun.elapsed()));
            sizes.push((next.descriptors(), next.memory()));
            keep = next;
        }
        let seen = load.finish();
        eprint!("{}", seen.report("handover", &events));
        eprintln!("  descriptors and [VmRSS, RssAnon] in KiB of each keep: {sizes:?}");
        let ratios = hit_ratios(&asked);
        eprintln!("  hit ratio in the second after it, %: {ratios:.1?}");
        seen.must_be_whole();
        let ((first, [_, memory]), (last, [_, memory_then])) = (sizes[0], sizes[TIMES - 1]);
        // A question of the watchdog's may be on its way.
        assert!(last <= first + 1 && memory_then <= memory + 512, "what is held grows: {sizes:?}");
        assert!(ratios.iter().all(|&ratio| ratio >= WARM), "the cache is handed over: {ratios:?}");
        assert!(seen.slowest_ms() <= bound_ms(50, 500), "{} ms", seen.slowest_ms());
    });
}

/// As a DaemonSet does it that may have one pod too few, and not one too many.
#[test]
fn a_successor_that_comes_while_the_agent_leaves_finds_all_that_waits() {
    on_a_node(|| {
        let home = Home::new("watchdog: 3s");
        let mut keep = home.keep();
        home.wait_until_ready(&mut keep);
        let load = Load::start(home.listen(), rate());
        thread::sleep(CALM);
        let mut events = Events::default();
        for number in 1..=TIMES {
            events.happens(format!("SIGTERM {number}"));
            keep.signal(Signal::TERM);
            let mut next = home.keep();
            keep.must_end(seconds(10));
            home.wait_until_ready(&mut next);
            thread::sleep(Duration::from_millis(500));
            keep = next;
        }
        let seen = load.finish();
        eprint!("{}", seen.report("SIGTERM, then the next one", &events));
        seen.must_be_whole();
        assert!(seen.slowest_ms() <= bound_ms(1_000, 2_000), "{} ms", seen.slowest_ms());
    });
}
