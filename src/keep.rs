//! `nodens keep`: holds the sockets and runs the agent as its child, so that the agent's process can be replaced at any
//! moment without losing a query.
//!
//! It is to the agent what systemd is to a service, in little: it gives sockets, hears how the agent is doing, keeps
//! descriptors for the agent's next life, and starts it again. It reads no configuration (a child tells it the [`plan`]), and
//! waits in one place for one of few things; what it holds does not grow. The agent is killed when it hangs
//! ([`watchdog`]), queries go past it when it does not come up ([`relay`]), and the next `keep` takes all of it over
//! ([`handover`]).

mod child;
mod handover;
mod plan;
mod relay;
mod watchdog;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Signal;
use socket2::{SockRef, Socket, Type};

use crate::parent::{self, CACHE, SOCKET};
use crate::serve::socket::{self, Manner};
use crate::sys;
use child::{Child, Ended};
use handover::{DRAIN, Door, GONE, Previous, STANDBY, Wish};
pub use plan::Plan;
use plan::Refused;
use relay::{Relay, Sockets};
use watchdog::Watchdog;

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
/// How long the child of a successor may take to be ready; it waits up to 10 s for an upstream.
const TAKE_OVER: Duration = Duration::from_secs(30);
/// How long a child may take to write its cache down.
const WRITE: Duration = Duration::from_secs(1);
/// Descriptors that are kept for the child. All of them go into one message (unix(7), SCM_MAX_FD).
const HELD: usize = 250;
/// EX_CONFIG of sysexits.h.
const BAD_CONFIG: u8 = 78;
/// The pause after a failure of the system that should not be, such as no memory for a process.
const TROUBLE: Duration = Duration::from_millis(500);
/// Visitors at a time: a successor, and those who have been replaced and wait.
const VISITORS: usize = 8;

/// A descriptor that outlives the child.
#[derive(Debug)]
struct Held {
    name: String,
    descriptor: OwnedFd,
}

impl Held {
    fn socket(&self) -> Option<(Type, SocketAddr)> {
        parent::bound(&SockRef::from(&self.descriptor)).filter(|_| self.name != CACHE)
    }
}

/// What happens.
#[derive(Debug)]
enum State {
    /// The child runs.
    Running(Child),
    /// It was told to end, and is killed if it has not by then. A successor waits for it, or nobody.
    Ending(Child, Instant, Option<Socket>),
    /// It is started then.
    Pausing(Instant),
    /// A successor does the work.
    Standby(Socket),
}

/// Somebody at the door, who may be a successor.
#[derive(Debug)]
struct Visitor {
    socket: Socket,
    /// It gets everything as soon as the child has written its cache down, and at the latest then.
    waits: Option<Instant>,
}

struct Keep {
    plan: Plan,
    arguments: Vec<OsString>,
    held: Vec<Held>,
    state: State,
    /// The child's first `READY=1` has come.
    ready: bool,
    /// Young deaths in a row.
    young: u32,
    restarts: u64,
    passed: u64,
    watchdog: Watchdog,
    relay: Option<Relay>,
    door: Option<Door>,
    visitors: Vec<Visitor>,
    /// Whom we take over from, and until when.
    previous: Option<(Previous, Instant)>,
}

/// Keeps an agent with these arguments until it is told to end.
pub fn keep(arguments: Vec<OsString>) -> ExitCode {
    let plan = match plan::ask(&arguments) {
        Ok(plan) => plan,
        Err(Refused::By(code)) => return code,
        Err(Refused::Because(error)) => return fail(&format!("its plan cannot be had: {error}")),
    };
    let sockets: usize = plan.places.iter().map(|(_, workers)| workers + 1).sum();
    if sockets >= HELD {
        say(&format!(
            "{sockets} sockets are more than {HELD}: fewer workers, or fewer addresses to listen at"
        ));
        return ExitCode::from(BAD_CONFIG);
    }
    match Keep::new(plan, arguments).run() {
        Ok(code) => code,
        Err(error) => fail(&error.to_string()),
    }
}

impl Keep {
    fn new(plan: Plan, arguments: Vec<OsString>) -> Self {
        let watchdog = Watchdog::new(None, plan.watchdog);
        Self {
            plan,
            arguments,
            held: Vec::new(),
            state: State::Pausing(Instant::now()),
            ready: false,
            young: 0,
            restarts: 0,
            passed: 0,
            watchdog,
            relay: None,
            door: None,
            visitors: Vec::new(),
            previous: None,
        }
    }

