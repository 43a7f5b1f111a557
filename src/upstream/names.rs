//! Servers given by name: every address of the name is a server of the pool.
//!
//! A pool of the `bootstrap` servers, which nobody else uses, looks each name up and does so again as its TTL ends.
//! What an address cannot be looked up for stays as it is known: a name that cannot be resolved any more, or does
//! not exist any more, is no reason to stop asking servers that may well be there.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use hickory_proto::rr::Name;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::server::{How, Settings};
use super::{Cause, Pool};
use crate::config::{self, Connections, Scheme, Server};
use crate::wire::key::{Key, KeyBuf};
use crate::wire::query::Query;
use crate::wire::response::{Answer, Kind};
use crate::wire::{HEADER, Malformed, Record, class, flag, name as wire_name, rcode, rtype, u16_at};

/// A TTL of 0 allows one use (RFC 1035 §3.2.1). Servers are used all the time, and looking their names up more often
/// than this would be load that no client has asked for.
const MIN_TTL: Duration = Duration::from_secs(1);
/// Pods come and go within minutes whatever the TTL says; it is also what a connection's age is by default.
const MAX_TTL: Duration = Duration::from_secs(5 * 60);
/// The share of a TTL by which a look-up may come later. All nodes learn of a name with what is left of one TTL in the
/// cluster's cache, and would ask at the same moment.
const LATER: f64 = 0.1;
/// Until the first look-up after one that failed; each further one waits twice as long.
const RETRY: Duration = Duration::from_millis(250);
/// Where the doubling ends: a thousand nodes are 400 queries a second for a server that has just come back.
const MAX_RETRY: Duration = Duration::from_secs(5);
/// Of one look-up, all tries together; that of a client's query by default (glibc gives up at 5 s).
const DEADLINE: Duration = Duration::from_secs(4);
/// Addresses of one name. Clusters run some ten pods of their DNS; beyond this an answer no longer fits a datagram of
/// 1232 bytes either.
const MAX_ADDRESSES: usize = 64;
/// Connections to each bootstrap server: one look-up is two queries.
const MAX_CONNECTIONS: usize = 2;

/// The types that are looked up.
const FAMILIES: [u16; 2] = [rtype::A, rtype::AAAA];

/// The names of a pool, and what is known of them.
pub(super) struct Names {
    /// Who resolves them; `None` where there are none.
    resolver: Option<Arc<Pool>>,
    /// Where we listen ourselves.
    ours: Vec<SocketAddr>,
    known: Mutex<Vec<Known>>,
    /// Tells of every new list of servers.
    news: watch::Sender<()>,
    /// Wakes the next look-up before its time.
    again: Arc<Notify>,
    /// Those who look up; they end with the pool.
    tasks: Mutex<Vec<AbortHandle>>,
    /// Held while the list of servers is made anew: of two at once the one that began later must count.
    renewing: Mutex<()>,
}

/// What is known of one name.
struct Known {
    name: Name,
    /// In order, so that an answer in another order is no news.
    addresses: Vec<IpAddr>,
    /// What the last look-up lacked.
    trouble: Option<String>,
    /// Both types have been looked up, and an address is known.
    is_looked_up: bool,
}

/// What became of one type's look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// Addresses, at least one, and their TTL.
    Found(Vec<IpAddr>, Duration),
    /// There are none: with this RCODE.
    Nothing(u16),
    /// Nobody knows.
    Failed(Cause),
}

/// The look-up of both types, as far as it has come.
type Round = [Option<Outcome>; FAMILIES.len()];

