//! One case over many seeds: what it says of each, and what it asks of all.

use std::cell::RefCell;
use std::env;
use std::fmt::{Debug, Display};
use std::time::Duration;

use crate::load::{Figures, ms};
use crate::world::{TICK, World, quietly};

/// The targets that a case has missed, by seed.
pub(crate) struct Case {
    name: &'static str,
    seed: u64,
    missed: RefCell<Vec<String>>,
}

/// Runs a case for as many seeds as `POOL_SEEDS` says, or for `default`. `story` says what it sees, and asks for what must
/// hold.
pub(crate) fn seeds(default: u64, name: &'static str, story: impl AsyncFn(u64, &Case)) {
    let number = |variable, default| match env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not `{text}`")),
        Err(_) => default,
    };
    let (seeds, first) = (number("POOL_SEEDS", default), number("POOL_FIRST_SEED", 1));
    println!("{name}: {seeds} seeds from {first}");
    let mut missed = Vec::new();
    for seed in first..first + seeds {
        let case = Case { name, seed, missed: RefCell::default() };
        quietly(story(seed, &case));
        missed.extend(case.missed.into_inner());
    }
    assert!(missed.is_empty(), "{} missed:\n  {}", missed.len(), missed.join("\n  "));
}

/// The same for so few seeds that all cases together take seconds.
pub(crate) fn each_seed(name: &'static str, story: impl AsyncFn(u64, &Case)) {
    seeds(2, name, story);
}

impl Case {
    /// Prints what was measured.
    pub(crate) fn say(&self, what: &str, figures: impl Display) {
        println!("  {} {:3} {what:<28} {figures}", self.name, self.seed);
    }

    /// What must hold.
    pub(crate) fn must(&self, holds: bool, what: impl Display) {
        if !holds {
            let text = format!("{} seed {}: {what}", self.name, self.seed);
            println!("  MISSED {text}");
            self.missed.borrow_mut().push(text);
        }
    }

    /// A figure that may not be over a bound.
    pub(crate) fn at_most<T: PartialOrd + Debug>(&self, what: &str, is: T, bound: T) {
        self.must(is <= bound, format!("{what}: {is:.1?}, must be at most {bound:.1?}"));
    }

    pub(crate) fn none_failed(&self, what: &str, figures: &Figures) {
        self.must(figures.count() > 0, format!("{what}: no query at all"));
        self.must(figures.failed == 0, format!("{what}: {} of {} failed", figures.failed, figures.count()));
    }

    /// The p99 of some time against that of a quiet one, which the clock rounds to milliseconds.
    pub(crate) fn is_quiet_again(&self, what: &str, is: &Figures, quiet: &Figures, times: u32) {
        self.none_failed(what, is);
        self.at_most(&format!("{what}: p99, ms"), ms(is.p99()), ms(quiet.p99() * times));
    }

    /// Prints what each second was like, if it is asked for or something was missed; whether it was.
    pub(crate) fn tell(&self, world: &World) -> bool {
        let tells = env::var_os("POOL_SECONDS").is_some() || !self.missed.borrow().is_empty();
        if tells {
            print!("  {} {}\n{}", self.name, self.seed, world.by_second());
        }
        tells
    }

    /// What must hold at the end of every case.
    pub(crate) async fn ends_well(&self, world: &World) {
        world.settle().await;
        self.must(world.unended() == 0, format!("{} queries without an end", world.unended()));
        self.must(world.mixed_up() == 0, format!("{} answers are another name's", world.mixed_up()));
        let deadline = world.pool.definition().timeout + TICK;
        let longest = world.records().iter().map(|record| record.took).max().unwrap_or_default();
        self.at_most("the longest query", longest, deadline);
        world.wait(Duration::from_millis(5)).await;
        self.must(world.in_flight() == 0, format!("{} left in flight", world.in_flight()));
        let max = world.pool.definition().connections.max;
        for server in world.pool.servers().iter() {
            self.at_most("connections to one server", server.open(), max);
        }
    }
}