    fn run(mut self) -> io::Result<ExitCode> {
        use Signal as S;
        let signals = sys::signals(&[S::CHILD, S::TERM, S::INT, S::HUP, S::USR1].map(S::as_raw))?;
        self.take_over();
        self.open_missing();
        if self.previous.is_none() {
            self.open_door();
        }
        loop {
            if let Some(code) = self.act() {
                return Ok(code);
            }
            if let Err(error) = self.wait(&signals) {
                say(&format!("waiting fails: {error}"));
                std::thread::sleep(TROUBLE);
            }
            while let Some(number) = sys::next_signal(&signals) {
                let ends = match Signal::from_named_raw(number) {
                    Some(S::TERM | S::INT) => self.end(),
                    Some(signal @ (S::HUP | S::USR1)) => self.pass_on(signal),
                    _ => None,
                };
                if let Some(code) = ends {
                    return Ok(code);
                }
            }
            self.hear();
            self.receive_visitors();
            if let Some(code) = child::reap().iter().find_map(|ended| self.buried(ended)) {
                return Ok(code);
            }
        }
    }

    /// Takes what a previous `keep` holds, if there is one.
    fn take_over(&mut self) {
        let Some(previous) = Previous::find(&self.plan.handover) else { return };
        match previous.receive() {
            Ok(held) => {
                self.held = held.into_iter().filter_map(|held| self.wanted(held)).collect();
                say(&format!("taking over {} descriptors from the previous one", self.held.len()));
                self.previous = Some((previous, Instant::now() + TAKE_OVER));
            }
            Err(error) => say(&format!("the previous one gives nothing, and goes on beside us: {error}")),
        }
    }

    /// Sockets that the plan has, and a copy of the cache: the original is the previous agent's to write.
    fn wanted(&self, held: Held) -> Option<Held> {
        if held.name == CACHE {
            return copy(&held.descriptor).ok().map(|descriptor| Held { name: held.name, descriptor });
        }
        let at = held.socket()?.1;
        self.plan.places.iter().any(|(place, _)| place.addr == at).then_some(held)
    }

    /// Opens what the plan has and nobody gave us. What cannot be opened is left to the child, which tries again and
    /// gives it to us.
    fn open_missing(&mut self) {
        let there: Vec<SocketAddr> = self.held.iter().filter_map(Held::socket).map(|(_, at)| at).collect();
        for &(place, workers) in self.plan.places.iter().filter(|(place, _)| !there.contains(&place.addr)) {
            let manner = Manner { workers, buffer: self.plan.receive_buffer, early: true };
            match socket::open(place, manner) {
                Ok(listeners) => {
                    let udp = listeners.udp.into_iter().map(OwnedFd::from);
                    let all = udp.chain([OwnedFd::from(listeners.tcp)]);
                    self.held.extend(all.map(|descriptor| Held { name: SOCKET.to_owned(), descriptor }));
                }
                Err(error) => say(&format!("{error}: left to the agent")),
            }
        }
    }

    fn open_door(&mut self) {
        match Door::open(&self.plan.handover) {
            Ok(door) => self.door = Some(door),
            Err(error) => {
                let path = self.plan.handover.display();
                say(&format!("the next one will lose queries: keep.handover: {path}: {error}"));
            }
        }
    }

    /// Does what is due.
    fn act(&mut self) -> Option<ExitCode> {
        let now = Instant::now();
        match &self.state {
            State::Pausing(until) if now >= *until => self.start(),
            State::Ending(child, until, _) if now >= *until => child.signal(Signal::KILL),
            State::Running(child) if now >= self.watchdog.due() => {
                let udp = self
                    .held
                    .iter()
                    .filter(|held| held.socket().is_some_and(|(kind, _)| kind == Type::DGRAM));
                if let Some(why) = self.watchdog.look(udp.map(|held| &held.descriptor)) {
                    say(&format!("the agent {} {why}: it is killed", child.pid()));
                    child.signal(Signal::KILL);
                }
            }
            _ => {}
        }
        if self.previous.as_ref().is_some_and(|(_, until)| !self.ready && now >= *until) {
            self.pass_on(Signal::KILL);
            return Some(fail("the agent is not ready: the previous one goes on"));
        }
        let waiting =
            self.visitors.iter_mut().filter(|visitor| visitor.waits.is_some_and(|until| now >= until));
        for visitor in waiting {
            visitor.waits = None;
            if let Err(error) = handover::give(&visitor.socket, &self.held) {
                say(&format!("the next one gets nothing: {error}"));
            }
        }
        None
    }

    fn start(&mut self) {
        let passed = self.passed + self.relay.as_ref().map_or(0, Relay::passed);
        let child = match Child::start(&self.arguments, &self.held, &self.plan, (self.restarts, passed)) {
            Ok(child) => child,
            Err(error) => {
                say(&format!("the agent cannot be started: {error}"));
                self.state = State::Pausing(Instant::now() + TROUBLE);
                return self.begin_to_relay();
            }
        };
        say(&format!("the agent runs as {}", child.pid()));
        let first =
            self.plan.places.iter().find(|(place, _)| !place.intercepted).map(|(place, _)| place.addr);
        self.watchdog = Watchdog::new(first, self.plan.watchdog);
        self.state = State::Running(child);
        self.ready = false;
    }

