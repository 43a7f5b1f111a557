//! The cache beyond this process: written down now and then, in memory that the parent holds or in a file, and read at the
//! start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::cache::snapshot::{self, Written};
use crate::config::{Config, KeepCache};
use crate::parent::{CACHE, Parent};
use crate::resolve::Resolver;

/// The shortest time from one writing to the next: what is lost at a crash was asked within it.
const PERIOD: Duration = Duration::from_secs(10);
/// Writing may take this part of the time.
const SHARE: u32 = 200;

/// How long the first query waits for the cache where another agent answers meanwhile, and where none does.
const BESIDE_ANOTHER: Duration = Duration::from_secs(1);
const ALONE: Duration = Duration::from_millis(30);
/// So often it is looked whether the cache was flushed.
const LOOK: Duration = Duration::from_secs(1);

/// Where the cache is written down.
#[derive(Debug)]
enum Place {
    /// In one memory, which is written again and again.
    Memory(File),
    /// In a file, each time a new one in the place of the old.
    Path(PathBuf),
}

/// The cache, and where it is written down.
pub(super) struct Warm {
    resolver: Arc<Resolver>,
    budget: u64,
    place: Mutex<Place>,
}

impl Warm {
    /// Reads what was written down, and goes on from there. `None` if the configuration wants none of it, or nobody would
    /// hold it. What is large is read on while queries are answered.
    pub(super) fn start(config: &Config, parent: &Parent, resolver: &Arc<Resolver>) -> Option<Arc<Self>> {
        let (place, before) = match &config.keep.cache {
            KeepCache::Off => return None,
            KeepCache::Path(path) => (Place::Path(path.clone()), File::open(path).ok()),
            KeepCache::Memory => memory(parent)?,
        };
        // What is written of an entry is smaller than what the cache reckons for it.
        let warm =
            Self { resolver: Arc::clone(resolver), budget: config.cache.size, place: Mutex::new(place) };
        let warm = Arc::new(warm);
        if let Some(before) = before {
            let first = parent.counts().is_some_and(|(restarts, _)| restarts == 0);
            warm.restore(before, if first { BESIDE_ANOTHER } else { ALONE });
        }
        tokio::spawn(Arc::clone(&warm).keep_on());
        Some(warm)
    }

    /// Reads what is there on a thread of its own, and returns when that is done, or after this time.
    fn restore(self: &Arc<Self>, before: File, patience: Duration) {
        let (done, is_done) = mpsc::channel();
        let warm = Arc::clone(self);
        let read = move || {
            // Nothing is written meanwhile: it would be less than what is there.
            let _place = warm.place.lock().unwrap_or_else(PoisonError::into_inner);
            read(before, warm.budget, &warm.resolver);
            // Nobody may wait any more.
            let _ = done.send(());
        };
        match thread::Builder::new().name("restore".into()).spawn(read) {
            Ok(_) => drop(is_done.recv_timeout(patience)),
            Err(error) => tracing::warn!(%error, "the cache of before cannot be read"),
        }
    }

    async fn keep_on(self: Arc<Self>) {
        let mut pause = PERIOD;
        loop {
            let (written, epoch) = (Instant::now(), self.resolver.cache.epoch());
            // What was flushed must not come back.
            while written.elapsed() < pause && self.resolver.cache.epoch() == epoch {
                tokio::time::sleep(LOOK).await;
            }
            let warm = Arc::clone(&self);
            let began = Instant::now();
            // On a thread of its own: clients do not wait for it.
            if tokio::task::spawn_blocking(move || warm.write()).await.is_err() {
                return;
            }
            pause = PERIOD.max(SHARE * began.elapsed());
        }
    }

    /// Writes the cache down.
    pub(super) fn write(&self) {
        let began = Instant::now();
        match self.try_write() {
            Ok(Written { entries, bytes, left_out }) => tracing::debug!(
                entries,
                bytes,
                left_out,
                took_ms = began.elapsed().as_secs_f64() * 1e3,
                "the cache is written down"
            ),
            Err(error) => tracing::warn!(%error, "the cache cannot be written down: the next start is cold"),
        }
    }

    fn try_write(&self) -> io::Result<Written> {
        let write = |file: &mut File| {
            let view = self.resolver.view();
            let rule = |key: &_| view.rule_for(key);
            snapshot::write(&self.resolver.cache, rule, Instant::now(), SystemTime::now(), self.budget, file)
        };
        match &mut *self.place.lock().unwrap_or_else(PoisonError::into_inner) {
            Place::Memory(file) => {
                file.rewind()?;
                let written = write(file)?;
                // Nothing is left of a larger one before.
                file.set_len(written.bytes)?;
                Ok(written)
            }
            Place::Path(path) => {
                let mut new = path.clone().into_os_string();
                new.push(".new");
                // Names that pods ask for are nobody else's business, and a link is not followed.
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
                let written = write(&mut options.open(&new)?)?;
                fs::rename(&new, path)?;
                Ok(written)
            }
        }
    }
}

/// The memory that the parent has kept, with what is in it, or new one, for it to keep.
fn memory(parent: &Parent) -> Option<(Place, Option<File>)> {
    if let Some(file) = parent.cache() {
        let before = file
            .try_clone()
            .inspect_err(|error| tracing::warn!(%error, "the cache of before cannot be read"));
        return Some((Place::Memory(file), before.ok()));
    }
    if !parent.is_there() {
        return None;
    }
    match memfd_create(CACHE, MemfdFlags::CLOEXEC) {
        Ok(descriptor) => {
            parent.keep(CACHE, &[descriptor.as_fd()]);
            Some((Place::Memory(descriptor.into()), None))
        }
        Err(error) => {
            tracing::warn!(%error, "no memory for the cache beyond this process: the next start is cold");
            None
        }
    }
}

/// Reads what is there; what is damaged is left.
fn read(mut file: File, budget: u64, resolver: &Arc<Resolver>) {
    let (began, mut bytes) = (Instant::now(), Vec::new());
    // A foreign file may be of any size.
    let limit = budget + snapshot::HEADER as u64;
    let whole = file.rewind().and_then(|()| BufReader::new(file).take(limit).read_to_end(&mut bytes));
    if let Err(error) = whole {
        return tracing::warn!(%error, "the cache of before cannot be read");
    }
    let view = resolver.view();
    let rule = |key: &_| view.rule_for(key);
    match snapshot::read(&bytes, &resolver.cache, rule, Instant::now(), SystemTime::now()) {
        Ok(restored) => tracing::info!(
            entries = restored.entries,
            expired = restored.expired,
            left_out = restored.left_out,
            malformed = restored.malformed,
            old_s = restored.since.as_secs_f64(),
            took_ms = began.elapsed().as_secs_f64() * 1e3,
            "the cache of before is there again"
        ),
        Err(damaged) => tracing::warn!("the cache of before is left: it is {damaged}"),
    }
}
