//! An agent that does not come up: queries go past it.

use std::thread;

use rustix::process::Signal;

use crate::client::Load;
use crate::home::{Home, send};
use crate::seen::Events;
use crate::support::{bound_ms, on_a_node, rate, seconds, wait_until};

#[test]
fn queries_are_passed_on_while_no_agent_stays_up() {
    on_a_node(|| {
        let home = Home::new("watchdog: 3s");
        let mut keep = home.keep();
        home.wait_until_ready(&mut keep);
        let load = Load::start(home.listen(), rate());
        thread::sleep(seconds(2));
        let mut events = Events::default();
        let descriptors = keep.descriptors();
        let agent = keep.agent().expect("an agent");
        home.spoil();
        events.happens("kill, and no other comes up");
        send(agent, Signal::KILL);
        keep.must_say("queries are passed on to", seconds(10));
        events.happens("passed on");
        let asked = home.upstream.asked_for_hot();
        thread::sleep(seconds(5));
        assert!(home.upstream.asked_for_hot() > asked, "hits are passed on as well");
        home.configure("");
        events.happens("the next one comes up");
        keep.must_say("queries are its own again", seconds(15));
        home.wait_until_ready(&mut keep);
        events.happens("after");
        // The cache may have come, and a question of the watchdog's be on its way.
        wait_until("whom it passed on it lets go", seconds(5), || keep.descriptors() <= descriptors + 2);
        thread::sleep(seconds(2));
        let count = |name| home.admin.count(name, &[]) as u64;
        let [restarts, relayed] = ["nodens_restarts_total", "nodens_relayed_queries_total"].map(count);
        let seen = load.finish();
        eprint!("{}", seen.report("crash loop", &events));
        eprintln!("  {restarts} restarts, {relayed} queries passed on");
        seen.must_lose_what_was_in_flight_alone(&events, &events);
        assert!(seen.slowest_ms() <= bound_ms(1_000, 2_000), "{} ms", seen.slowest_ms());
        assert!(restarts >= 4, "{restarts} restarts");
        assert!(relayed >= rate() * 4, "{relayed} passed on in 5 s");
    });
}

/// Three that die young, of which the last one hangs first, so that more has come meanwhile than a server takes at once.
#[test]
fn what_has_waited_is_passed_on_at_a_pace_that_a_server_takes() {
    on_a_node(|| {
        let home = Home::new("watchdog: 3s");
        let mut keep = home.keep();
        home.wait_until_ready(&mut keep);
        let load = Load::start(home.listen(), rate());
        let mut events = Events::default();
        for (event, signal) in
            [("kill", Signal::KILL), ("another kill", Signal::KILL), ("stop", Signal::STOP)]
        {
            let agent = keep.agent_after(0);
            events.happens(event);
            send(agent, signal);
            home.wait_for_the_next(&mut keep, agent);
        }
        keep.must_say("queries are passed on to", seconds(1));
        thread::sleep(seconds(3));
        let seen = load.finish();
        eprint!("{}", seen.report("hang of the third that dies young", &events));
        seen.must_lose_what_was_in_flight_alone(&events, &events);
        assert!(seen.slowest_ms() <= 3_000 + bound_ms(200, 1_500), "{} ms", seen.slowest_ms());
    });
}
