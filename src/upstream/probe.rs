//! Finding out whether a server that is passed over is back: at no client's expense, by a question of our own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::Pool;
use super::server::Server;

/// The second probe follows the first after this, each further one after twice as long as the one before. Most servers
/// that are passed over are back at once, and behind a ClusterIP the next connection may lead to one that works.
const FIRST: Duration = Duration::from_millis(10);
/// In the end a probe goes out this often, whether or not the one before has been answered: a server that is back is
/// noticed within it. A SYN to one that is gone would be repeated after a second.
const EVERY: Duration = Duration::from_millis(250);
/// A server that has been away for longer is probed half as often: each SYN to one that is gone is an entry in connection
/// tracking for two minutes.
const LONG: Duration = Duration::from_secs(60);
/// As often as that.
const SELDOM: Duration = Duration::from_millis(500);
/// How long one is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// A server that has let all probes wait for so long is down, until it answers.
const DOWN: Duration = Duration::from_millis(500);
/// The same if it takes connections and says nothing. It is there, and may only be busy with itself.
const HUNG: Duration = Duration::from_secs(2);

/// How long a probe by TCP is waited for: a connection, which may take 1.5 s, and an answer.
const BY_TCP: Duration = Duration::from_millis(2500);

/// Asks an `auto://` server by TCP, which decides whether its clients' questions go by TCP again.
pub(super) async fn by_tcp(pool: Weak<Pool>, server: Weak<Server>) {
    let (key, server) = {
        let (Some(pool), Some(server)) = (pool.upgrade(), server.upgrade()) else { return };
        (pool.probe_key(), server)
    };
    let answered = timeout(BY_TCP, server.probe_tcp(&key, &AtomicBool::new(false))).await;
    server.decide(matches!(answered, Ok(Ok(()))));
}

/// Probes a server that has been silent, once, and passes it over if it does not answer in the time in which it should,
/// nor anything else meanwhile.
pub(super) async fn once(pool: Weak<Pool>, server: Weak<Server>) {
    let (key, asked) = match (pool.upgrade(), server.upgrade()) {
        (Some(pool), Some(server)) => (pool.probe_key(), server),
        _ => return,
    };
    let patience = asked.pace.silent_after();
    let answered = timeout(patience, asked.probe(&key, &AtomicBool::new(false))).await;
    let Some(pool) = pool.upgrade() else { return };
    if matches!(answered, Ok(Ok(()))) {
        asked.counts.probes.ok.add(1);
        return pool.is_back(&asked);
    }
    asked.counts.probes.failed.add(1);
    if pool.has(&asked) && asked.health.is_checked() {
        pool.pass_over(&asked);
    }
}

/// Probes a server until it answers, or until it or its pool is gone.
pub(super) async fn until_back(pool: Weak<Pool>, server: Weak<Server>) {
    let began = Instant::now();
    let (mut next, mut pause) = (began, FIRST);
    let mut probes = FuturesUnordered::new();
    let reached = Arc::new(AtomicBool::new(false));
    loop {
        let wake = {
            let (Some(pool), Some(server)) = (pool.upgrade(), server.upgrade()) else { return };
            if !server.health.is_passed_over() || !pool.has(&server) {
                return;
            }
            let now = Instant::now();
            let patience = if reached.load(Ordering::Relaxed) { HUNG } else { DOWN };
            let down = began + patience.max(server.pace.silent_after() * 2);
            if now >= down {
                server.health.probe_failed();
            }
            if now >= next {
                next = now + pause;
                pause = (pause * 2).min(if now < began + LONG { EVERY } else { SELDOM });
                let (key, asked, reached) = (pool.probe_key(), Arc::clone(&server), Arc::clone(&reached));
                probes.push(timeout(PATIENCE, async move { asked.probe(&key, &reached).await }));
            }
            if now < down { next.min(down) } else { next }
        };
        tokio::select! {
            Some(ended) = probes.next() => {
                let (Some(pool), Some(server)) = (pool.upgrade(), server.upgrade()) else { return };
                match ended {
                    Ok(Ok(())) => {
                        server.counts.probes.ok.add(1);
                        return pool.is_back(&server);
                    }
                    Ok(Err(_)) => {
                        server.counts.probes.failed.add(1);
                        server.health.probe_failed();
                    }
                    // The time that it has been away decides.
                    Err(_) => server.counts.probes.failed.add(1),
                }
            }
            () = sleep_until(wake) => {}
        }
    }
}
