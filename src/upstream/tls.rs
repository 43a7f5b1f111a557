//! DNS over TLS (RFC 7858): a [`Link`] goes in and a [`Link`] comes out, so that framing, connections and pools
//! are the code that TCP uses.
//!
//! The server always proves who it is, by the name that the configuration gives (RFC 8310 §5, strict profile).
//! One that cannot is not asked, and nothing ever goes out in the clear instead.

mod authorities;
mod problem;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, HandshakeKind, crypto};

use super::Cause;
use super::transport::Link;
use crate::config;
use crate::metrics::Counter;
pub use authorities::LoadError;
use problem::Problem;

/// A handshake is two round trips and a signature. A server that needs longer is too busy to be waited for, and
/// the time of the queries that wait for it has to be enough for another try.
const HANDSHAKE: Duration = Duration::from_millis(1500);
/// Sessions kept for one server, each good for one more handshake: as many as rustls keeps tickets of one name.
const SESSIONS: usize = 8;
/// A server whose handshakes fail is logged this often at the most.
const SILENCE: Duration = Duration::from_secs(60);
/// Certificates refused in a row after which only one handshake in a [`PAUSE`] is made: each is
/// public-key work on the one thread that all misses share. Fewer could be one bad server of several at an address.
const REFUSALS: u32 = 8;
/// A certificate gets no better within this time.
const PAUSE: Duration = Duration::from_millis(250);
/// The protocol's name in a handshake (IANA, TLS ALPN Protocol IDs): a server of many protocols knows what is wanted.
const ALPN: &[u8] = b"dot";

/// What the `tls://` servers of a pool have in common: whom to trust.
pub struct Tls {
    config: ClientConfig,
    digest: u64,
}

impl Tls {
    /// Reads the certificate authorities for the `tls://` servers of a definition. `None` if it has none.
    ///
    /// # Errors
    /// Without authorities no server can be trusted.
    pub fn load(definition: &config::Upstream) -> Result<Option<Self>, LoadError> {
        let mut servers = definition.servers.iter().chain(&definition.bootstrap);
        if !servers.any(|server| matches!(server, config::Server::Tls(..))) {
            return Ok(None);
        }
        let (roots, digest) = authorities::load(definition.ca.as_deref())?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| LoadError::Provider(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Some(Self { config, digest }))
    }

    /// Whether it is what [`Tls::load`] would give now: files of authorities change under the same name.
    pub fn is_current(&self, definition: &config::Upstream) -> bool {
        authorities::load(definition.ca.as_deref()).is_ok_and(|(_, digest)| digest == self.digest)
    }
}

/// Handshakes with one server, by how they ended.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// With a proof of the server's name.
    pub full: Counter,
    /// With the secret of a session before, which proves it as well.
    pub resumed: Counter,
    /// Without a connection.
    pub failed: Counter,
}

/// What came before.
#[derive(Debug, Default)]
struct Past {
    /// When it was last logged that a handshake failed.
    logged: Option<Instant>,
    /// Certificates refused in a row.
    refusals: u32,
    /// The next handshake after too many of them.
    next: Option<Instant>,
}

impl Past {
    /// Whether the last line is long enough ago; this one counts from now on.
    fn may_log(&mut self, now: Instant) -> bool {
        let is_due = self.logged.is_none_or(|before| now.saturating_duration_since(before) >= SILENCE);
        if is_due {
            self.logged = Some(now);
        }
        is_due
    }

    /// Whether a handshake may succeed; this one counts from now on.
    fn is_promising(&mut self, now: Instant) -> bool {
        if self.refusals < REFUSALS {
            return true;
        }
        let is_due = self.next.is_none_or(|next| next <= now);
        if is_due {
            self.next = Some(now + PAUSE);
        }
        is_due
    }
}

/// What makes connections to one server private.
pub struct Client {
    /// `None` makes every handshake fail: what is meant for TLS never goes without.
    ready: Option<(TlsConnector, ServerName<'static>)>,
    /// The server's label, for the log.
    server: Arc<str>,
    past: Mutex<Past>,
    /// What is counted of it.
    pub handshakes: Handshakes,
}

impl Client {
    /// For the server of this name and this label. Sessions are a server's own, even where others share its name:
    /// each server knows only its own tickets.
    pub fn new(tls: Option<&Tls>, name: &str, server: Arc<str>) -> Self {
        let ready = tls.zip(ServerName::try_from(name.to_owned()).ok()).map(|(tls, name)| {
            let mut config = tls.config.clone();
            config.resumption = Resumption::in_memory_sessions(SESSIONS);
            // No early data: whoever records it can replay it, and a first query gains one round trip in the
            // rare case that no connection is open.
            config.enable_early_data = false;
            (TlsConnector::from(Arc::new(config)), name)
        });
        Self { ready, server, past: Mutex::default(), handshakes: Handshakes::default() }
    }

    /// The handshake on a stream that was opened: what is written afterwards only the server can read.
    ///
    /// # Errors
    /// [`Cause::Certificate`] when the server does not prove its name, [`Cause::Tls`] for everything else.
    pub async fn handshake(&self, link: Link) -> Result<Link, Cause> {
        if !self.past().is_promising(Instant::now()) {
            return Err(Cause::Certificate);
        }
        let result = match &self.ready {
            Some((connector, name)) => {
                let connecting = connector.connect(name.clone(), stream::Joined(link));
                timeout(HANDSHAKE, connecting).await.map_or_else(
                    |_| Err(Problem::timeout(HANDSHAKE)),
                    |done| done.map_err(|error| Problem::of(&error, &name.to_str())),
                )
            }
            None => Err(Problem::not_ready()),
        };
        match result {
            Ok(stream) => {
                let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                let counter = if resumed { &self.handshakes.resumed } else { &self.handshakes.full };
                counter.add(1);
                self.past().refusals = 0;
                Ok(stream::split(stream))
            }
            Err(problem) => {
                self.handshakes.failed.add(1);
                let mut past = self.past();
                past.refusals += u32::from(problem.cause == Cause::Certificate);
                if past.may_log(Instant::now()) {
                    let Problem { what, fix, .. } = &problem;
                    tracing::warn!(server = %self.server, fix, "no TLS with {}: {what}", self.server);
                }
                Err(problem.cause)
            }
        }
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
