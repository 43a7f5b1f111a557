//! The control socket: a unix socket on which the other subcommands ask a running agent.
//!
//! One request a connection, a JSON value on one line; the answer is JSON values, one a line, until
//! the agent closes. Only root can connect.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RecordType};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::trace::trace;
use super::upstreams;
use crate::cache::entry::Entry;
use crate::cache::is_under;
use crate::metrics::Source;
use crate::readiness::Readiness;
use crate::resolve::Resolver;
use crate::resolve::local::{self, plain};
use crate::wire::key::Key;
use crate::wire::name::display;
use crate::wire::response::Kind;

/// Longest request.
const REQUEST: u64 = 4096;
/// A client must have asked by then, and a traced query been answered.
const PATIENCE: Duration = Duration::from_secs(40);
/// Lines written at a time.
const CHUNK: usize = 64 * 1024;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How the agent is doing.
    Stats,
    /// Whether the agent can answer.
    Probe,
    /// The entries of a name.
    CacheGet {
        /// The name.
        name: String,
    },
    /// All entries.
    CacheDump,
    /// Drop entries: of a name, of a name and all below, or all.
    CacheFlush {
        /// Only this name.
        name: Option<String>,
        /// Only this name and those below it.
        zone: Option<String>,
    },
    /// Resolve a name as for a client, and tell how.
    Trace {
        /// The name.
        name: String,
        /// The type's mnemonic, or `TYPE` and a number.
        rtype: String,
    },
}

/// Where requests are answered.
pub struct Control {
    path: PathBuf,
    resolver: Arc<Resolver>,
    readiness: Arc<Readiness>,
    /// The socket's inode, while it listens.
    inode: Mutex<Option<u64>>,
}

impl Control {
    /// Nowhere yet.
    pub fn new(path: &Path, resolver: &Arc<Resolver>, readiness: &Arc<Readiness>) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            resolver: Arc::clone(resolver),
            readiness: Arc::clone(readiness),
            inode: Mutex::default(),
        })
    }

    /// Whether an agent answers there, this one or another.
    pub fn is_taken(&self) -> bool {
        BlockingStream::connect(&self.path).is_ok()
    }

    /// Answers requests from now on, if it does not yet, or if somebody has taken the socket away. One that is there already
    /// is replaced.
    ///
    /// # Errors
    /// When the socket cannot be made.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen(self: &Arc<Self>) -> io::Result<()> {
        let mut inode = self.inode.lock().unwrap_or_else(PoisonError::into_inner);
        if inode.is_some() && self.is_taken() {
            return Ok(());
        }
        let path = &self.path;
        let explain = |error: io::Error| {
            io::Error::new(error.kind(), format!("control: cannot listen on {}: {error}", path.display()))
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(explain)?;
        }
        // Whoever asks finds the old one or the new one, and neither with the rights of everybody.
        let mut new = path.as_os_str().to_owned();
        // Every container has a process 1.
        new.push(format!(".{:08x}", rand::random::<u32>()));
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new).map_err(explain)?;
        fs::set_permissions(&new, Permissions::from_mode(0o600)).map_err(explain)?;
        *inode = Some(fs::metadata(&new).map_err(explain)?.ino());
        fs::rename(&new, path).map_err(explain)?;
        tokio::spawn(Arc::clone(self).serve(listener));
        Ok(())
    }

    async fn serve(self: Arc<Self>, listener: UnixListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let control = Arc::clone(&self);
            tokio::spawn(async move {
                let conversation = converse(stream, &control.resolver, &control.readiness);
                // The client has gone or was too slow; it asked for nothing that must be finished.
                let _ = tokio::time::timeout(PATIENCE, conversation).await;
            });
        }
    }

    /// Whether nobody can ask any more: somebody has taken the socket away, as an agent does that was to replace this one.
    pub fn is_lost(&self) -> bool {
        let inode = *self.inode.lock().unwrap_or_else(PoisonError::into_inner);
        inode.is_some() && self.inode_there() != inode && !self.is_taken()
    }

    fn inode_there(&self) -> Option<u64> {
        fs::metadata(&self.path).ok().map(|there| there.ino())
    }

    /// Takes the socket away, unless it is another agent's by now.
    pub fn leave(&self) {
        let inode = *self.inode.lock().unwrap_or_else(PoisonError::into_inner);
        if inode.is_some() && self.inode_there() == inode {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn converse(mut stream: UnixStream, resolver: &Arc<Resolver>, readiness: &Readiness) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader.take(REQUEST)).read_line(&mut line).await?;
    let lines: Box<dyn Iterator<Item = Value> + Send> = match serde_json::from_str(&line) {
        Ok(request) => match answer(request, resolver, readiness).await {
            Ok(values) => values,
            Err(error) => Box::new([json!({ "error": error })].into_iter()),
        },
        Err(error) => Box::new([json!({ "error": format!("not a request: {error}") })].into_iter()),
    };
    let mut chunk = Vec::new();
    for value in lines {
        serde_json::to_writer(&mut chunk, &value)?;
        chunk.push(b'\n');
        if chunk.len() >= CHUNK {
            writer.write_all(&chunk).await?;
            chunk.clear();
            // A dump of the whole cache takes long, and queries go on meanwhile.
            tokio::task::yield_now().await;
        }
    }
    writer.write_all(&chunk).await
}

