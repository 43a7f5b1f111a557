//! Everything at once, in an order that a seed decides. `NEVER_SOAK` is for how many seconds, `NEVER_SEED` repeats a run.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Load;
use crate::home::{Home, Keep, send};
use crate::seen::{Events, now_us};
use crate::support::{number, on_a_node, rate, seconds, wait_until};

/// Seconds, where nothing else is said.
const SHORT: u64 = 120;

/// A sequence that looks random (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Handover,
    Kill,
    Stop,
    Reload,
    FailingSuccessor,
    KilledSuccessor,
    CrashLoop,
}

/// As often as they stand here.
const EVENTS: [Event; 12] = [
    Event::Handover,
    Event::Handover,
    Event::Handover,
    Event::Kill,
    Event::Kill,
    Event::Stop,
    Event::Reload,
    Event::Reload,
    Event::Reload,
    Event::FailingSuccessor,
    Event::KilledSuccessor,
    Event::CrashLoop,
];

struct Soak {
    keep: Keep,
    // After what runs in it: fields are dropped in this order.
    home: Home,
    dice: Dice,
    /// When something was lost that could not be helped.
    excuses: Events,
}

impl Soak {
    fn do_it(&mut self, event: Event) {
        match event {
            Event::Handover => {
                let next = self.home.keep();
                next.must_say("the previous one may go", seconds(20));
                if self.dice.roll(2) == 0 && self.keep.process.ended().is_none() {
                    self.keep.signal(Signal::TERM);
                }
                self.keep.must_end(seconds(10));
                self.keep = next;
            }
            Event::Kill => self.end_the_agent(Signal::KILL),
            Event::Stop => self.end_the_agent(Signal::STOP),
            Event::Reload => {
                let ttl = 1 + self.dice.roll(30);
                self.home.configure(&format!("    cache: {{ negative_max_ttl: {ttl}s }}\n"));
                self.keep.signal(Signal::HUP);
            }
            Event::FailingSuccessor => {
                self.home.spoil();
                let ended = self.home.keep().process.wait(seconds(20));
                self.home.configure("");
                assert!(ended.is_some_and(|status| !status.success()), "{ended:?}");
            }
            Event::KilledSuccessor => {
                let mut next = self.home.keep();
                next.must_say("taking over", seconds(15));
                thread::sleep(Duration::from_millis(self.dice.roll(20)));
                // Unless it was quicker than that.
                if !next.process.output().contains("may go") {
                    next.signal(Signal::STOP);
                }
                if next.process.output().contains("may go") {
                    next.signal(Signal::CONT);
                    self.keep.must_end(seconds(10));
                    self.keep = next;
                } else {
                    next.signal(Signal::KILL);
                    assert!(next.process.wait(seconds(5)).is_some());
                }
            }
            Event::CrashLoop => {
                self.home.spoil();
                self.excuses.happens("kill");
                send(self.keep.agent().expect("an agent"), Signal::KILL);
                thread::sleep(Duration::from_millis(500 + self.dice.roll(1_500)));
                self.home.configure("");
            }
        }
        self.wait_until_ready();
    }

    fn end_the_agent(&mut self, signal: Signal) {
        let agent = self.keep.agent().expect("an agent");
        self.excuses.happens("kill");
        send(agent, signal);
        self.keep.agent_after(agent);
    }

    fn wait_until_ready(&mut self) {
        let Self { home, keep, .. } = self;
        wait_until("an agent is ready", seconds(20), || {
            keep.agent().is_some() && home.admin.get("/ready").is_some_and(|(code, _)| code == 200)
        });
    }

    /// Descriptors of keep, and of its agent; memory of both, KiB.
    fn size(&self) -> ([usize; 2], [u64; 2]) {
        let agent = self.keep.agent_after(0);
        let descriptors = [self.keep.descriptors(), Keep::descriptors_of(agent)];
        (descriptors, [self.keep.memory()[1], Keep::memory_of(agent)[1]])
    }
}

#[test]
fn a_random_mix_of_events_loses_only_what_is_in_flight_at_kills() {
    on_a_node(|| {
        let seed = number("NEVER_SEED").unwrap_or_else(now_us);
        let length = seconds(number("NEVER_SOAK").unwrap_or(SHORT));
        eprintln!("soak for {length:?}: NEVER_SEED={seed}");
        let home = Home::new("");
        let mut keep = home.keep();
        home.wait_until_ready(&mut keep);
        let load = Load::start(home.listen(), rate());
        thread::sleep(seconds(2));
        let mut soak = Soak { keep, home, dice: Dice(seed), excuses: Events::default() };
        let mut events = Events::default();
        let (before, began) = (soak.size(), Instant::now());
        while began.elapsed() < length {
            let at = soak.dice.roll(EVENTS.len() as u64) as usize;
            events.happens(format!("{:?}", EVENTS[at]));
            soak.do_it(EVENTS[at]);
            thread::sleep(Duration::from_millis(200 + soak.dice.roll(2_000)));
        }
        // Those who were replaced have left, and connections of kills are closed.
        thread::sleep(seconds(2));
        let after = soak.size();
        let seen = load.finish();
        eprint!("{}", seen.report("soak", &events));
        eprintln!("  descriptors of keep and agent, their RssAnon in KiB: {before:?}, then {after:?}");
        seen.must_lose_what_was_in_flight_alone(&soak.excuses, &events);
        // The cache may have come, and a question of the watchdog's be on its way.
        assert!(after.0[0] <= before.0[0] + 3, "descriptors of keep: {before:?} {after:?}");
        assert!(after.0[1] <= before.0[1] + 16, "descriptors of the agent: {before:?} {after:?}");
        assert!(after.1[0] <= before.1[0] + 512, "memory of keep: {before:?} {after:?}");
    });
}
