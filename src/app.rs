//! The composition root: the only module that knows all others. Configuration → pools → cache →
//! listeners → admin; then reloads, and the end.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::{mpsc, watch};

use crate::admin::control;
use crate::admin::{self, Admin, Readiness};
use crate::config::file::{self, ConfigError};
use crate::config::{self, Config, Reload};
use crate::metrics::{self as names, Metrics, ZoneMetrics};
use crate::node::{Bypass, NodeError};
use crate::resolve::Resolver;
use crate::resolve::echo::Loop;
use crate::resolve::view::View;
use crate::serve::socket::{self, Listeners};
use crate::serve::tcp::{Clients, Listener};
use crate::serve::udp::{Replies, Worker};
use crate::serve::{Pulse, socket::HEARTBEAT};
use crate::upstream::transport::Kernel;
use crate::upstream::{Late, LateAnswer, Pool, system, tls};

mod loops;
mod watch_file;
use loops::Probes;
use watch_file::WatchedFile;

/// How long a stopping agent waits for what is in flight.
pub const DRAIN: Duration = Duration::from_secs(5);
/// Late answers that wait to be kept; beyond it they are lost.
const LATE: usize = 256;
/// How often idle connections are closed and watched files are looked at.
pub const TICK: Duration = Duration::from_secs(1);

/// A worker's thread, and its sign of life.
type Thread = (JoinHandle<()>, Arc<Pulse>);

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket cannot be opened.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// There are `tls://` servers, and nobody to vouch for them.
    #[error(transparent)]
    Tls(#[from] tls::LoadError),
    /// The kernel does not take the rules that the configuration asks for.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The recorder of metrics is there already: a second agent in one process.
    #[error("metrics: {0}")]
    Metrics(String),
}

/// Why a new configuration is not in use.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// As [`StartError::Tls`].
    #[error(transparent)]
    Tls(#[from] tls::LoadError),
    /// The kernel does not take its rules.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// It changes what is fixed when the agent starts.
    #[error("{0} cannot change while the agent runs: restart it")]
    Fixed(&'static str),
}

/// A running agent.
pub struct Agent {
    config: Config,
    hash: String,
    file: Option<WatchedFile>,
    resolv_conf: WatchedFile,
    probes: Probes,
    pools: Vec<Arc<Pool>>,
    /// After the pools, whose connections it is about.
    bypass: Option<Bypass>,
    zones: HashMap<String, Arc<ZoneMetrics>>,
    late: Late,
    resolver: Arc<Resolver>,
    clients: Arc<Clients>,
    readiness: Arc<Readiness>,
    workers: Vec<JoinHandle<()>>,
    stop_workers: Arc<AtomicBool>,
    stop_tasks: watch::Sender<bool>,
    /// Where it listens, ports resolved.
    pub addrs: Vec<SocketAddr>,
    /// Where its admin HTTP listens.
    pub admin: SocketAddr,
}

/// Makes the recorder that the `metrics` facade writes to. Once in a process, before [`Agent::start`].
///
/// # Errors
/// When there is one already.
pub fn install_metrics() -> Result<PrometheusHandle, StartError> {
    let handle = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|error| StartError::Metrics(error.to_string()))?;
    names::describe();
    names::publish_build();
    Ok(handle)
}

