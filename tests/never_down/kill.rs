//! The agent is killed, again and again, and its `keep` starts the next one.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Load;
use crate::home::{Home, send};
use crate::seen::Events;
use crate::support::{bound_ms, on_a_node, rate, seconds, wait_until};

const TIMES: usize = 20;
/// Whoever lived as long has not died young. A third one in a row that has would be followed by a pause.
const GROWN_UP: Duration = Duration::from_millis(10_500);
const IN_A_ROW: usize = 3;

#[test]
fn a_kill_loses_what_is_in_flight_and_nothing_else() {
    on_a_node(|| {
        let home = Home::new("watchdog: 3s");
        let mut keep = home.keep();
        home.wait_until_ready(&mut keep);
        let mut born = Instant::now();
        let load = Load::start(home.listen(), rate());
        let mut events = Events::default();
        let mut before = (0, [0; 2]);
        for number in 0..TIMES {
            let pause =
                if number % IN_A_ROW == 0 { GROWN_UP.saturating_sub(born.elapsed()) } else { seconds(1) };
            thread::sleep(pause);
            if number == IN_A_ROW {
                // All that it ever holds it holds by now: the cache, and the socket from which the watchdog asks.
                before = (keep.descriptors(), keep.memory());
            }
            let agent = keep.agent().expect("an agent");
            events.happens(format!("kill {}", number + 1));
            send(agent, Signal::KILL);
            home.wait_for_the_next(&mut keep, agent);
            born = Instant::now();
        }
        thread::sleep(seconds(3));
        // A question of the watchdog's may be on its way at either moment.
        wait_until("no descriptors stay", seconds(5), || keep.descriptors() <= before.0);
        let after = (keep.descriptors(), keep.memory());
        let seen = load.finish();
        eprint!("{}", seen.report("worker SIGKILL", &events));
        eprintln!("  keep: descriptors, [VmRSS, RssAnon] KiB: {before:?}, then {after:?}");
        assert!(
            !keep.process.output().contains("passed on"),
            "it did not stay up:\n{}",
            keep.process.output()
        );
        seen.must_lose_what_was_in_flight_alone(&events, &events);
        assert!(seen.slowest_ms() <= bound_ms(100, 1_000), "{} ms", seen.slowest_ms());
        assert!(after.1[1] <= before.1[1] + 512, "memory of keep, KiB: {before:?} {after:?}");
    });
}
