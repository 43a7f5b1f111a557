//! A pool of the agent's own, on the network of the simulation, under a clock that the simulation holds.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nodens::config;
use nodens::upstream::{Exchange, Pool};
use nodens::wire::key::{Key, KeyBuf};
use nodens::wire::query::Query;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::endpoint::{Service, address_of};
use crate::load::{Figures, Record, by_second};
use crate::network::Net;

/// How the clock rounds: tokio's timers have milliseconds.
pub(crate) const TICK: Duration = Duration::from_millis(2);

/// Runs it under a clock that moves only when all is quiet.
pub(crate) fn quietly<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(story)
}

/// The address of the n-th server.
pub(crate) fn address(n: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, n as u8 + 1), 53))
}

/// The one place that knows how a pool is asked.
async fn ask(pool: &Pool, key: &Key) -> Exchange {
    pool.exchange(key, None).await
}

/// The key of `<label>.sim.example. A`.
fn key(label: &str) -> Key {
    let mut name = vec![label.len() as u8];
    name.extend(label.as_bytes());
    name.extend(b"\x03sim\x07example\0");
    KeyBuf::new(&Query { id: 1, flags: 0, name: &name, qtype: 1, qclass: 1, edns: None }).to_key()
}

/// Queries that begin and end.
#[derive(Default)]
struct Log {
    records: Mutex<Vec<Record>>,
    begun: AtomicUsize,
    ended: AtomicUsize,
    mixed_up: AtomicUsize,
}

/// A pool and what it asks.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) net: Net,
    pub(crate) pool: Arc<Pool>,
    started: Instant,
    seed: u64,
    log: Arc<Log>,
}

