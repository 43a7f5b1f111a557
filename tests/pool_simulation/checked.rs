//! The network of the simulation does what the others rely on: else their figures would say nothing.

use std::io;
use std::time::Duration;

use nodens::upstream::transport::{Link, Network};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::endpoint::Service;
use crate::network::Net;
use crate::world::{address, quietly};

/// What the clock rounds up.
const TICK: u128 = 1;

/// One endpoint at the first address.
fn one(service: Service) -> Net {
    let net = Net::new(1);
    let endpoint = net.endpoint(service);
    net.lead(address(0), &[endpoint]);
    net
}

async fn connect(net: &Net) -> Link {
    net.connect(address(0)).await.expect("a connection")
}

fn query(label: &str) -> Vec<u8> {
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, label.len() as u8];
    query.extend(label.as_bytes());
    query.extend([0, 0, 1, 0, 1]);
    query
}

async fn write(link: &mut Link, label: &str) {
    let query = query(label);
    link.writer.write_u16(query.len() as u16).await.expect("room");
    link.writer.write_all(&query).await.expect("room");
}

/// Reads one answer, and says how many milliseconds it took.
async fn read(link: &mut Link) -> io::Result<u128> {
    let began = Instant::now();
    let length = link.reader.read_u16().await?;
    link.reader.read_exact(&mut vec![0; usize::from(length)]).await?;
    Ok(began.elapsed().as_millis())
}

fn is_about(took: u128, ms: u128) {
    assert!((ms..=ms + TICK).contains(&took), "{took} ms, not {ms}");
}

#[test]
fn a_serial_server_answers_one_after_the_other_and_a_concurrent_one_at_once() {
    quietly(async {
        let mut link = connect(&one(Service::serial(10))).await;
        for label in ["q1", "q2", "q3"] {
            write(&mut link, label).await;
        }
        for _ in 0..3 {
            is_about(read(&mut link).await.unwrap(), 10);
        }
        let mut link = connect(&one(Service::concurrent(10))).await;
        for label in ["q1", "q2", "q3"] {
            write(&mut link, label).await;
        }
        for wanted in [10, 0, 0] {
            is_about(read(&mut link).await.unwrap(), wanted);
        }
    });
}

#[test]
fn a_slow_name_holds_up_its_own_connection_alone() {
    quietly(async {
        let net = one(Service::serial(10));
        let (mut blocked, mut free) = (connect(&net).await, connect(&net).await);
        write(&mut blocked, "slow1").await;
        write(&mut blocked, "q1").await;
        write(&mut free, "q2").await;
        is_about(read(&mut free).await.unwrap(), 10);
        is_about(read(&mut blocked).await.unwrap(), 1990);
        is_about(read(&mut blocked).await.unwrap(), 10);
    });
}

#[test]
fn a_silent_server_says_nothing_until_our_kernel_gives_up() {
    quietly(async {
        let net = one(Service::serial(10));
        let (mut asked, mut idle) = (connect(&net).await, connect(&net).await);
        net.silence(0);
        write(&mut asked, "q1").await;
        let began = Instant::now();
        let error = read(&mut asked).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        is_about(began.elapsed().as_millis(), 1400);
        assert!(timeout(Duration::from_secs(9), read(&mut idle)).await.is_err(), "nothing to give up");
        assert!(
            timeout(Duration::from_secs(9), net.connect(address(0))).await.is_err(),
            "no answer to a SYN"
        );
    });
}

