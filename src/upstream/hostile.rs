//! What a pool must stand, on a network in memory under a clock that stands still.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf};
use tokio::time::sleep;

use super::transport::{Datagrams, Link, Network, Opening, Reader};
use super::*;

/// How long a question of this first letter takes; `None` for ever. Every question is answered by itself.
type Takes = fn(u8) -> Option<Duration>;

/// Servers that answer all queries of a connection side by side, or refuse connections.
struct Memory {
    takes: Takes,
    /// It takes so many more connections, and refuses the others.
    takes_connections: AtomicUsize,
}

impl Memory {
    fn new(takes: Takes) -> Arc<Self> {
        Arc::new(Self { takes, takes_connections: AtomicUsize::new(usize::MAX) })
    }
}

impl Reader for ReadHalf<DuplexStream> {}

impl Network for Memory {
    fn connect(&self, _: SocketAddr) -> Opening<Link> {
        let one = |left: usize| left.checked_sub(1);
        if self.takes_connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one).is_err() {
            return Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) });
        }
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(theirs, self.takes));
        Box::pin(async move {
            sleep(Duration::from_micros(500)).await;
            let (reader, writer) = tokio::io::split(ours);
            Ok(Link { reader: Box::new(reader), writer: Box::new(writer) })
        })
    }

    fn datagrams(&self, _: SocketAddr) -> Opening<Box<dyn Datagrams>> {
        Box::pin(async { Err(io::Error::other("no UDP here")) })
    }
}

async fn serve(stream: DuplexStream, takes: Takes) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (answers, mut ready) = mpsc::unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        while let Some(answer) = ready.recv().await {
            if writer.write_all(&answer).await.is_err() {
                return;
            }
        }
    });
    while let Ok(length) = reader.read_u16().await {
        let mut message = vec![0; 2 + usize::from(length)];
        message[..2].copy_from_slice(&length.to_be_bytes());
        if reader.read_exact(&mut message[2..]).await.is_err() {
            return;
        }
        message[4] |= 0x80;
        let Some(after) = takes(message[15]) else { continue };
        let answers = answers.clone();
        tokio::spawn(async move {
            sleep(after).await;
            let _ = answers.send(message);
        });
    }
}

fn named(letter: u8, n: u16) -> Key {
    let name = [&[5u8, letter][..], format!("{n:04x}").as_bytes(), &[0]].concat();
    KeyBuf::new(&Query { id: 1, flags: 0, name: &name, qtype: 1, qclass: 1, edns: None }).to_key()
}

fn pool(network: &Arc<Memory>, change: impl FnOnce(&mut config::Upstream)) -> Arc<Pool> {
    let mut definition = config::Upstream::new(vec![config::Server::Tcp(([192, 0, 2, 1], 53).into())]);
    change(&mut definition);
    let network: Arc<dyn Network> = Arc::<Memory>::clone(network);
    Pool::with(definition, 1232, &[], network, mpsc::channel(64).0)
}

async fn warm_up(pool: &Pool) {
    for n in 0..200 {
        assert!(pool.exchange(&named(b'f', n), None).await.result.is_ok());
    }
}

/// What the agent does once a second.
fn ticking(pool: &Arc<Pool>) {
    let pool = Arc::downgrade(pool);
    tokio::spawn(async move {
        while let Some(pool) = pool.upgrade() {
            pool.tidy();
            drop(pool);
            sleep(Duration::from_secs(1)).await;
        }
    });
}

const FAST: Duration = Duration::from_millis(2);

/// How many quick questions of one client fail, one after the other, beside those of another that nobody answers, of
/// which ten come every `gap`.
async fn failed_beside_silence(gap: Duration) -> usize {
    let network = Memory::new(|letter| (letter != b's').then_some(FAST));
    let pool = pool(&network, |_| {});
    ticking(&pool);
    warm_up(&pool).await;
    let [other, own] = [1, 2].map(|last| Some([10, 0, 0, last].into()));
    let mut failed = 0;
    for n in 0..400u16 {
        for m in 0..10 {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move { pool.exchange(&named(b's', n * 10 + m), other).await });
        }
        failed += usize::from(pool.exchange(&named(b'f', 1000 + n), own).await.result.is_err());
        sleep(gap).await;
    }
    failed
}

#[tokio::test(start_paused = true)]
async fn names_that_nobody_answers_do_not_keep_others_from_a_server_that_answers_at_once() {
    for gap in [10, 60].map(Duration::from_millis) {
        assert_eq!(failed_beside_silence(gap).await, 0, "ten every {gap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_query_that_waits_for_30_s_does_not_turn_its_timer_in_circles() {
    let network = Memory::new(|letter| (letter != b's').then_some(FAST));
    let pool = pool(&network, |definition| definition.timeout = Duration::from_secs(30));
    warm_up(&pool).await;
    let key = named(b's', 1);
    let began = std::time::Instant::now();
    let exchange = pool.exchange(&key, None);
    tokio::pin!(exchange);
    let mut polls = 0u32;
    let done = std::future::poll_fn(|cx| {
        polls += 1;
        if polls > 5000 {
            return std::task::Poll::Ready(None);
        }
        std::future::Future::poll(exchange.as_mut(), cx).map(Some)
    })
    .await;
    assert!(done.is_some(), "{polls} polls in {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_no_more_connections_is_asked_by_those_it_has() {
    let network = Memory::new(|letter| Some(if letter == b's' { Duration::from_millis(150) } else { FAST }));
    network.takes_connections.store(3, Ordering::Relaxed);
    let pool = pool(&network, |_| {});
    ticking(&pool);
    warm_up(&pool).await;
    for n in 0..200u16 {
        let keys: Vec<Key> = (0..8).map(|m| named(if m < 2 { b's' } else { b'f' }, n * 8 + m)).collect();
        for done in futures_util::future::join_all(keys.iter().map(|key| pool.exchange(key, None))).await {
            assert!(done.result.is_ok(), "round {n}: {:?}", done.attempts);
        }
        sleep(Duration::from_millis(20)).await;
    }
}