    /// Waits until something is due or happens.
    fn wait(&self, signals: &OwnedFd) -> io::Result<()> {
        let mut due: Vec<Instant> = self.visitors.iter().filter_map(|visitor| visitor.waits).collect();
        let mut events = vec![PollFd::new(signals, PollFlags::IN)];
        match &self.state {
            State::Running(child) => {
                due.push(self.watchdog.due());
                events.push(PollFd::new(child.channel(), PollFlags::IN));
            }
            State::Ending(_, until, _) | State::Pausing(until) => due.push(*until),
            State::Standby(successor) => events.push(PollFd::new(successor, PollFlags::IN)),
        }
        if let Some((previous, until)) = &self.previous {
            due.extend(Some(*until).filter(|_| !self.ready));
            events.push(PollFd::new(&previous.socket, PollFlags::IN));
        }
        events.extend(self.visitors.iter().map(|visitor| PollFd::new(&visitor.socket, PollFlags::IN)));
        let door = self.door.as_ref().filter(|_| self.visitors.len() < VISITORS).map(Door::descriptor);
        events.extend(door.iter().map(|door| PollFd::new(door, PollFlags::IN)));
        let left = due.into_iter().min().map(|due| due.saturating_duration_since(Instant::now()));
        let left =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut events, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn pass_on(&self, signal: Signal) -> Option<ExitCode> {
        if let State::Running(child) = &self.state {
            child.signal(signal);
        }
        None
    }

    /// Has the child leave. Where there is none, we end at once.
    fn end(&mut self) -> Option<ExitCode> {
        let now = Instant::now();
        match std::mem::replace(&mut self.state, State::Pausing(now)) {
            State::Running(child) => {
                child.signal(Signal::TERM);
                self.state = State::Ending(child, now + LEAVE, None);
                None
            }
            // Whether or not somebody else is there already, we are not to wait for our turn.
            State::Ending(child, until, _) => {
                self.state = State::Ending(child, until, None);
                None
            }
            State::Pausing(_) | State::Standby(_) => Some(ExitCode::SUCCESS),
        }
    }

    /// What comes after a process that has ended; the exit code, where nothing does.
    fn buried(&mut self, ended: &Ended) -> Option<ExitCode> {
        let now = Instant::now();
        match std::mem::replace(&mut self.state, State::Pausing(now)) {
            State::Ending(child, _, successor) if child.pid() == ended.pid => match successor {
                None => Some(ended.exit_code()),
                Some(successor) => self.replaced(successor),
            },
            State::Running(child) if child.pid() == ended.pid => {
                say(&format!("the agent {ended} after {:.1} s", child.age().as_secs_f64()));
                if self.previous.is_some() && !self.ready {
                    return Some(fail("the previous one goes on"));
                }
                self.young = if child.age() < YOUNG { self.young + 1 } else { 0 };
                self.restarts += 1;
                if let Some(doublings) = self.young.checked_sub(TRIES) {
                    let pause = FIRST_PAUSE * 2u32.saturating_pow(doublings.min(16));
                    self.state = State::Pausing(now + pause.min(LONGEST_PAUSE));
                    self.begin_to_relay();
                }
                None
            }
            // As process 1 of a container we inherit everybody's orphans.
            other => {
                self.state = other;
                None
            }
        }
    }

    fn begin_to_relay(&mut self) {
        if self.relay.is_some() || self.plan.relay.is_empty() {
            return;
        }
        let mut sockets = Sockets { udp: Vec::new(), tcp: Vec::new() };
        for held in &self.held {
            match (held.socket(), held.descriptor.try_clone()) {
                (Some((Type::DGRAM, _)), Ok(copy)) => sockets.udp.push(copy.into()),
                (Some((Type::STREAM, _)), Ok(copy)) => sockets.tcp.push(copy.into()),
                _ => {}
            }
        }
        match Relay::start(sockets, self.plan.relay.clone()) {
            Ok(relay) => {
                say(&format!("the agent does not stay up: queries are passed on to {:?}", self.plan.relay));
                self.relay = Some(relay);
            }
            Err(error) => {
                say(&format!("the agent does not stay up, and queries cannot be passed on: {error}"))
            }
        }
    }

    /// Takes what the child says.
    fn hear(&mut self) {
        loop {
            let State::Running(child) = &self.state else { return };
            let Ok((words, descriptors)) = parent::receive(child.channel()) else { return };
            match words.as_str() {
                parent::WATCHDOG => self.watchdog.heard(),
                parent::READY if !self.ready => self.is_ready(),
                parent::WRITTEN => {
                    let now = Instant::now();
                    self.visitors
                        .iter_mut()
                        .filter_map(|visitor| visitor.waits.as_mut())
                        .for_each(|until| *until = now);
                }
                _ if words.starts_with(parent::STORE) => self.store(&words, descriptors),
                _ => {}
            }
        }
    }

    fn is_ready(&mut self) {
        self.ready = true;
        if let Some(relay) = self.relay.take() {
            self.passed += relay.passed();
            say("the agent is up: queries are its own again");
        }
        parent::tell_systemd(parent::READY);
        if let Some((previous, _)) = &mut self.previous {
            say("the agent is ready, and the previous one may go");
            if previous.say(DRAIN).is_err() {
                say("the previous one has gone already");
            }
        }
        if self.door.is_none() {
            self.open_door();
        }
    }

    fn store(&mut self, words: &str, descriptors: Vec<OwnedFd>) {
        let name = parent::fields(words).get("FDNAME").copied().unwrap_or(SOCKET).to_owned();
        if name == CACHE {
            self.held.retain(|held| held.name != CACHE);
        }
        let room = HELD.saturating_sub(self.held.len());
        let new = descriptors.into_iter().take(room);
        self.held.extend(new.map(|descriptor| Held { name: name.clone(), descriptor }));
    }

    /// Lets visitors in, and does what they wish.
    fn receive_visitors(&mut self) {
        if let State::Standby(successor) = &self.state
            && handover::wish(successor).is_some()
        {
            self.successor_has_gone();
        }
        // It stays connected: whoever waits as a standby learns by that when we end.
        if let Some((previous, _)) = &self.previous
            && handover::wish(&previous.socket) == Some(Wish::Gone)
        {
            self.previous = None;
        }
        while self.visitors.len() < VISITORS
            && let Some(socket) = self.door.as_ref().and_then(Door::welcome)
        {
            self.visitors.push(Visitor { socket, waits: None });
        }
        for at in (0..self.visitors.len()).rev() {
            match handover::wish(&self.visitors[at].socket) {
                None | Some(Wish::Standby) => {}
                Some(Wish::Everything) => {
                    let is_written = match &self.state {
                        State::Running(child) => child.tell(parent::WRITE).is_ok(),
                        _ => false,
                    };
                    let until = Instant::now() + if is_written { WRITE } else { Duration::ZERO };
                    self.visitors[at].waits = Some(until);
                }
                Some(Wish::Drain) => {
                    let successor = self.visitors.swap_remove(at).socket;
                    self.drain(successor);
                }
                // What it had been given it has lost, and we have never stopped.
                Some(Wish::Gone | Wish::Odd) => drop(self.visitors.swap_remove(at)),
            }
        }
    }

    fn drain(&mut self, successor: Socket) {
        let now = Instant::now();
        say("the next one is ready: the agent leaves");
        self.relay = None;
        self.door = None;
        self.state = match std::mem::replace(&mut self.state, State::Pausing(now)) {
            State::Running(child) | State::Ending(child, ..) => {
                let _ = child.tell(parent::REPLACED);
                State::Ending(child, now + LEAVE, Some(successor))
            }
            State::Pausing(_) | State::Standby(_) => State::Standby(successor),
        };
    }

    /// Our agent has left, and another one works. In a container, of which we are process 1, our end would only have us
    /// started again: so we wait, without anything in hand, until we are told to end or are needed again.
    fn replaced(&mut self, successor: Socket) -> Option<ExitCode> {
        let _ = parent::send(&successor, GONE, &[]);
        self.held.clear();
        if std::process::id() != 1 {
            return Some(ExitCode::SUCCESS);
        }
        self.state = State::Standby(successor);
        None
    }

    fn successor_has_gone(&mut self) {
        // It may have been replaced in its turn.
        if let Some(next) = Previous::find(&self.plan.handover)
            && next.say(STANDBY).is_ok()
        {
            self.state = State::Standby(next.socket);
            return;
        }
        say("the next one has gone: the agent is started again");
        self.state = State::Pausing(Instant::now());
        self.open_missing();
        self.open_door();
    }
}

/// A copy of what is in a memory, in one of our own.
fn copy(memory: &OwnedFd) -> io::Result<OwnedFd> {
    let from = File::from(memory.try_clone()?);
    let to = File::from(memfd_create(CACHE, MemfdFlags::CLOEXEC)?);
    let (mut chunk, mut at) = (vec![0; 64 * 1024], 0);
    loop {
        match from.read_at(&mut chunk, at)? {
            0 => return Ok(to.into()),
            length => {
                to.write_all_at(&chunk[..length], at)?;
                at += length as u64;
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
