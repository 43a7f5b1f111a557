//! What a pool must stand, on a network in memory under a clock that stands still.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf};
use tokio::time::{Instant, sleep};

use super::transport::{Datagrams, Link, Network, Opening, Reader};
use super::*;

/// How long a question of this first letter takes; `None` for ever. Every question is answered by itself.
type Takes = fn(u8) -> Option<Duration>;

/// Servers that answer all queries of a connection side by side, or refuse connections.
struct Memory {
    takes: Takes,
    connects: AtomicUsize,
    asked: Arc<AtomicUsize>,
}

impl Memory {
    fn new(takes: Takes) -> Arc<Self> {
        Arc::new(Self { takes, connects: AtomicUsize::new(0), asked: Arc::default() })
    }
}

impl Reader for ReadHalf<DuplexStream> {}

impl Network for Memory {
    fn connect(&self, _: SocketAddr) -> Opening<Link> {
        self.connects.fetch_add(1, Ordering::Relaxed);
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(theirs, self.takes, Arc::clone(&self.asked)));
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

async fn serve(stream: DuplexStream, takes: Takes, asked: Arc<AtomicUsize>) {
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
        asked.fetch_add(1, Ordering::Relaxed);
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

#[tokio::test(start_paused = true)]
async fn names_that_nobody_answers_do_not_keep_others_from_a_server_that_answers_at_once() {
    let network = Memory::new(|letter| (letter != b's').then_some(FAST));
    let pool = pool(&network, |_| {});
    ticking(&pool);
    warm_up(&pool).await;
    let mut worst = Duration::ZERO;
    for n in 0..600u16 {
        if n % 10 == 0 {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move { pool.exchange(&named(b's', n), None).await });
        }
        let began = Instant::now();
        let done = pool.exchange(&named(b'f', 1000 + n), None).await;
        worst = worst.max(began.elapsed());
        if began.elapsed() > Duration::from_millis(200) || done.result.is_err() {
            let server = &pool.servers()[0];
            eprintln!("{n}: {:?} {:?} {:?} open {} waiting {}", began.elapsed(), done.result.err(), done.attempts, server.open(), server.waiting());
        }
        sleep(Duration::from_millis(60)).await;
    }
    let server = &pool.servers()[0];
    eprintln!("worst {worst:?} ejections {} connects {}", server.counts.ejections.value(), network.connects.load(Ordering::Relaxed));
    assert!(worst < Duration::from_millis(500), "{worst:?}");
}

#[tokio::test(start_paused = true)]
async fn one_slow_name_of_both_types_on_a_quiet_node_does_not_eject_its_server() {
    let network = Memory::new(|letter| Some(if letter == b's' { Duration::from_millis(300) } else { FAST }));
    let pool = pool(&network, |_| {});
    warm_up(&pool).await;
    sleep(Duration::from_secs(1)).await;
    let (a, aaaa) = (named(b's', 1), named(b's', 2));
    let (a, aaaa) = tokio::join!(pool.exchange(&a, None), pool.exchange(&aaaa, None));
    assert!(a.result.is_ok() && aaaa.result.is_ok());
    assert_eq!(pool.servers()[0].counts.ejections.value(), 0, "{:#?}", a.attempts);
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
