//! What outlives the agent: its sockets, and the memory with its cache.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use socket2::{SockRef, Type};

use super::relay::Sockets;
use super::{Plan, say};
use crate::parent::{self, CACHE, SOCKET};
use crate::serve::socket::{self, Manner, Place};

/// Descriptors that are kept. All of them go into one message (unix(7), SCM_MAX_FD).
pub(super) const MOST: usize = 250;

/// A descriptor that outlives the child.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) name: String,
    pub(super) descriptor: OwnedFd,
}

impl Held {
    fn socket(&self) -> Option<(Type, SocketAddr)> {
        parent::bound(&SockRef::from(&self.descriptor)).filter(|_| self.name != CACHE)
    }

    fn is_udp(&self) -> bool {
        self.socket().is_some_and(|(kind, _)| kind == Type::DGRAM)
    }
}

/// Those of a previous one that the plan has, and a copy of the cache: the original is the previous agent's to write.
pub(super) fn chosen(all: Vec<Held>, plan: &Plan) -> Vec<Held> {
    let choose = |held: Held| {
        if held.name == CACHE {
            return copy(&held.descriptor).ok().map(|descriptor| Held { name: held.name, descriptor });
        }
        let at = held.socket()?.1;
        plan.places.iter().any(|(place, _)| place.addr == at).then_some(held)
    };
    all.into_iter().filter_map(choose).collect()
}

/// Opens what the plan has and nobody gave us. What cannot be opened is left to the child, which tries again and gives it
/// to us.
pub(super) fn open_missing(all: &mut Vec<Held>, plan: &Plan) {
    let there: Vec<SocketAddr> = all.iter().filter_map(Held::socket).map(|(_, at)| at).collect();
    for &(place, workers) in plan.places.iter().filter(|(place, _)| !there.contains(&place.addr)) {
        let manner = Manner { workers, buffer: plan.receive_buffer, early: true };
        match socket::open(place, manner) {
            Ok(listeners) => {
                let udp = listeners.udp.into_iter().map(OwnedFd::from);
                let opened = udp.chain([OwnedFd::from(listeners.tcp)]);
                all.extend(opened.map(|descriptor| Held { name: SOCKET.to_owned(), descriptor }));
            }
            Err(error) => say(&format!("{error}: left to the agent")),
        }
    }
}

/// Keeps what the child gives, as far as there is room. There is one cache.
pub(super) fn store(all: &mut Vec<Held>, words: &str, descriptors: Vec<OwnedFd>) {
    let name = parent::fields(words).get("FDNAME").copied().unwrap_or(SOCKET).to_owned();
    if name == CACHE {
        all.retain(|held| held.name != CACHE);
    }
    let new = descriptors.into_iter().take(MOST.saturating_sub(all.len()));
    all.extend(new.map(|descriptor| Held { name: name.clone(), descriptor }));
}

/// The sockets where datagrams come.
pub(super) fn udp(all: &[Held]) -> impl Iterator<Item = &OwnedFd> {
    all.iter().filter(|held| held.is_udp()).map(|held| &held.descriptor)
}

/// Copies of all sockets, as far as they can be had, with the places that they are for.
pub(super) fn copies(all: &[Held], plan: &Plan) -> Sockets {
    let mut sockets = Sockets { udp: Vec::new(), tcp: Vec::new() };
    for held in all {
        let (Some((kind, addr)), Ok(copy)) = (held.socket(), held.descriptor.try_clone()) else { continue };
        let planned = plan.places.iter().map(|(place, _)| *place).find(|place| place.addr == addr);
        let place = planned.unwrap_or(Place { addr, intercepted: false });
        match kind {
            Type::DGRAM => sockets.udp.push((copy.into(), place)),
            _ => sockets.tcp.push((copy.into(), place)),
        }
    }
    sockets
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

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(text: &[u8]) -> OwnedFd {
        let file = File::from(memfd_create(CACHE, MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(text, 0).unwrap();
        file.into()
    }

    fn text(held: &Held) -> Vec<u8> {
        let file = File::from(held.descriptor.try_clone().unwrap());
        let mut text = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut text, 0).unwrap();
        text
    }

    #[test]
    fn there_is_one_cache_and_no_more_than_there_is_room_for() {
        let mut all = Vec::new();
        store(&mut all, "FDSTORE=1\nFDNAME=cache", vec![memory(b"old")]);
        store(&mut all, "FDSTORE=1\nFDNAME=cache", vec![memory(b"new")]);
        assert_eq!(all.iter().map(text).collect::<Vec<_>>(), [b"new"]);
        store(&mut all, "FDSTORE=1", (0..MOST).map(|_| memory(b"x")).collect());
        assert_eq!(all.len(), MOST);
    }

    #[test]
    fn of_a_previous_one_the_plan_decides_and_its_cache_is_copied() {
        let udp = |at: &str| std::net::UdpSocket::bind(at).unwrap();
        let (wanted, other) = (udp("127.0.0.1:0"), udp("127.0.0.1:0"));
        let addr = wanted.local_addr().unwrap();
        let place = socket::Place { addr, intercepted: false };
        let plan = Plan { places: vec![(place, 1)], ..Plan::default() };
        let held = |name: &str, descriptor| Held { name: name.to_owned(), descriptor };
        let theirs = memory(&[7; 100_000]);
        let original = theirs.try_clone().unwrap();
        let all = vec![held("dns", wanted.into()), held("dns", other.into()), held(CACHE, theirs)];
        let chosen = chosen(all, &plan);
        assert_eq!(chosen.iter().map(|held| held.name.as_str()).collect::<Vec<_>>(), ["dns", CACHE]);
        File::from(original).write_all_at(b"changed", 0).unwrap();
        assert_eq!(text(&chosen[1]), [7; 100_000]);
    }
}