/// A stream of queries; it ends when this is dropped.
pub(crate) struct Load(Arc<AtomicBool>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl World {
    /// A pool of this definition on a network without endpoints yet.
    pub(crate) fn new(seed: u64, definition: config::Upstream) -> Self {
        let net = Net::new(seed);
        let pool = Pool::with(definition, 1232, &[], Arc::new(net.clone()), mpsc::channel(1).0);
        let tidied = Arc::downgrade(&pool);
        tokio::spawn(async move {
            // As the agent does.
            while let Some(pool) = tidied.upgrade() {
                pool.tidy();
                drop(pool);
                sleep(Duration::from_secs(1)).await;
            }
        });
        Self { net, pool, started: Instant::now(), seed, log: Arc::default() }
    }

    /// As many servers, each at an address of its own: `address(n)` leads to endpoint `n`.
    pub(crate) fn listed(seed: u64, services: &[Service]) -> Self {
        Self::listed_as(seed, services, config::Server::Tcp, |_| {})
    }

    /// The same with another scheme and other settings.
    pub(crate) fn listed_as(
        seed: u64,
        services: &[Service],
        scheme: impl Fn(SocketAddr) -> config::Server,
        change: impl FnOnce(&mut config::Upstream),
    ) -> Self {
        let servers = (0..services.len()).map(|n| scheme(address(n))).collect();
        let mut definition = config::Upstream::new(servers);
        change(&mut definition);
        let world = Self::new(seed, definition);
        for (n, service) in services.iter().enumerate() {
            let endpoint = world.net.endpoint(service.clone());
            world.net.lead(address(n), &[endpoint]);
        }
        world
    }

    /// One address, behind which a new connection finds any of these.
    pub(crate) fn behind_one(
        seed: u64,
        services: &[Service],
        change: impl FnOnce(&mut config::Upstream),
    ) -> Self {
        let mut definition = config::Upstream::new(vec![config::Server::Tcp(address(0))]);
        change(&mut definition);
        let world = Self::new(seed, definition);
        let endpoints: Vec<_> = services.iter().map(|service| world.net.endpoint(service.clone())).collect();
        world.net.lead(address(0), &endpoints);
        world
    }

    /// Time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) async fn wait(&self, time: Duration) {
        sleep(time).await;
    }

    pub(crate) async fn wait_ms(&self, time: u64) {
        self.wait(Duration::from_millis(time)).await;
    }

    /// Asks for a name of its own.
    pub(crate) async fn ask(&self) -> Record {
        let number = self.log.begun.fetch_add(1, Ordering::Relaxed);
        self.ask_for(&format!("q{number}"), true).await
    }

    /// Asks for a name that the servers are slow about.
    pub(crate) async fn ask_slow(&self, number: usize) -> Record {
        self.log.begun.fetch_add(1, Ordering::Relaxed);
        self.ask_for(&format!("slow{number}"), true).await
    }

    async fn ask_for(&self, label: &str, apart: bool) -> Record {
        let (began, key) = (self.now(), key(label));
        let exchange = ask(&self.pool, &key).await;
        let took = self.now() - began;
        let failed = match exchange.result {
            Ok(answer) => {
                let is_its_own = answer.message.ends_with(&address_of(label.as_bytes()));
                self.log.mixed_up.fetch_add(usize::from(!is_its_own), Ordering::Relaxed);
                None
            }
            Err(cause) => Some(cause),
        };
        let record = Record { began, took, failed, apart };
        self.log.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        self.log.ended.fetch_add(1, Ordering::Relaxed);
        record
    }

    /// Queries for new names at this rate a second, at random moments, from now on.
    pub(crate) fn load(&self, rate: f64) -> Load {
        let ends = Arc::new(AtomicBool::new(false));
        let (world, end) = (self.clone(), Arc::clone(&ends));
        let mut random = StdRng::seed_from_u64(self.seed ^ 0x10ad);
        tokio::spawn(async move {
            let mut at = Instant::now();
            loop {
                at += Duration::from_secs_f64(-(1.0 - random.random::<f64>()).ln() / rate);
                sleep_until(at).await;
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (world, number) = (world.clone(), world.log.begun.fetch_add(1, Ordering::Relaxed));
                tokio::spawn(async move { world.ask_for(&format!("q{number}"), false).await });
            }
        });
        Load(ends)
    }

    /// Waits until what was asked has ended. No query may take longer than this.
    pub(crate) async fn settle(&self) {
        let end = Instant::now() + self.pool.definition().timeout + TICK;
        while self.unended() > 0 && Instant::now() < end {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Queries without an end.
    pub(crate) fn unended(&self) -> usize {
        self.log.begun.load(Ordering::Relaxed) - self.log.ended.load(Ordering::Relaxed)
    }

    /// Answers with another name's address.
    pub(crate) fn mixed_up(&self) -> usize {
        self.log.mixed_up.load(Ordering::Relaxed)
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        self.log.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Of the load's queries that began in this time.
    pub(crate) fn figures(&self, from: Duration, to: Duration) -> Figures {
        let records = self.log.records.lock().unwrap_or_else(PoisonError::into_inner);
        Figures::of(records.iter().filter(|record| !record.apart && (from..to).contains(&record.began)))
    }

    /// What each second was like.
    pub(crate) fn by_second(&self) -> String {
        by_second(&self.records(), 0..self.now().as_secs() + 1)
    }

    /// The first query asked after `from` that was answered, and when it was.
    pub(crate) fn first_good(&self, from: Duration) -> Option<Duration> {
        let records = self.records();
        let good =
            records.iter().filter(|record| record.failed.is_none() && record.began + record.took > from);
        good.map(|record| record.began + record.took - from).min()
    }

    /// Queries sent for each that was asked, less one, in percent, between two moments of [`World::so_far`].
    pub(crate) fn extra(&self, from: (usize, u64)) -> f64 {
        let (begun, asked) = self.so_far();
        ((asked - from.1) as f64 / (begun - from.0) as f64 - 1.0) * 100.0
    }

    /// Queries of the pool's clients, and queries to the servers.
    pub(crate) fn so_far(&self) -> (usize, u64) {
        (self.log.begun.load(Ordering::Relaxed), self.net.asked())
    }

    /// Queries that each of the first endpoints was asked.
    pub(crate) fn asked<const N: usize>(&self) -> [u64; N] {
        std::array::from_fn(|endpoint| self.net.look(endpoint, |of| of.asked))
    }

    /// Queries in flight, as the pool sees it.
    pub(crate) fn in_flight(&self) -> usize {
        self.pool.servers().iter().map(|server| server.in_flight()).sum()
    }
}
