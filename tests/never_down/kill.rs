//! The agent is killed, again and again, and its `keep` starts the next one.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Load;
use crate::home::{Home, send};
use crate::seen::Events;
use crate::support::{bound_ms, on_a_node, rate, seconds};

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
        let before = (keep.descriptors(), keep.memory());
        for number in 0..TIMES {
            let pause =
                if number % IN_A_ROW == 0 { GROWN_UP.saturating_sub(born.elapsed()) } else { seconds(1) };
            thread::sleep(pause);
            let agent = keep.agent().expect("an agent");
            events.happens(format!("kill {}", number + 1));
            send(agent, Signal::KILL);
            home.wait_for_the_next(&mut keep, agent);
            born = Instant::now();
        }
        thread::sleep(seconds(1));
        let after = (keep.descriptors(), keep.memory());
        let seen = load.finish();
        eprint!("{}", seen.report("worker SIGKILL", &events));
        eprintln!("  keep: descriptors, [VmRSS, RssAnon] KiB: {before:?}, then {after:?}");
        assert!(
            !keep.process.output().contains("passed on"),
            "it did not stay up:\n{}",
            keep.process.output()
        );
        seen.must_lose_what_was_in_flight_alone(&events);
        assert!(seen.slowest_ms() <= bound_ms(100, 1_000), "{} ms", seen.slowest_ms());
        assert_eq!(before.0, after.0, "descriptors of keep");
        assert!(after.1[1] <= before.1[1] + 512, "memory of keep, KiB: {before:?} {after:?}");
    });
}
