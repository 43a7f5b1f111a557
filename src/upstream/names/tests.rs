use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use proptest::prelude::*;
use tokio::sync::mpsc;

use super::super::transport::{Datagrams, Link, Network, Opening, Receiving};
use super::*;

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

fn found(texts: &[&str], ttl: u64) -> Option<Outcome> {
    Some(Outcome::Found(ips(texts), Duration::from_secs(ttl)))
}

const NODATA: Option<Outcome> = Some(Outcome::Nothing(rcode::NOERROR));
const NXDOMAIN: Option<Outcome> = Some(Outcome::Nothing(rcode::NXDOMAIN));
const TIMEOUT: Option<Outcome> = Some(Outcome::Failed(Cause::Timeout));

#[test]
fn what_a_look_up_does_not_know_stays_as_it_is_known() {
    let (four, six) = (ips(&["10.0.0.1"]), ips(&["fd00::1"]));
    let both = [four.clone(), six.clone()].concat();
    for (round, expected) in [
        ([found(&["10.0.0.2"], 5), None], ips(&["10.0.0.2", "fd00::1"])),
        ([None, found(&["fd00::2"], 5)], ips(&["10.0.0.1", "fd00::2"])),
        ([found(&["10.0.0.2"], 5), TIMEOUT], ips(&["10.0.0.2", "fd00::1"])),
        ([found(&["10.0.0.1"], 5), NODATA], four.clone()),
        ([found(&["10.0.0.1"], 5), NXDOMAIN], four),
        ([NODATA, found(&["fd00::1"], 5)], six),
        ([NODATA, NODATA], both.clone()),
        ([NXDOMAIN, NXDOMAIN], both.clone()),
        ([NODATA, TIMEOUT], both.clone()),
        ([TIMEOUT, TIMEOUT], both.clone()),
        ([NODATA, None], both.clone()),
    ] {
        assert_eq!(decide(&both, &round), expected, "{round:?}");
    }
}

#[test]
fn the_order_of_an_answer_is_no_news() {
    let round = |texts: &[&str]| [found(texts, 5), NODATA];
    let first = decide(&[], &round(&["10.0.0.3", "10.0.0.1", "10.0.0.2", "10.0.0.1"]));
    assert_eq!(first, ips(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
    assert_eq!(decide(&first, &round(&["10.0.0.2", "10.0.0.3", "10.0.0.1"])), first);
}

#[test]
fn no_more_addresses_of_a_name_than_the_limit() {
    let many: Vec<String> = (0..100).map(|n| format!("10.0.1.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let round = [found(&many, 5), found(&["fd00::1"], 5)];
    assert_eq!(decide(&[], &round).len(), MAX_ADDRESSES);
    assert_eq!(lack(&round).as_deref(), Some("101 addresses, of which 64 are used"));
}

#[test]
fn what_a_look_up_lacks_is_said() {
    for (round, expected) in [
        ([found(&["10.0.0.1"], 5), NODATA], None),
        ([NODATA, NODATA], Some("A NOERROR, no address; AAAA NOERROR, no address")),
        ([NXDOMAIN, NXDOMAIN], Some("A NXDOMAIN, no address; AAAA NXDOMAIN, no address")),
        ([found(&["10.0.0.1"], 5), TIMEOUT], Some("AAAA timeout")),
        ([Some(Outcome::Failed(Cause::Rcode(rcode::SERVFAIL))), TIMEOUT], Some("A servfail; AAAA timeout")),
    ] {
        assert_eq!(lack(&round).as_deref(), expected, "{round:?}");
    }
}

#[test]
fn the_next_look_up_comes_when_the_smallest_ttl_ends_or_soon_after_a_failure() {
    let (ms, s) = (Duration::from_millis, Duration::from_secs);
    for (round, failures, expected) in [
        ([found(&["10.0.0.1"], 30), NODATA], 0, s(30)),
        ([found(&["10.0.0.1"], 30), found(&["fd00::1"], 7)], 0, s(7)),
        ([found(&["10.0.0.1"], 0), NODATA], 0, MIN_TTL),
        ([found(&["10.0.0.1"], 86_400), NODATA], 0, MAX_TTL),
        ([TIMEOUT, TIMEOUT], 1, ms(250)),
        ([TIMEOUT, TIMEOUT], 2, ms(500)),
        ([NXDOMAIN, NXDOMAIN], 5, s(4)),
        ([NXDOMAIN, NXDOMAIN], 6, MAX_RETRY),
        ([NXDOMAIN, NXDOMAIN], u32::MAX, MAX_RETRY),
        ([found(&["10.0.0.1"], 30), TIMEOUT], 3, s(1)),
        ([found(&["10.0.0.1"], 2), TIMEOUT], 9, s(2)),
    ] {
        assert_eq!(pause(&round, failures), expected, "{round:?} {failures}");
        assert_eq!(is_complete(&round), failures == 0, "{round:?}");
    }
}

fn any_outcome(family: usize) -> impl Strategy<Value = Option<Outcome>> {
    let ip = any::<u8>().prop_map(move |n| match family {
        0 => IpAddr::from([10, 0, 0, n]),
        _ => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]),
    });
    prop_oneof![
        (prop::collection::vec(ip, 1..80), any::<u32>())
            .prop_map(|(ips, ttl)| Some(Outcome::Found(ips, Duration::from_secs(u64::from(ttl))))),
        Just(NODATA),
        Just(NXDOMAIN),
        Just(TIMEOUT),
        Just(None),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Servers that were there once never run out, whatever the look-ups bring, and no look-up follows at once.
    #[test]
    fn addresses_never_run_out(rounds in prop::collection::vec((any_outcome(0), any_outcome(1)), 1..20)) {
        let mut known = Vec::new();
        let mut failures = 0;
        for (a, aaaa) in rounds {
            let round = [a, aaaa];
            let next = decide(&known, &round);
            prop_assert!(known.is_empty() || !next.is_empty());
            prop_assert!(next.len() <= MAX_ADDRESSES && next.is_sorted());
            failures = if is_complete(&round) { 0 } else { failures + 1 };
            prop_assert!((RETRY..=MAX_TTL).contains(&pause(&round, failures)));
            known = next;
        }
    }
}

/// A bootstrap server for datagrams: A is what it says, AAAA NODATA.
#[derive(Clone, Default)]
struct Bootstrap {
    asked: Arc<AtomicUsize>,
    addresses: Arc<Mutex<Vec<[u8; 4]>>>,
}

impl Bootstrap {
    fn says(&self, addresses: &[[u8; 4]]) {
        *self.addresses.lock().expect("no panic") = addresses.to_vec();
    }

    fn answer(&self, query: &[u8]) -> Vec<u8> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let end = wire_name::skip_plain(query, HEADER).expect("a name") + 4;
        let is_a = u16_at(query, end - 4) == Ok(rtype::A);
        let addresses = self.addresses.lock().expect("no panic");
        let addresses = if is_a { addresses.clone() } else { Vec::new() };
        let mut reply = query[..end].to_vec();
        reply[2] |= 0x80;
        reply[7] = addresses.len() as u8;
        reply[11] = 0;
        for address in addresses {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 10, 0, 4]);
            reply.extend(address);
        }
        reply
    }
}