#[test]
fn what_a_short_silence_has_lost_is_repeated() {
    quietly(async {
        let net = one(Service::serial(10));
        let mut link = connect(&net).await;
        net.silence(0);
        write(&mut link, "q1").await;
        let connecting = tokio::spawn({
            let net = net.clone();
            async move { net.connect(address(0)).await.is_ok() }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        net.back(0);
        // Repeated after 200 and 600 ms; a SYN after a second.
        is_about(read(&mut link).await.unwrap(), 310);
        let began = Instant::now();
        assert!(connecting.await.unwrap());
        is_about(began.elapsed().as_millis(), 389);
    });
}

#[test]
fn a_new_process_resets_the_connections_to_the_old_one() {
    quietly(async {
        let net = one(Service::serial(10));
        let (mut idle, mut asked) = (connect(&net).await, connect(&net).await);
        net.silence(0);
        write(&mut asked, "q1").await;
        net.restarted(0);
        for link in [&mut asked, &mut idle] {
            write(link, "q2").await;
            assert_eq!(read(link).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
        let mut link = connect(&net).await;
        write(&mut link, "q3").await;
        is_about(read(&mut link).await.unwrap(), 10);
    });
}

#[test]
fn a_frozen_server_takes_everything_and_answers_once_it_thaws() {
    quietly(async {
        let net = one(Service::serial(10));
        net.freeze(0);
        let mut link = connect(&net).await;
        write(&mut link, "q1").await;
        assert!(timeout(Duration::from_secs(9), read(&mut link)).await.is_err());
        net.back(0);
        is_about(read(&mut link).await.unwrap(), 10);
        // What it has begun goes on where it was, however often it stands still.
        write(&mut link, "q2").await;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(3)).await;
            net.freeze(0);
            tokio::time::sleep(Duration::from_millis(100)).await;
            net.back(0);
        }
        is_about(read(&mut link).await.unwrap(), 1);
        net.freeze(0);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut link = connect(&net).await;
        write(&mut link, "q3").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        net.back(0);
        is_about(read(&mut link).await.unwrap(), 10);
    });
}

#[test]
fn a_server_that_ends_resets_and_refuses() {
    quietly(async {
        let net = one(Service::serial(10));
        let mut link = connect(&net).await;
        write(&mut link, "q1").await;
        net.refuse(0);
        assert_eq!(read(&mut link).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let refused = net.connect(address(0)).await.err().expect("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        net.lead(address(0), &[]);
        let rejected = net.connect(address(0)).await.err().expect("no endpoint");
        assert_eq!(rejected.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn idle_connections_are_closed_and_a_query_that_comes_too_late_is_lost() {
    quietly(async {
        let net = one(Service::serial(10));
        let (mut used, mut unused) = (connect(&net).await, connect(&net).await);
        let began = Instant::now();
        write(&mut used, "q1").await;
        read(&mut used).await.unwrap();
        assert_eq!(read(&mut unused).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        is_about(began.elapsed().as_millis(), 3000);
        assert_eq!(read(&mut used).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        is_about(began.elapsed().as_millis(), 10_010);
        drop(unused);
        assert_eq!(net.look(0, |of| (of.opened, of.open, of.asked)), (2, 1, 1));
    });
}

#[test]
fn connections_to_a_cluster_ip_go_to_all_of_its_endpoints() {
    quietly(async {
        let net = Net::new(1);
        let endpoints: Vec<_> = (0..4).map(|_| net.endpoint(Service::serial(1))).collect();
        net.lead(address(0), &endpoints);
        for _ in 0..400 {
            connect(&net).await;
        }
        let opened: Vec<_> = endpoints.iter().map(|&n| net.look(n, |of| of.opened)).collect();
        assert!(opened.iter().all(|count| (60..140).contains(count)), "{opened:?}");
    });
}

#[test]
fn datagrams_are_answered_lost_and_refused() {
    quietly(async {
        let net = one(Service { loss: 0.2, ..Service::concurrent(10) });
        let mut answered = 0;
        for _ in 0..500 {
            let port = net.datagrams(address(0)).await.unwrap();
            port.send(&query("q1")).await.unwrap();
            answered += u32::from(timeout(Duration::from_millis(50), port.receive()).await.is_ok());
        }
        assert!((280..360).contains(&answered), "{answered} of 500, not 64 %");
        net.refuse(0);
        let port = net.datagrams(address(0)).await.unwrap();
        port.send(&query("q1")).await.unwrap();
        assert_eq!(port.receive().await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    });
}
