//! Finding out whether a server that is passed over is back: at no client's expense, by a question of our own.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::Pool;
use super::server::Server;

/// A probe goes out this often, whether or not the one before has been answered: a server that is back is noticed
/// within it. A SYN to one that is gone would be repeated after a second.
const EVERY: Duration = Duration::from_millis(250);
/// How long one is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// A server that has let a probe wait for so long is down, until it answers.
const DOWN: Duration = Duration::from_millis(500);

/// How long a probe by TCP is waited for: a connection, which may take 1.5 s, and an answer.
const BY_TCP: Duration = Duration::from_millis(2500);

/// Asks an `auto://` server by TCP, which decides whether its clients' questions go by TCP again.
pub(super) async fn by_tcp(pool: Weak<Pool>, server: Weak<Server>) {
    let (key, server) = {
        let (Some(pool), Some(server)) = (pool.upgrade(), server.upgrade()) else { return };
        (pool.probe_key(), server)
    };
    let answered = timeout(BY_TCP, server.probe_tcp(&key)).await;
    server.decide(matches!(answered, Ok(Ok(()))));
}

/// Probes a server until it answers, or until it or its pool is gone.
pub(super) async fn until_back(pool: Weak<Pool>, server: Weak<Server>) {
    let began = Instant::now();
    let mut next = began;
    let mut probes = FuturesUnordered::new();
    loop {
        {
            let (Some(pool), Some(server)) = (pool.upgrade(), server.upgrade()) else { return };
            if !server.health.is_passed_over() || !pool.has(&server) {
                return;
            }
            let now = Instant::now();
            if now >= began + DOWN {
                server.health.probe_failed();
            }
            if now >= next {
                next = now + EVERY;
                let key = pool.probe_key();
                let asked = Arc::clone(&server);
                probes.push(timeout(PATIENCE, async move { asked.probe(&key).await }));
            }
        }
        tokio::select! {
            Some(ended) = probes.next() => {
                let (Some(pool), Some(server)) = (pool.upgrade(), server.upgrade()) else { return };
                match ended {
                    Ok(Ok(())) => return pool.is_back(&server),
                    Ok(Err(_)) | Err(_) => server.health.probe_failed(),
                }
            }
            () = sleep_until(next) => {}
        }
    }
}
