//! `nodens keep`: holds the sockets and runs the agent as its child, so that the agent's process can be replaced at any
//! moment without losing a query.
//!
//! It is to the agent what systemd is to a service, in little: it gives sockets, hears how the agent is doing, keeps
//! descriptors for the agent's next life, and starts it again. It reads no configuration (a child tells it the `plan`), and
//! waits in one place for one of few things; what it holds does not grow. The agent is killed when it hangs
//! (`watchdog`), queries go past it when it does not come up (`relay`), and the next `keep` takes all of it over
//! (`handover`).

mod child;
mod handover;
mod held;
mod plan;
mod relay;
mod visitors;
mod watchdog;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use socket2::Socket;

use crate::parent;
use crate::sys;
use child::{Child, Ended};
use handover::{DRAIN, GONE, Previous, STANDBY, Wish};
use held::Held;
pub use plan::Plan;
use plan::Refused;
use relay::Relay;
use visitors::Visitors;
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
/// EX_CONFIG of sysexits.h.
const BAD_CONFIG: u8 = 78;
/// The pause after a failure of the system that should not be, such as no memory for a process.
const TROUBLE: Duration = Duration::from_millis(500);

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
    visitors: Visitors,
    /// Whom we took over from, as long as it is there.
    previous: Option<Previous>,
    /// We are about to take over, and give up then.
    taking_over: Option<Instant>,
    /// The child has spoken, and so hears signals.
    listens: bool,
    /// Signals for it, until it does.
    unheard: Vec<Signal>,
}