impl Names {
    /// The names in a definition. Those who resolve them are asked as its servers are, on the same network.
    pub(super) fn new(definition: &config::Upstream, ours: &[SocketAddr], settings: &Settings) -> Self {
        let mut known: Vec<Known> = Vec::new();
        for server in &definition.servers {
            if let Server::Named(_, name, _) = server
                && !known.iter().any(|known| known.name == *name)
            {
                known.push(Known {
                    name: name.clone(),
                    addresses: Vec::new(),
                    trouble: None,
                    is_looked_up: false,
                });
            }
        }
        let resolver = (!known.is_empty()).then(|| {
            let definition = config::Upstream {
                servers: definition.bootstrap.clone(),
                bootstrap: Vec::new(),
                connections: Connections { min: 0, max: MAX_CONNECTIONS, ..definition.connections.clone() },
                timeout: DEADLINE,
                ..definition.clone()
            };
            let (network, late) = (Arc::clone(&settings.network), tokio::sync::mpsc::channel(1).0);
            Pool::with(definition, settings.edns_size, ours, network, late)
        });
        Self {
            resolver,
            ours: ours.to_vec(),
            known: Mutex::new(known),
            news: watch::Sender::new(()),
            again: Arc::default(),
            tasks: Mutex::default(),
            renewing: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The servers that a name stands for at the moment.
    pub(super) fn servers(&self, scheme: Scheme, name: &Name, port: u16) -> Vec<(SocketAddr, How)> {
        let how = match scheme {
            Scheme::Tcp => How::Tcp,
            Scheme::Udp => How::Udp,
            Scheme::Auto => How::Auto,
        };
        let known = self.known();
        let addresses = known.iter().filter(|known| known.name == *name).flat_map(|known| &known.addresses);
        let is_other = |address: &SocketAddr| {
            let is_own = self.ours.contains(address);
            if is_own {
                tracing::warn!(%name, %address, "own address of a server's name is passed over: it would be a loop");
            }
            !is_own
        };
        let address = |ip: &IpAddr| SocketAddr::new(*ip, port);
        addresses.map(address).filter(is_other).map(|address| (address, how.clone())).collect()
    }

    /// Whether both types of each name have been looked up once and an address is known.
    pub(super) fn are_looked_up(&self) -> bool {
        self.known().iter().all(|known| known.is_looked_up)
    }

    /// Names that the last look-up brought nothing for, and why.
    pub(super) fn troubles(&self) -> Vec<(Name, String)> {
        let known = self.known();
        known.iter().filter_map(|known| Some((known.name.clone(), known.trouble.clone()?))).collect()
    }

    /// Alone until it is dropped.
    pub(super) fn renewing(&self) -> MutexGuard<'_, ()> {
        self.renewing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is a new list of servers.
    pub(super) fn changed(&self) {
        self.news.send_replace(());
    }

    /// Waits until the pool has a server, as long as a look-up may bring one, and at most until `deadline`. Look-ups
    /// follow each other faster meanwhile.
    pub(super) async fn first(&self, pool: &Pool, deadline: Instant) {
        if self.resolver.is_none() || !pool.servers.load().is_empty() {
            return;
        }
        let mut news = self.news.subscribe();
        while pool.servers.load().is_empty() {
            self.look_again(); // the pause after failed look-ups may be longer than the query can wait
            let soon = deadline.min(Instant::now() + MIN_TTL);
            if timeout_at(soon, news.changed()).await.is_err() && soon == deadline {
                return;
            }
        }
    }

    /// There is no server, or none answers: others may have come, and the next look-up need not wait for its time.
    pub(super) fn look_again(&self) {
        self.again.notify_waiters();
    }

    /// Lets go of idle connections to those who resolve.
    pub(super) fn tidy(&self) {
        if let Some(resolver) = &self.resolver {
            resolver.tidy();
        }
    }

    /// Takes in what a look-up has brought so far.
    fn learn(&self, pool: &Pool, index: usize, round: &Round) {
        let is_over = round.iter().all(Option::is_some);
        let is_new = {
            let mut known = self.known();
            let Known { name, addresses, trouble, is_looked_up } = &mut known[index];
            let next = decide(addresses, round);
            let is_new = next != *addresses;
            if is_new {
                tracing::info!(%name, ?addresses, now = ?next, "servers of a name changed");
                *addresses = next;
            }
            *is_looked_up |= is_over && !addresses.is_empty();
            let lacks = if is_over { lack(round) } else { trouble.clone() };
            match &lacks {
                Some(why) if lacks != *trouble => {
                    let in_use = addresses.len();
                    tracing::warn!(%name, why, in_use, "look-up of a server's name: what was known stays in use");
                }
                None if trouble.is_some() => tracing::info!(%name, "look-up of a server's name works again"),
                _ => {}
            }
            *trouble = lacks;
            is_new
        };
        if is_new {
            pool.refresh(&self.ours);
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

/// Starts to look up the names of a pool, until it goes away.
pub(super) fn follow(pool: &Arc<Pool>) {
    let names = &pool.names;
    let Some(resolver) = &names.resolver else { return };
    let mut tasks = names.tasks.lock().unwrap_or_else(PoisonError::into_inner);
    for (index, known) in names.known().iter().enumerate() {
        let keys = FAMILIES.map(|family| question(&known.name, family));
        let (pool, resolver) = (Arc::downgrade(pool), Arc::clone(resolver));
        let task = tokio::spawn(follow_one(pool, resolver, Arc::clone(&names.again), index, keys));
        tasks.push(task.abort_handle());
    }
}

async fn follow_one(
    pool: Weak<Pool>,
    resolver: Arc<Pool>,
    again: Arc<Notify>,
    index: usize,
    keys: [Key; FAMILIES.len()],
) {
    let mut failures = 0;
    loop {
        let mut round = Round::default();
        let look_up = async |family: usize| (family, outcome(&resolver, &keys[family]).await);
        let mut looking: FuturesUnordered<_> = (0..FAMILIES.len()).map(look_up).collect();
        while let Some((family, outcome)) = looking.next().await {
            round[family] = Some(outcome);
            // What is there is used at once: some servers never answer one of the two types.
            let Some(pool) = pool.upgrade() else { return };
            pool.names.learn(&pool, index, &round);
        }
        failures = if is_complete(&round) { 0 } else { failures + 1 };
        let woken = again.notified();
        let early = async {
            sleep(MIN_TTL).await;
            woken.await;
        };
        tokio::select! {
            () = sleep(pause(&round, failures).mul_f64(rand::random_range(1.0..1.0 + LATER))) => {}
            () = early => {}
        }
    }
}

/// Our question for addresses of a name.
fn question(name: &Name, qtype: u16) -> Key {
    let mut plain: Vec<u8> = Vec::with_capacity(wire_name::MAX_NAME);
    for label in name.iter() {
        plain.push(label.len() as u8);
        plain.extend_from_slice(label);
    }
    plain.push(0);
    let query = Query { id: 0, flags: flag::RD, name: &plain, qtype, qclass: class::IN, edns: None };
    KeyBuf::new(&query).to_key()
}

async fn outcome(resolver: &Pool, key: &Key) -> Outcome {
    match resolver.exchange(key, None).await.result {
        Err(cause) => Outcome::Failed(cause),
        Ok(answer) => match answer.kind {
            Kind::Positive => match addresses(&answer, key) {
                Ok((found, ttl)) if !found.is_empty() => Outcome::Found(found, ttl),
                Ok(_) => Outcome::Nothing(rcode::NOERROR),
                Err(_) => Outcome::Failed(Cause::Malformed),
            },
            Kind::NoData => Outcome::Nothing(rcode::NOERROR),
            Kind::NxDomain => Outcome::Nothing(rcode::NXDOMAIN),
            Kind::Failure(code) => Outcome::Failed(Cause::Rcode(code)),
        },
    }
}

/// The addresses in an answer, aliases followed as its sender did, and the smallest TTL on the way to them.
fn addresses(answer: &Answer, key: &Key) -> Result<(Vec<IpAddr>, Duration), Malformed> {
    let message = &answer.message;
    let mut at = wire_name::skip_plain(message, HEADER)? + 4;
    let mut ttl = u32::MAX;
    let mut found = Vec::new();
    for _ in 0..u16_at(message, 6)? {
        let record = Record::read(message, at)?;
        at = record.end;
        let rdata = &message[record.rdata()..record.end];
        let ip = match (record.rtype, rdata.len()) {
            (rtype::A, 4) => rdata.first_chunk::<4>().map(|&octets| IpAddr::from(octets)),
            (rtype::AAAA, 16) => rdata.first_chunk::<16>().map(|&octets| IpAddr::from(octets)),
            _ => None,
        };
        if record.class == class::IN && [key.qtype(), rtype::CNAME].contains(&record.rtype) {
            ttl = ttl.min(record.ttl);
            found.extend(ip.filter(|ip| !ip.is_unspecified() && !ip.is_multicast()));
        }
    }
    Ok((found, Duration::from_secs(u64::from(ttl))))
}

/// The addresses of a name after a look-up. A type without addresses loses those that it had only if the other
/// one has some.
fn decide(known: &[IpAddr], round: &Round) -> Vec<IpAddr> {
    let is_there = round.iter().any(|outcome| matches!(outcome, Some(Outcome::Found(..))));
    let mut next: Vec<IpAddr> = Vec::new();
    for (family, outcome) in FAMILIES.into_iter().zip(round) {
        match outcome {
            Some(Outcome::Found(found, _)) => next.extend(found),
            Some(Outcome::Nothing(_)) if is_there => {}
            _ => next.extend(known.iter().filter(|ip| ip.is_ipv4() == (family == rtype::A))),
        }
    }
    next.sort_unstable();
    next.dedup();
    next.truncate(MAX_ADDRESSES);
    next
}

/// Whether the addresses are known until their TTL ends.
fn is_complete(round: &Round) -> bool {
    let failed = |outcome: &Option<Outcome>| matches!(outcome, Some(Outcome::Failed(_)) | None);
    round.iter().any(|outcome| matches!(outcome, Some(Outcome::Found(..)))) && !round.iter().any(failed)
}

/// What a look-up lacks.
fn lack(round: &Round) -> Option<String> {
    let mut found: HashSet<&IpAddr> = HashSet::new();
    let mut lacks = Vec::new();
    let is_there = round.iter().any(|outcome| matches!(outcome, Some(Outcome::Found(..))));
    for (family, outcome) in FAMILIES.into_iter().zip(round) {
        match outcome {
            Some(Outcome::Found(addresses, _)) => found.extend(addresses),
            Some(Outcome::Nothing(code)) if !is_there => {
                lacks.push(format!("{} {}, no address", rtype::name(family), rcode::name(*code)));
            }
            Some(Outcome::Failed(cause)) => lacks.push(format!("{} {}", rtype::name(family), cause.label())),
            Some(Outcome::Nothing(_)) | None => {}
        }
    }
    if found.len() > MAX_ADDRESSES {
        lacks.push(format!("{} addresses, of which {MAX_ADDRESSES} are used", found.len()));
    }
    (!lacks.is_empty()).then(|| lacks.join("; "))
}

/// How long a look-up is good, the `failures`-th in a row that lacks something.
fn pause(round: &Round, failures: u32) -> Duration {
    let ttls = round.iter().filter_map(|outcome| match outcome {
        Some(Outcome::Found(_, ttl)) => Some((*ttl).clamp(MIN_TTL, MAX_TTL)),
        _ => None,
    });
    let doubled = RETRY.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    let retry = (failures > 0).then_some(doubled.min(MAX_RETRY));
    ttls.chain(retry).min().unwrap_or(MAX_RETRY)
}

#[cfg(test)]
mod tests;
