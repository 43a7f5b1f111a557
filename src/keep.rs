//! `nodens keep`: holds the sockets and runs the agent as its child, so that the agent's process can be replaced at any
//! moment without losing a query.
//!
//! It is to the agent what systemd is to a service, in little: it gives sockets, hears how the agent is doing, keeps
//! descriptors for the agent's next life, and starts it again. It reads no configuration (a child tells it the [`plan`]), and
//! has one thread, which waits for one of few things at a time, and no memory that grows.

mod child;
mod plan;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::parent::{self, CACHE, SOCKET};
use crate::serve::socket::{self, Manner};
use crate::sys;
use child::{Child, Ended};
pub use plan::Plan;
use plan::Refused;

/// A child that has lived this long has come up; one that dies sooner died young.
const YOUNG: Duration = Duration::from_secs(10);
/// Young deaths in a row before there is a pause.
const TRIES: u32 = 3;
/// The first pause; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Whoever mends it does not want to wait for us.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a child may take to leave: its own time to drain, and some.
const LEAVE: Duration = Duration::from_secs(7);
/// Descriptors that are kept for the child.
const HELD: usize = 250;

/// A descriptor that outlives the child.
#[derive(Debug)]
struct Held {
    name: String,
    descriptor: OwnedFd,
}

/// What happens next.
#[derive(Debug)]
enum State {
    /// The child runs.
    Running(Child),
    /// It was told to end, and is killed if it has not by then.
    Ending(Child, Instant),
    /// It is started then.
    Pausing(Instant),
}

struct Keep {
    arguments: Vec<OsString>,
    held: Vec<Held>,
    state: State,
    /// Young deaths in a row.
    young: u32,
    restarts: u64,
}

/// Keeps an agent with these arguments until it is told to end.
pub fn keep(arguments: Vec<OsString>) -> ExitCode {
    let plan = match plan::ask(&arguments) {
        Ok(plan) => plan,
        Err(Refused::By(code)) => return code,
        Err(Refused::Because(error)) => return fail(&format!("its plan cannot be had: {error}")),
    };
    match run(&plan, arguments) {
        Ok(code) => code,
        Err(error) => fail(&error.to_string()),
    }
}

fn run(plan: &Plan, arguments: Vec<OsString>) -> io::Result<ExitCode> {
    use Signal as S;
    let numbers = [S::CHILD, S::TERM, S::INT, S::HUP, S::USR1].map(S::as_raw);
    let signals = sys::signals(&numbers)?;
    let held = open(plan);
    say(&format!("holding {} sockets", held.len()));
    let state = State::Pausing(Instant::now());
    let mut keep = Keep { arguments, held, state, young: 0, restarts: 0 };
    loop {
        keep.act()?;
        keep.wait(&signals)?;
        while let Some(number) = sys::next_signal(&signals) {
            match Signal::from_named_raw(number) {
                Some(S::TERM | S::INT) => keep.end(),
                Some(S::HUP) => keep.pass_on(S::HUP),
                Some(S::USR1) => keep.pass_on(S::USR1),
                _ => {}
            }
        }
        for ended in child::reap() {
            if let Some(code) = keep.buried(&ended) {
                return Ok(code);
            }
        }
        keep.hear();
    }
}

/// The sockets of the plan. One that cannot be opened is left to the child, which tries again and tells.
fn open(plan: &Plan) -> Vec<Held> {
    let mut held = Vec::new();
    for &(place, workers) in &plan.places {
        let manner = Manner { workers, buffer: plan.receive_buffer, early: true };
        match socket::open(place, manner) {
            Ok(listeners) => {
                let udp = listeners.udp.into_iter().map(OwnedFd::from);
                let all = udp.chain([OwnedFd::from(listeners.tcp)]);
                held.extend(all.map(|descriptor| Held { name: SOCKET.to_owned(), descriptor }));
            }
            Err(error) => say(&format!("{error}: left to the agent")),
        }
    }
    held
}

impl Keep {
    /// Does what is due.
    fn act(&mut self) -> io::Result<()> {
        match &self.state {
            State::Pausing(until) if Instant::now() >= *until => {
                let child = Child::start(&self.arguments, &self.held, self.restarts)?;
                say(&format!("the agent runs as {}", child.pid()));
                self.state = State::Running(child);
            }
            State::Ending(child, until) if Instant::now() >= *until => child.signal(Signal::KILL),
            _ => {}
        }
        Ok(())
    }

    /// Waits until something is due or happens.
    fn wait(&self, signals: &OwnedFd) -> io::Result<()> {
        let due = match &self.state {
            State::Running(_) => None,
            State::Ending(_, until) | State::Pausing(until) => Some(*until),
        };
        let mut events = vec![PollFd::new(signals, PollFlags::IN)];
        if let State::Running(child) | State::Ending(child, _) = &self.state {
            events.push(PollFd::new(child.channel(), PollFlags::IN));
        }
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let left =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut events, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn pass_on(&self, signal: Signal) {
        if let State::Running(child) = &self.state {
            child.signal(signal);
        }
    }

    /// Has the child leave. Without a child there is nothing to wait for: see [`Keep::buried`].
    fn end(&mut self) {
        let now = Instant::now();
        self.state = match std::mem::replace(&mut self.state, State::Pausing(now)) {
            State::Running(child) => {
                child.signal(Signal::TERM);
                State::Ending(child, now + LEAVE)
            }
            other => other,
        };
    }

    /// What comes after a process that has ended; the exit code, where nothing does.
    fn buried(&mut self, ended: &Ended) -> Option<ExitCode> {
        match &self.state {
            State::Ending(child, _) if child.pid() == ended.pid => return Some(ended.exit_code()),
            State::Running(child) if child.pid() == ended.pid => {
                say(&format!("the agent {ended} after {:.1} s", child.age().as_secs_f64()));
                self.young = if child.age() < YOUNG { self.young + 1 } else { 0 };
            }
            // As process 1 of a container we inherit everybody's orphans.
            _ => return None,
        }
        self.restarts += 1;
        let pause = match self.young.checked_sub(TRIES) {
            None => Duration::ZERO,
            Some(doublings) => (FIRST_PAUSE * 2u32.saturating_pow(doublings)).min(LONGEST_PAUSE),
        };
        self.state = State::Pausing(Instant::now() + pause);
        None
    }

    /// Takes what the child says.
    fn hear(&mut self) {
        let State::Running(child) = &self.state else { return };
        while let Ok((words, descriptors)) = parent::receive(&child.channel()) {
            let fields = parent::fields(&words);
            if fields.contains_key("FDSTORE") {
                let name = fields.get("FDNAME").copied().unwrap_or("stored");
                if name == CACHE {
                    self.held.retain(|held| held.name != CACHE);
                }
                let room = HELD.saturating_sub(self.held.len());
                let new = descriptors.into_iter().take(room);
                self.held.extend(new.map(|descriptor| Held { name: name.to_owned(), descriptor }));
            }
        }
    }
}

fn fail(why: &str) -> ExitCode {
    say(why);
    ExitCode::FAILURE
}

/// A line in the log. The agent's own lines, in its own format, go to the same place.
fn say(what: &str) {
    eprintln!("nodens keep: {what}");
}