/// Keeps an agent with these arguments until it is told to end.
pub fn keep(arguments: Vec<OsString>) -> ExitCode {
    use Signal as S;
    sys::share_memory_among_threads();
    // Before anything takes time: none of them ends us half-way.
    let signals = match sys::signals(&[S::CHILD, S::TERM, S::INT, S::HUP, S::USR1].map(S::as_raw)) {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("signals cannot be heard: {error}")),
    };
    let plan = match plan::ask(&arguments) {
        Ok(plan) => plan,
        Err(Refused::By(code)) => return code,
        Err(Refused::Because(error)) => return fail(&format!("its plan cannot be had: {error}")),
    };
    let sockets: usize = plan.places.iter().map(|(_, workers)| workers + 1).sum();
    let most = held::MOST;
    if sockets >= most {
        say(&format!(
            "{sockets} sockets are more than {most}: fewer workers, or fewer addresses to listen at"
        ));
        return ExitCode::from(BAD_CONFIG);
    }
    match Keep::new(plan, arguments).run(&signals) {
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
            visitors: Visitors::default(),
            previous: None,
            taking_over: None,
            listens: false,
            unheard: Vec::new(),
        }
    }

    fn run(mut self, signals: &OwnedFd) -> io::Result<ExitCode> {
        use Signal as S;
        self.take_over()?;
        held::open_missing(&mut self.held, &self.plan);
        if self.previous.is_none() {
            self.visitors.open(&self.plan.handover);
        }
        loop {
            if let Some(code) = self.act() {
                return Ok(code);
            }
            if let Err(error) = self.wait(signals) {
                say(&format!("waiting fails: {error}"));
                std::thread::sleep(TROUBLE);
            }
            while let Some(number) = sys::next_signal(signals) {
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
            if let Some(code) = self.receive_visitors() {
                return Ok(code);
            }
            if let Some(code) = child::reap().iter().find_map(|ended| self.buried(ended)) {
                return Ok(code);
            }
        }
    }

    /// Takes what a previous `keep` holds, if there is one.
    ///
    /// # Errors
    /// When it gives nothing though it is there. Two that do not know of each other would lose queries.
    fn take_over(&mut self) -> io::Result<()> {
        let Some(previous) = Previous::find(&self.plan.handover) else { return Ok(()) };
        match previous.receive() {
            Ok(held) => {
                self.held = held::chosen(held, &self.plan);
                say(&format!("taking over {} descriptors from the previous one", self.held.len()));
                self.previous = Some(previous);
                self.taking_over = Some(Instant::now() + TAKE_OVER);
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                say("the previous one hangs: its agent may go on beside ours");
            }
            Err(_) if !handover::answers_again(&self.plan.handover) => {
                say("the previous one has ended meanwhile")
            }
            Err(error) => {
                let why = format!("the previous one goes on, and gives us nothing: {error}: end it first");
                return Err(io::Error::new(error.kind(), why));
            }
        }
        Ok(())
    }

    /// Does what is due.
    fn act(&mut self) -> Option<ExitCode> {
        let now = Instant::now();
        match &mut self.state {
            State::Pausing(until) if now >= *until => self.start(),
            State::Ending(child, until, _) if now >= *until => {
                child.signal(Signal::KILL);
                *until = now + TROUBLE; // its end may take its time
            }
            State::Running(child) if now >= self.watchdog.due() => {
                if let Some(why) = self.watchdog.look(held::udp(&self.held)) {
                    say(&format!("the agent {} {why}: it is killed", child.pid()));
                    child.signal(Signal::KILL);
                    // Its end is still to come, and nothing is to be found out any more.
                    self.watchdog = Watchdog::new(None, self.plan.watchdog);
                }
            }
            _ => {}
        }
        if self.taking_over.is_some_and(|until| now >= until) {
            if let State::Running(child) = &self.state {
                child.signal(Signal::KILL);
            }
            return Some(fail("the agent is not ready: the previous one goes on"));
        }
        self.visitors.serve(&self.held);
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
        (self.ready, self.listens) = (false, false);
    }

    /// Waits until something is due or happens.
    fn wait(&self, signals: &OwnedFd) -> io::Result<()> {
        let mut due: Vec<Instant> = self.visitors.due().into_iter().collect();
        let mut events = vec![PollFd::new(signals, PollFlags::IN)];
        match &self.state {
            State::Running(child) => {
                due.push(self.watchdog.due());
                events.push(PollFd::new(child.channel(), PollFlags::IN));
            }
            State::Ending(_, until, _) | State::Pausing(until) => due.push(*until),
            State::Standby(successor) => events.push(PollFd::new(successor, PollFlags::IN)),
        }
        due.extend(self.taking_over);
        if let Some(previous) = &self.previous {
            events.push(PollFd::new(&previous.socket, PollFlags::IN));
        }
        self.visitors.watch(&mut events);
        let left = due.into_iter().min().map(|due| due.saturating_duration_since(Instant::now()));
        let left =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut events, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A signal for the child, which gets it when it can hear it: before, it would end by it.
    fn pass_on(&mut self, signal: Signal) -> Option<ExitCode> {
        match &self.state {
            State::Running(child) if self.listens => child.signal(signal),
            State::Running(_) | State::Pausing(_) if !self.unheard.contains(&signal) => {
                self.unheard.push(signal)
            }
            _ => {}
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
                if self.taking_over.is_some() {
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
        if self.plan.relay.is_empty() {
            say(
                "the agent does not stay up, and no server of the first zone can be asked in plain DNS at an address",
            );
        }
        if self.relay.is_some() || self.plan.relay.is_empty() {
            return;
        }
        match Relay::start(held::copies(&self.held, &self.plan), &self.plan) {
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
            self.listens = true;
            self.unheard.drain(..).for_each(|signal| child.signal(signal));
            match words.as_str() {
                parent::WATCHDOG => self.watchdog.heard(),
                parent::READY if !self.ready => self.is_ready(),
                parent::WRITTEN => self.visitors.written(),
                _ if words.starts_with(parent::STORE) => held::store(&mut self.held, &words, descriptors),
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
        self.taking_over = None;
        if let Some(previous) = &self.previous {
            say("the agent is ready, and the previous one may go");
            if previous.say(DRAIN).is_err() {
                say("the previous one has gone already");
            }
        }
        self.visitors.open(&self.plan.handover);
    }

    /// Lets visitors in, and does what they wish.
    fn receive_visitors(&mut self) -> Option<ExitCode> {
        if let State::Standby(successor) = &self.state
            && handover::wish(successor).is_some()
        {
            self.successor_has_gone();
        }
        // It stays connected: whoever waits as a standby learns by that when we end.
        if let Some(previous) = &self.previous
            && handover::wish(&previous.socket) == Some(Wish::Gone)
        {
            // Nobody would go on if we gave up.
            (self.previous, self.taking_over) = (None, None);
            self.visitors.open(&self.plan.handover);
        }
        let state = &self.state;
        let successor = self.visitors.hear(|| match state {
            State::Running(child) => child.tell(parent::WRITE).is_ok(),
            _ => false,
        });
        successor.and_then(|successor| self.drain(successor))
    }

    fn drain(&mut self, successor: Socket) -> Option<ExitCode> {
        let now = Instant::now();
        say("the next one is ready: the agent leaves");
        self.relay = None;
        self.visitors.close();
        match std::mem::replace(&mut self.state, State::Pausing(now)) {
            State::Running(child) => {
                let _ = child.tell(parent::REPLACED);
                self.state = State::Ending(child, now + LEAVE, Some(successor));
                None
            }
            // It leaves already, and we with it.
            ending @ State::Ending(..) => {
                self.state = ending;
                None
            }
            State::Pausing(_) | State::Standby(_) => self.replaced(successor),
        }
    }

    /// Our agent has left, and another one works. In a container, of which we are process 1, our end would only have us
    /// started again: so we wait, without anything in hand, until we are told to end or are needed again.
    fn replaced(&mut self, successor: Socket) -> Option<ExitCode> {
        if handover::wish(&successor) == Some(Wish::Gone) {
            self.successor_has_gone();
            return None;
        }
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
        held::open_missing(&mut self.held, &self.plan);
        self.visitors.open(&self.plan.handover);
    }
}

fn fail(why: &str) -> ExitCode {
    say(why);
    ExitCode::FAILURE
}

/// A line in the log. The agent's own lines, in its own format, go to the same place. Where nobody takes it, it is lost: the
/// agent is worth more than a line.
fn say(what: &str) {
    let mut log = io::stderr();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A pipe that has room has room for a line (pipe(7), PIPE_BUF).
    let has_room = poll(&mut [PollFd::new(&log, PollFlags::OUT)], Some(&now)).is_ok_and(|ready| ready > 0);
    if has_room {
        let _ = io::Write::write_all(&mut log, format!("nodens keep: {what}\n").as_bytes());
    }
}