struct Port(Bootstrap, mpsc::UnboundedSender<Vec<u8>>, tokio::sync::Mutex<mpsc::UnboundedReceiver<Vec<u8>>>);

impl Datagrams for Port {
    fn poll_send(&self, _: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        let _ = self.1.send(self.0.answer(datagram));
        Poll::Ready(Ok(()))
    }

    fn receive(&self) -> Receiving<'_> {
        Box::pin(async { Ok(self.2.lock().await.recv().await.expect("it holds a sender")) })
    }
}

impl Network for Bootstrap {
    fn connect(&self, _: SocketAddr) -> Opening<Link> {
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }

    fn datagrams(&self, _: SocketAddr) -> Opening<Box<dyn Datagrams>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let port = Port(self.clone(), sender, tokio::sync::Mutex::new(receiver));
        Box::pin(async { Ok(Box::new(port) as Box<dyn Datagrams>) })
    }
}

fn pool(bootstrap: &Bootstrap, ours: &[&str]) -> Arc<Pool> {
    let name = Name::from_ascii("dns.test.").expect("a name");
    let servers = vec![
        Server::Named(Scheme::Tcp, name.clone(), 53),
        Server::Named(Scheme::Udp, name.clone(), 5353),
        Server::Named(Scheme::Tcp, name, 53),
    ];
    let at = "192.0.2.1:53".parse().expect("an address");
    let definition = config::Upstream { bootstrap: vec![Server::Udp(at)], ..config::Upstream::new(servers) };
    let ours: Vec<SocketAddr> = ours.iter().map(|text| text.parse().expect("an address")).collect();
    Pool::with(definition, 1232, &ours, Arc::new(bootstrap.clone()), mpsc::channel(1).0)
}

