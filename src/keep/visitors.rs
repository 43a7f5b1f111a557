//! Those who come to the handover socket: a successor, and predecessors that wait for our end.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use socket2::Socket;

use super::handover::{self, Door, PATIENCE, Wish};
use super::held::Held;
use super::say;

/// Visitors at a time.
const MOST: usize = 8;
/// How long a child may take to write its cache down.
const WRITE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Visitor {
    socket: Socket,
    /// It has said something by then, or it goes.
    speaks: Option<Instant>,
    /// It gets everything as soon as the child has written its cache down, and at the latest then.
    waits: Option<Instant>,
    /// It has everything, and takes over or goes.
    takes_over: bool,
}

/// The door, and those who have come in.
#[derive(Debug, Default)]
pub(super) struct Visitors {
    door: Option<Door>,
    inside: Vec<Visitor>,
}

impl Visitors {
    /// Lets visitors in from now on.
    pub(super) fn open(&mut self, path: &Path) {
        if self.door.is_some() {
            return;
        }
        match Door::open(path) {
            Ok(door) => self.door = Some(door),
            Err(error) => {
                say(&format!("the next one will lose queries: keep.handover: {}: {error}", path.display()));
            }
        }
    }

    /// Lets nobody else in.
    pub(super) fn close(&mut self) {
        self.door = None;
    }

    /// When something is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.inside.iter().flat_map(|visitor| [visitor.waits, visitor.speaks]).flatten().min()
    }

    /// Adds what to wait for.
    pub(super) fn watch<'a>(&'a self, events: &mut Vec<PollFd<'a>>) {
        events.extend(self.inside.iter().map(|visitor| PollFd::new(&visitor.socket, PollFlags::IN)));
        let door: Option<BorrowedFd<'a>> =
            self.door.as_ref().filter(|_| self.inside.len() < MOST).map(Door::descriptor);
        events.extend(door.map(|door| PollFd::from_borrowed_fd(door, PollFlags::IN)));
    }

    /// The child has written its cache down.
    pub(super) fn written(&mut self) {
        let now = Instant::now();
        self.inside.iter_mut().filter_map(|visitor| visitor.waits.as_mut()).for_each(|until| *until = now);
    }

    /// Gives copies of all to those whose time has come.
    pub(super) fn serve(&mut self, held: &[Held]) {
        let now = Instant::now();
        for visitor in &mut self.inside {
            if visitor.waits.take_if(|until| now >= *until).is_some()
                && let Err(error) = handover::give(&visitor.socket, held)
            {
                say(&format!("the next one gets nothing: {error}"));
            }
        }
    }

    /// Lets those in who have come, and hears what all wish. `write` has the child write its cache down, if there is one.
    /// Returns the one that wants our agent to leave.
    pub(super) fn hear(&mut self, mut write: impl FnMut() -> bool) -> Option<Socket> {
        let now = Instant::now();
        while self.inside.len() < MOST
            && let Some(socket) = self.door.as_ref().and_then(Door::welcome)
        {
            self.inside.push(Visitor {
                socket,
                speaks: Some(now + PATIENCE),
                waits: None,
                takes_over: false,
            });
        }
        self.inside.retain(|visitor| visitor.speaks.is_none_or(|until| now < until));
        for at in (0..self.inside.len()).rev() {
            let Some(wish) = handover::wish(&self.inside[at].socket) else { continue };
            self.inside[at].speaks = None;
            match wish {
                Wish::Standby => {}
                // One at a time: each would take its turn for the only one.
                Wish::Everything if self.inside.iter().any(|other| other.takes_over) => {
                    handover::refuse(&self.inside.swap_remove(at).socket);
                }
                Wish::Everything => {
                    self.inside[at].takes_over = true;
                    let patience = if write() { WRITE } else { Duration::ZERO };
                    self.inside[at].waits = Some(now + patience);
                }
                Wish::Drain => return Some(self.inside.swap_remove(at).socket),
                // What it had been given it has lost, and we have never stopped.
                Wish::Gone | Wish::Odd => drop(self.inside.swap_remove(at)),
            }
        }
        None
    }
}