type Lines = Box<dyn Iterator<Item = Value> + Send>;

async fn answer(request: Request, resolver: &Arc<Resolver>, readiness: &Readiness) -> Result<Lines, String> {
    let now = Instant::now();
    let name = |text: &str| -> Result<Box<[u8]>, String> {
        let mut name = Name::from_utf8(text).map_err(|error| format!("{text}: {error}"))?;
        name.set_fqdn(true);
        Ok(plain(&name))
    };
    Ok(match request {
        Request::Stats => {
            let mut stats = stats(resolver);
            stats["ready"] = json!(readiness.reasons().is_empty());
            Box::new([stats].into_iter())
        }
        Request::Probe => {
            let ok = answers_itself(resolver, readiness).await;
            Box::new([json!({ "ok": ok, "ready": readiness.reasons() })].into_iter())
        }
        Request::CacheGet { name: text } => {
            let found = resolver.cache.of_name(&name(&text)?);
            Box::new(found.into_iter().map(move |(key, entry)| describe(&key, &entry, now)))
        }
        Request::CacheDump => {
            let all: Vec<_> = resolver.cache.iter().collect();
            Box::new(all.into_iter().map(move |(key, entry)| describe(&key, &entry, now)))
        }
        Request::CacheFlush { name: only, zone } => {
            let only = only.as_deref().map(name).transpose()?;
            let zone = zone.as_deref().map(name).transpose()?;
            let chosen = |key: &Key| {
                only.as_ref().is_none_or(|only| *key.name() == **only)
                    && zone.as_ref().is_none_or(|zone| is_under(key.name(), zone))
            };
            let flushed = resolver.cache.flush(chosen) + resolver.failures.flush(chosen);
            Box::new([json!({ "flushed": flushed })].into_iter())
        }
        Request::Trace { name, rtype } => Box::new([trace(&name, &rtype, resolver).await?].into_iter()),
    })
}

/// Whether every thread makes progress and the agent's own name is answered. Whether upstreams answer is not asked: a
/// restart would not mend them.
pub async fn answers_itself(resolver: &Arc<Resolver>, readiness: &Readiness) -> bool {
    let own = trace(&display(local::PROBE), "A", resolver).await;
    readiness.is_healthy() && own.is_ok_and(|own| own["result"] == Source::Local.label())
}

/// How the agent is doing, as one JSON object.
pub fn stats(resolver: &Resolver) -> Value {
    let totals = resolver.cache.totals();
    let view = resolver.view();
    let zones: Vec<Value> = view
        .zones
        .iter()
        .map(|zone| {
            let servers: Vec<Value> =
                zone.pool.servers().iter().map(|server| upstreams::describe(server)).collect();
            json!({
                "zone": zone.name,
                "hits": zone.metrics.answered(Source::Hit),
                "misses": zone.metrics.misses.value(),
                "stale": zone.metrics.answered(Source::Stale),
                "failures": zone.metrics.answered(Source::Failure),
                "servers": servers,
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "queries": resolver.metrics.queries(),
        "cache": {
            "positive": totals.positive,
            "negative": totals.negative,
            "failures": resolver.failures.len(),
            "bytes": totals.bytes,
            "evictions": totals.evictions,
        },
        "flights": resolver.flights.len(),
        "waiters": resolver.flights.waiting(),
        "zones": zones,
    })
}

fn describe(key: &Key, entry: &Entry, now: Instant) -> Value {
    let kind = match entry.kind() {
        Kind::Positive => "positive",
        Kind::NoData => "nodata",
        Kind::NxDomain => "nxdomain",
        Kind::Failure(_) => "failure",
    };
    let remaining = entry.remaining(now).map(|left| left.as_secs_f64());
    let records: Vec<String> = match Message::from_vec(entry.message()) {
        Ok(message) => message.answers.iter().chain(&message.authorities).map(ToString::to_string).collect(),
        Err(error) => vec![format!("cannot be shown: {error}")],
    };
    json!({
        "name": display(key.name()),
        "type": crate::wire::rtype::name(key.qtype()),
        "class": key.qclass(),
        "do": key.dnssec_ok(),
        "cd": key.checking_disabled(),
        "zone_labels": key.suffix_labels(),
        "kind": kind,
        "life_s": entry.life(),
        "remaining_s": remaining,
        "records": records,
    })
}

/// A type by its mnemonic, in any case, or as `TYPE` and a number (RFC 3597 §5).
///
/// # Errors
/// When it is neither.
pub fn parse_type(text: &str) -> Result<RecordType, String> {
    let upper = text.to_ascii_uppercase();
    let number = upper.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok());
    match number {
        Some(number) => Ok(RecordType::from(number)),
        None => upper.parse().map_err(|_| format!("{text}: no such type: give one like A, or TYPE65280")),
    }
}
