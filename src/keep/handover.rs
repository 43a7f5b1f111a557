//! From one `keep` to the next: the sockets, and the cache with them.
//!
//! The next one connects to a unix socket that only the same user can open, and says what it wants, in datagrams of the
//! form that [`parent`] has. All versions of this protocol begin like this:
//!
//! ```text
//! next      NODENS_HANDOVER=1          its version of the protocol
//! previous  NODENS_HANDOVER=1 FDNAMES=dns:dns:cache, and the descriptors
//!       or  NODENS_BUSY=1              another one takes over just now
//! next      NODENS_DRAIN=1             its agent is ready
//! previous  NODENS_GONE=1              its agent has answered what it had taken
//! ```
//!
//! If the next one hangs up before it says `NODENS_DRAIN=1`, the previous one goes on as if nothing had happened: its agent
//! has never stopped. Whoever says `NODENS_STANDBY=1` gets nothing, and waits for the other to end.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Held;
use crate::{parent, sys};

/// The version of this protocol.
const VERSION: &str = "NODENS_HANDOVER=1";
pub(super) const DRAIN: &str = "NODENS_DRAIN=1";
const BUSY: &str = "NODENS_BUSY=1";
pub(super) const GONE: &str = "NODENS_GONE=1";
pub(super) const STANDBY: &str = "NODENS_STANDBY=1";
/// How long the previous one may take: its agent writes the cache down meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Those who wait for their turn or for our end.
const BACKLOG: i32 = 8;

/// Where the next one comes.
#[derive(Debug)]
pub(super) struct Door {
    socket: Socket,
}

impl Door {
    /// Opens it, in the place of a previous one's.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        // Nobody finds it before it has the rights that it is to have, or finds none.
        let mut new = path.as_os_str().to_owned();
        // Every container has a process 1.
        new.push(format!(".{:08x}", rand::random::<u32>()));
        let _ = fs::remove_file(&new);
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        let before = rustix::process::umask(rustix::fs::Mode::from(0o177));
        let bound = socket.bind(&SockAddr::unix(&new)?);
        rustix::process::umask(before);
        bound?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        fs::rename(&new, path)?;
        Ok(Self { socket })
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whoever has come, if it is the same user.
    pub(super) fn welcome(&self) -> Option<Socket> {
        let (visitor, _) = self.socket.accept().ok()?;
        let theirs = sys::peer_user(&visitor).ok()?;
        (theirs == rustix::process::geteuid().as_raw()).then_some(visitor)
    }
}

/// Whether a previous one is still there after it has hung up. One that ends has time to.
pub(super) fn answers_again(path: &Path) -> bool {
    std::thread::sleep(Duration::from_millis(200));
    Previous::find(path).is_some()
}

/// What a visitor wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// All that we hold.
    Everything,
    /// That our agent leaves.
    Drain,
    /// To know when we end.
    Standby,
    /// Nothing that we know.
    Odd,
    /// It has gone.
    Gone,
}

/// What it says, if it has said anything.
pub(super) fn wish(visitor: &Socket) -> Option<Wish> {
    match parent::receive(visitor) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(_) => Some(Wish::Gone),
        Ok((words, _)) => Some(match words.as_str() {
            "" => Wish::Gone,
            VERSION => Wish::Everything,
            DRAIN => Wish::Drain,
            STANDBY => Wish::Standby,
            _ => Wish::Odd,
        }),
    }
}

/// Tells it that another one takes over already.
pub(super) fn refuse(visitor: &Socket) {
    // It sees us hang up in any case.
    let _ = parent::send(visitor, BUSY, &[]);
}

/// Gives it copies of all.
pub(super) fn give(visitor: &Socket, held: &[Held]) -> io::Result<()> {
    let names: Vec<&str> = held.iter().map(|held| held.name.as_str()).collect();
    let descriptors: Vec<BorrowedFd<'_>> = held.iter().map(|held| held.descriptor.as_fd()).collect();
    parent::send(visitor, &format!("{VERSION}\nFDNAMES={}", names.join(":")), &descriptors)
}

/// The one before us.
#[derive(Debug)]
pub(super) struct Previous {
    pub(super) socket: Socket,
}

impl Previous {
    /// Finds it, if there is one.
    pub(super) fn find(path: &Path) -> Option<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).ok()?;
        // One that hangs does not let us in.
        socket.set_write_timeout(Some(PATIENCE)).ok()?;
        socket.connect(&SockAddr::unix(path).ok()?).ok()?;
        Some(Self { socket })
    }

    /// What it holds.
    pub(super) fn receive(&self) -> io::Result<Vec<Held>> {
        parent::send(&self.socket, VERSION, &[])?;
        let (words, descriptors) = self.wait(Instant::now() + PATIENCE)?;
        if words.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let fields = parent::fields(&words);
        if words == BUSY {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another one takes over just now"));
        }
        if !words.starts_with(VERSION) {
            let what = format!("it speaks another version of the protocol: {words:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let names = fields.get("FDNAMES").copied().unwrap_or_default().split(':');
        let named = names.zip(descriptors);
        Ok(named
            .map(|(name, descriptor): (&str, OwnedFd)| Held { name: name.to_owned(), descriptor })
            .collect())
    }

    pub(super) fn say(&self, words: &str) -> io::Result<()> {
        parent::send(&self.socket, words, &[])
    }

    fn wait(&self, until: Instant) -> io::Result<(String, Vec<OwnedFd>)> {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut events = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut events, Some(&left))? {
            0 => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")),
            _ => parent::receive(&self.socket),
        }
    }
}