fn labels(pool: &Pool) -> Vec<String> {
    pool.servers().iter().map(|server| server.label.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn each_way_of_asking_a_name_has_a_server_for_each_address() {
    let bootstrap = Bootstrap::default();
    bootstrap.says(&[[10, 0, 0, 2], [10, 0, 0, 1], [0, 0, 0, 0], [224, 0, 0, 1]]);
    let pool = pool(&bootstrap, &[]);
    assert!(labels(&pool).is_empty() && !pool.is_looked_up());
    sleep(Duration::from_millis(1)).await;
    assert!(pool.is_looked_up() && pool.unresolved().is_empty());
    let all = ["tcp://10.0.0.1:53", "tcp://10.0.0.2:53", "udp://10.0.0.1:5353", "udp://10.0.0.2:5353"];
    assert_eq!(labels(&pool), all);
    assert_eq!(bootstrap.asked.load(Ordering::Relaxed), 2, "one look-up for both");
}

#[tokio::test(start_paused = true)]
async fn an_own_address_of_a_name_is_passed_over() {
    let bootstrap = Bootstrap::default();
    bootstrap.says(&[[10, 0, 0, 1], [10, 0, 0, 2]]);
    let pool = pool(&bootstrap, &["10.0.0.1:53", "[::1]:53"]);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(labels(&pool), ["tcp://10.0.0.2:53", "udp://10.0.0.1:5353", "udp://10.0.0.2:5353"]);
}

#[tokio::test(start_paused = true)]
async fn servers_that_stay_are_the_same_and_nobody_looks_up_for_a_pool_that_is_gone() {
    let bootstrap = Bootstrap::default();
    bootstrap.says(&[[10, 0, 0, 1], [10, 0, 0, 2]]);
    let pool = pool(&bootstrap, &[]);
    sleep(Duration::from_millis(1)).await;
    let before = pool.servers();
    bootstrap.says(&[[10, 0, 0, 3], [10, 0, 0, 2]]);
    sleep(Duration::from_secs(12)).await;
    let after = pool.servers();
    assert_eq!(labels(&pool)[..2], ["tcp://10.0.0.2:53", "tcp://10.0.0.3:53"]);
    assert!(Arc::ptr_eq(&before[1], &after[0]));
    let (gone, asked) = (Arc::downgrade(&pool), bootstrap.asked.load(Ordering::Relaxed));
    let resolver = Arc::downgrade(pool.names.resolver.as_ref().expect("who resolves"));
    drop((pool, before, after));
    sleep(Duration::from_secs(60)).await;
    assert!(gone.upgrade().is_none() && resolver.upgrade().is_none());
    assert_eq!(bootstrap.asked.load(Ordering::Relaxed), asked);
}

/// A pool may go away in the middle of a look-up.
#[tokio::test(start_paused = true)]
async fn a_look_up_under_way_does_not_keep_its_pool() {
    let pool = pool(&Bootstrap::default(), &[]);
    let weak = Arc::downgrade(&pool);
    drop(pool);
    assert!(weak.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_query_waits_for_the_first_server_until_its_deadline() {
    let bootstrap = Bootstrap::default();
    let pool = pool(&bootstrap, &[]);
    let key = question(&Name::from_ascii("www.test.").expect("a name"), rtype::A);
    let began = Instant::now();
    let done = pool.exchange(&key, None).await;
    assert_eq!(done.result.expect_err("nobody is there"), Cause::NoServer);
    assert_eq!((began.elapsed().as_secs(), done.attempts.len()), (4, 0));
    assert_eq!(pool.unresolved()[0].1, "A NOERROR, no address; AAAA NOERROR, no address");
}

/// After a minute without any address look-ups are further apart than a query waits.
#[tokio::test(start_paused = true)]
async fn a_query_that_waits_for_a_name_has_it_looked_up_every_second() {
    let bootstrap = Bootstrap::default();
    let pool = pool(&bootstrap, &[]);
    sleep(Duration::from_secs(60)).await;
    let (asked, generation) = (bootstrap.asked.load(Ordering::Relaxed), pool.generation());
    assert!(asked < 50, "{asked}");
    let key = question(&Name::from_ascii("www.test.").expect("a name"), rtype::A);
    let began = Instant::now();
    let mut waiting = pin!(pool.exchange(&key, None));
    let early = tokio::time::timeout(Duration::from_millis(1_500), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    assert!(bootstrap.asked.load(Ordering::Relaxed) >= asked + 2);
    bootstrap.says(&[[10, 0, 0, 1]]);
    // Nobody is there by TCP, but by UDP.
    assert!(waiting.await.result.is_ok());
    assert!(began.elapsed() < Duration::from_millis(2_600), "{:?}", began.elapsed());
    assert!(pool.generation() > generation, "that there was no server is forgotten");
    assert!(pool.unresolved().is_empty());
}