impl Agent {
    /// Opens the sockets and starts all threads and tasks. `path` is the file that `config` came
    /// from, to be read again on reload, and `hash` its digest.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn start(
        config: Config,
        path: Option<PathBuf>,
        hash: &str,
        prometheus: PrometheusHandle,
    ) -> Result<Self, StartError> {
        let started = Instant::now();
        // Before the first connection: what has been tracked once stays so.
        let bypass = Bypass::of(&config)?;
        let metrics = Arc::new(Metrics::new(config.workers));
        let sockets: Vec<Listeners> = config
            .listen
            .iter()
            .map(|&addr| socket::open(addr, config.workers))
            .collect::<io::Result<_>>()?;
        let addrs: Vec<SocketAddr> = sockets.iter().map(|sockets| sockets.addr).collect();
        let (mut pools, mut zones) = (Vec::new(), HashMap::new());
        let (late, late_answers) = mpsc::channel(LATE);
        let view = make_view(&config, &mut pools, &mut zones, &metrics, (&addrs, &late))?;
        let runtime = tokio::runtime::Handle::current();
        let resolver = Resolver::new(view, config.cache.size, &config.limits, metrics, runtime);
        tokio::spawn(keep_late(Arc::clone(&resolver), late_answers));
        let (stop_tasks, stopping) = watch::channel(false);
        let stop_workers = Arc::new(AtomicBool::new(false));
        let clients = Clients::new(config.limits.clone());
        let threads = serve(sockets, &resolver, &clients, &stop_workers, &stopping)?;
        let (workers, pulses) = threads.into_iter().unzip();
        let readiness = Arc::new(Readiness::new(pulses));
        let admin = Admin { resolver: Arc::clone(&resolver), readiness: Arc::clone(&readiness), prometheus };
        let admin = admin::listen(config.admin, Arc::new(admin))?;
        control::listen(&config.control, Arc::clone(&resolver), Arc::clone(&readiness))?;
        gauge!(names::CONFIG_LAST_RELOAD).set(1.0);
        publish_config(hash, 1.0);
        tracing::info!(
            listen = ?addrs, admin = %admin, control = %config.control.display(), workers = config.workers,
            after_ms = started.elapsed().as_secs_f64() * 1e3, "answering"
        );
        let probes = Probes::start(&resolver);
        let agent = Self {
            file: path.map(WatchedFile::new),
            resolv_conf: WatchedFile::new(system::RESOLV_CONF.into()),
            probes,
            pools,
            bypass,
            zones,
            late,
            resolver,
            clients,
            readiness,
            workers,
            stop_workers,
            stop_tasks,
            addrs,
            admin,
            config,
            hash: hash.to_owned(),
        };
        agent.readiness.wait_for_upstream(Arc::clone(&agent.resolver));
        Ok(agent)
    }

    /// Tells of an upstream that leads back here, which is looked for in the background from the start on.
    /// Such an agent cannot answer and should end.
    pub fn watch_for_loops(&self) -> watch::Receiver<Option<Loop>> {
        self.resolver.echoes.watch()
    }

    /// What is done once a second: idle connections close, changed files are read again.
    pub fn tick(&mut self) {
        for pool in &self.pools {
            pool.tidy();
        }
        self.probes.go_on(&self.resolver);
        if self.resolv_conf.changed() {
            for pool in self.pools.iter().filter(|pool| pool.is_system()) {
                pool.refresh(&self.addrs);
            }
        }
        let watched = self.config.reload == Reload::Auto;
        if watched && self.file.as_mut().is_some_and(WatchedFile::changed) {
            self.reload();
        }
    }

    /// Reads the configuration again. Either all of it is in force afterwards, or nothing changed.
    pub fn reload(&mut self) {
        let result = self.try_reload();
        let label = if result.is_ok() { "ok" } else { "failed" };
        counter!(names::CONFIG_RELOADS, "result" => label).increment(1);
        gauge!(names::CONFIG_LAST_RELOAD).set(if result.is_ok() { 1.0 } else { 0.0 });
        match result {
            Ok(()) => tracing::info!(zones = self.config.zones.len(), "configuration reloaded"),
            Err(error) => tracing::error!(%error, "the old configuration stays in force"),
        }
    }

    fn try_reload(&mut self) -> Result<(), ReloadError> {
        let Some(file) = &self.file else { return Ok(()) };
        let loaded = file::load(file.path())?;
        let new = loaded.config;
        let old = &self.config;
        let fixed = [
            ("listen", new.listen == old.listen),
            ("admin", new.admin == old.admin),
            ("control", new.control == old.control),
            ("workers", new.workers == old.workers),
            ("cache.size", new.cache.size == old.cache.size),
            ("edns_size", new.edns_size == old.edns_size),
            ("limits", new.limits == old.limits),
            ("log", new.log == old.log),
            ("network", new.network == old.network),
        ];
        if let Some((key, _)) = fixed.into_iter().find(|(_, same)| !same) {
            return Err(ReloadError::Fixed(key));
        }
        let outgrown = self.bypass.as_ref().is_some_and(|bypass| !bypass.fits(&new));
        let bypass = if outgrown { Some(Bypass::of(&new)?) } else { None };
        let metrics = Arc::clone(&self.resolver.metrics);
        let own = (&*self.addrs, &self.late);
        let view = make_view(&new, &mut self.pools, &mut self.zones, &metrics, own)?;
        if let Some(bypass) = bypass {
            self.bypass = bypass; // the old rules go now that the new ones are there
        }
        self.resolver.replace_view(view);
        self.config = new;
        publish_config(&self.hash, 0.0);
        publish_config(&loaded.hash, 1.0);
        self.hash = loaded.hash;
        Ok(())
    }

    /// One line that says how the agent is doing.
    pub fn log_stats(&self) {
        tracing::info!(stats = %control::stats(&self.resolver), "statistics");
    }

    /// Takes no new work, finishes what is in flight (at most [`DRAIN`]), and ends.
    pub async fn stop(self) {
        self.readiness.drain();
        let deadline = Instant::now() + DRAIN;
        self.stop_workers.store(true, Ordering::Relaxed);
        let _ = self.stop_tasks.send(true);
        let workers = self.workers;
        // Each notices within HEARTBEAT; joined elsewhere, so that flights go on meanwhile.
        let joined = tokio::task::spawn_blocking(move || {
            for worker in workers {
                let _ = worker.join();
            }
        });
        if tokio::time::timeout(DRAIN.max(HEARTBEAT), joined).await.is_err() {
            tracing::warn!("a worker did not end");
        }
        while Instant::now() < deadline && (self.resolver.flights.waiting() > 0 || self.clients.count() > 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let left = self.resolver.flights.waiting();
        let _ = std::fs::remove_file(&self.config.control);
        tracing::info!(unanswered = left, "ended");
    }
}

