//! Whether an upstream leads back to this agent: each server is asked once for a name that nobody else
//! can know. If that question comes in while it is out, there is a loop.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::view::Zone;

use crate::upstream::server::{Errand, Sending, Server};
use crate::wire::key::{Key, KeyBuf};
use crate::wire::query::Query;
use crate::wire::response::{Answer, Kind};
use crate::wire::{class, flag, name, rtype};

/// The first label of a probe begins like this: its length, then this text, then 16 hexadecimal digits.
const PREFIX: &[u8] = b"\x1cnodens-loop-";

/// A server that answers with a failure is asked so often: it may lead back here and not have noticed yet that this agent
/// is there.
const TIMES: usize = 3;
/// The pause before that.
const AGAIN: Duration = Duration::from_secs(1);

/// An upstream that leads back to this agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{server} leads back to this agent (zone {zone}): name another server in upstream.servers")]
pub struct Loop {
    /// The server, as the configuration writes it.
    pub server: Arc<str>,
    /// The first zone that asks it.
    pub zone: String,
}

/// The probes that are out, and what came of them.
pub struct Echoes {
    out: Mutex<Vec<(Key, Loop)>>,
    /// How many are out, so that a miss need not take the lock.
    count: AtomicUsize,
    found: watch::Sender<Option<Loop>>,
}

impl Echoes {
    /// No probes.
    pub fn new() -> Self {
        Self { out: Mutex::default(), count: AtomicUsize::new(0), found: watch::Sender::new(None) }
    }

    /// Tells of the first loop that is found.
    pub fn watch(&self) -> watch::Receiver<Option<Loop>> {
        self.found.subscribe()
    }

    /// Whether a question is one of our probes come back. If so, its loop is made known.
    pub fn is_one(&self, lower: &[u8]) -> bool {
        if !lower.starts_with(PREFIX) || self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let out = self.out();
        let Some((_, found)) = out.iter().find(|(key, _)| key.name() == lower) else { return false };
        self.found.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert_with(|| found.clone());
            is_first
        });
        true
    }

    /// Asks a server of a zone for a name of its own, and ends when that is answered or given up; a failure is asked
    /// again. What comes is of no interest and goes nowhere.
    pub async fn probe(&self, zone: &Zone, server: &Arc<Server>) {
        let found = Loop { server: Arc::clone(&server.label), zone: zone.name.clone() };
        let Some(key) = question(&zone.apex, rand::random()) else { return };
        let probe = Probe { echoes: self, key };
        self.out().push((probe.key.clone(), found));
        self.count.fetch_add(1, Ordering::Release);
        let patience = zone.pool.definition().timeout;
        for _ in 0..TIMES {
            let errand = Errand { source: None, proof: None, deadline: Instant::now() + patience };
            let sending = Sending::new(server.is_udp_first());
            let asked = timeout(patience, server.ask(&probe.key, &errand, &sending)).await;
            if !matches!(asked, Ok(Ok(Answer { kind: Kind::Failure(_), .. }))) {
                return;
            }
            sleep(AGAIN).await;
        }
    }

    fn out(&self) -> MutexGuard<'_, Vec<(Key, Loop)>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Echoes {
    fn default() -> Self {
        Self::new()
    }
}

/// A probe that is out, until it is dropped.
struct Probe<'a> {
    echoes: &'a Echoes,
    key: Key,
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.echoes.out().retain(|(key, _)| *key != self.key);
        self.echoes.count.fetch_sub(1, Ordering::Release);
    }
}

/// The question of a probe below an apex; `None` where a name so long has no room for it.
fn question(apex: &[u8], nonce: u64) -> Option<Key> {
    let mut text = String::with_capacity(16);
    let _ = write!(text, "{nonce:016x}");
    let name = [PREFIX, text.as_bytes(), apex].concat();
    let query =
        Query { id: 0, flags: flag::RD, name: &name, qtype: rtype::TXT, qclass: class::IN, edns: None };
    (name.len() <= name::MAX_NAME).then(|| KeyBuf::new(&query).to_key())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(echoes: &Echoes, nonce: u64) -> Probe<'_> {
        let key = question(b"\x04test\x00", nonce).unwrap();
        let found = Loop { server: format!("tcp://192.0.2.{nonce}:53").into(), zone: "test".to_owned() };
        echoes.out().push((key.clone(), found));
        echoes.count.fetch_add(1, Ordering::Release);
        Probe { echoes, key }
    }

    #[test]
    fn only_a_probe_that_is_out_comes_back() {
        let echoes = Echoes::new();
        let (first, second) = (out(&echoes, 1), out(&echoes, 0xfedc));
        let [first_name, second_name] = [&first, &second].map(|probe| probe.key.name().to_vec());
        assert!(second_name.starts_with(b"\x1cnodens-loop-000000000000fedc\x04test"));
        assert!(!echoes.is_one(b"\x03www\x04test\x00"));
        assert!(!echoes.is_one(question(b"\x04test\x00", 3).unwrap().name()));
        assert_eq!(*echoes.watch().borrow(), None);
        assert!(echoes.is_one(&second_name) && echoes.is_one(&first_name));
        let found = echoes.watch().borrow().clone().unwrap();
        assert_eq!(
            found.to_string(),
            "tcp://192.0.2.65244:53 leads back to this agent (zone test): name another server in \
             upstream.servers",
            "the first one that was found"
        );
        drop(second);
        assert!(!echoes.is_one(&second_name));
        assert!(echoes.is_one(&first_name));
    }

    #[test]
    fn an_apex_without_room_has_no_probe() {
        let apex = [&[&[63; 64][..]; 3].concat()[..], &[33; 34], &[0]].concat();
        assert_eq!(apex.len(), 227);
        assert!(question(&apex[1..], 0).is_some());
        assert!(question(&apex, 0).is_none());
    }
}