/// Starts what answers on these sockets: threads for UDP, and a task for the TCP clients of each address.
fn serve(
    sockets: Vec<Listeners>,
    resolver: &Arc<Resolver>,
    clients: &Arc<Clients>,
    stop_workers: &Arc<AtomicBool>,
    stopping: &watch::Receiver<bool>,
) -> io::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for Listeners { udp, tcp, addr } in sockets {
        for (slot, socket) in udp.into_iter().enumerate() {
            let pulse = Arc::new(Pulse::new());
            let socket = Arc::new(socket);
            let worker = Worker {
                replies: Arc::new(Replies::new(Arc::clone(&socket), Arc::clone(&resolver.metrics))),
                socket,
                addr,
                slot,
                pulse: Arc::clone(&pulse),
                resolver: Arc::clone(resolver),
                stop: Arc::clone(stop_workers),
            };
            let thread = std::thread::Builder::new().name(format!("udp-{slot}"));
            threads.push((thread.spawn(move || worker.run())?, pulse));
        }
        let listener = Listener {
            socket: tokio::net::TcpListener::from_std(tcp)?,
            addr,
            resolver: Arc::clone(resolver),
            clients: Arc::clone(clients),
            stop: stopping.clone(),
        };
        tokio::spawn(listener.run());
    }
    Ok(threads)
}

/// The view of a configuration. Pools of equal definitions and counters of equal names are kept from
/// the one before; pools that no zone uses any more go. An error changes nothing.
fn make_view(
    config: &Config,
    pools: &mut Vec<Arc<Pool>>,
    zones: &mut HashMap<String, Arc<ZoneMetrics>>,
    metrics: &Metrics,
    (ours, late): (&[SocketAddr], &Late),
) -> Result<View, tls::LoadError> {
    let mut used: Vec<Arc<Pool>> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    let view = View::new(config, |zone: &config::Zone| {
        let shared = used.iter().find(|pool| *pool.definition() == zone.upstream);
        let known = shared.or_else(|| pools.iter().find(|pool| pool.is_made_from(&zone.upstream)));
        let make = || {
            let definition = zone.upstream.clone();
            let network = Arc::new(kernel(&config.network, &definition));
            Pool::with(definition, config.edns_size, ours, network, late.clone())
        };
        let pool = known.cloned().unwrap_or_else(make);
        if !used.iter().any(|known| Arc::ptr_eq(known, &pool)) {
            used.push(Arc::clone(&pool));
        }
        let name = match &zone.matches[0] {
            root if root.is_root() => ".".to_owned(),
            name => name.to_utf8().trim_end_matches('.').to_owned(),
        };
        let counters = zones.entry(name.clone()).or_insert_with(|| metrics.zone(&name));
        names.push(name);
        (pool, Arc::clone(counters))
    });
    used.iter().try_for_each(|pool| pool.usable())?;
    for zone in view.zones.iter().rev() {
        zone.pool.probe_with(&zone.apex); // in the end the first zone that asks it
    }
    zones.retain(|name, _| names.contains(name));
    *pools = used;
    Ok(view)
}

/// The sockets of a pool. Whoever resolves the names of its servers is reached by a ClusterIP, as a rule, which
/// nobody can reach past connection tracking.
fn kernel(network: &config::Network, upstream: &config::Upstream) -> Kernel {
    if !network.upstream_notrack {
        return Kernel::default();
    }
    let bootstrap = upstream.bootstrap.iter().filter_map(config::Server::addr).collect();
    Kernel::marked(network.mark.own, bootstrap)
}

/// Keeps the answers that came after their clients had been told something else.
async fn keep_late(resolver: Arc<Resolver>, mut answers: mpsc::Receiver<LateAnswer>) {
    while let Some(answer) = answers.recv().await {
        resolver.keep_late(answer);
    }
}

fn publish_config(hash: &str, in_use: f64) {
    gauge!(names::CONFIG_INFO, "hash" => hash.to_owned()).set(in_use);
}
