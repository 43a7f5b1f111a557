//! The composition root: the only module that knows all others. Configuration → pools → cache →
//! listeners → admin; then reloads, and the end.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::admin::control::{self, Control};
use crate::admin::{self, Admin};
use crate::config::file::{self, ConfigError};
use crate::config::{self, Config, DNS_PORT, Reload};
use crate::metrics::{self as names, Metrics, ZoneMetrics};
use crate::node::{Left, Node, NodeError, Tentative};
use crate::parent::{self, Parent};
use crate::readiness::{Readiness, Step};
use crate::resolve::Resolver;
use crate::resolve::echo::Loop;
use crate::resolve::view::View;
use crate::serve::socket::{HEARTBEAT, Manner, Place};
use crate::serve::tcp::{Clients, Stage};
use crate::upstream::transport::Kernel;
use crate::upstream::{Late, LateAnswer, Pool, system, tls};

mod listening;
mod loops;
mod warm;
mod watch_file;
use listening::Listening;
use loops::Probes;
use warm::Warm;
use watch_file::WatchedFile;

/// How long a stopping agent waits for what is in flight.
pub const DRAIN: Duration = Duration::from_secs(5);
/// Late answers that wait to be kept; beyond it they are lost.
const LATE: usize = 256;
/// How often idle connections are closed and watched files are looked at.
pub const TICK: Duration = Duration::from_secs(1);

/// Signs of life in each period of the parent's watchdog.
const SIGNS_OF_LIFE: u32 = 8;

/// How long TCP clients of ClusterIPs, or of an agent that is replaced, may take to get what they await. Nobody else waits for
/// that: who opens a connection meanwhile is led to the cluster's DNS, or to the other agent. The rest of [`DRAIN`] is for
/// those who never pause.
const FINISH: Duration = Duration::from_secs(4);
/// Packets that were led here before the rules went are in the sockets by then: they cross one queue of the kernel's.
const SETTLE: Duration = Duration::from_millis(20);

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket cannot be opened.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// There are `tls://` servers, and nobody to vouch for them.
    #[error(transparent)]
    Tls(#[from] tls::LoadError),
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

/// How an agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nobody is there after it.
    Last,
    /// Another one works already, with the same sockets: addresses, routes and the control socket are that one's.
    Replaced,
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
    node: Arc<Node>,
    zones: HashMap<String, Arc<ZoneMetrics>>,
    late: Late,
    resolver: Arc<Resolver>,
    listening: Arc<Listening>,
    readiness: Arc<Readiness>,
    parent: Arc<Parent>,
    control: Arc<Control>,
    warm: Option<Arc<Warm>>,
    /// Ends the admin HTTP.
    pages: AbortHandle,
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
    /// Sets the node up, opens the sockets and starts all threads and tasks. What the node does not have yet, an
    /// address or a port, is waited for while the agent runs. `path` is the file that `config` came from, to be read
    /// again on reload, and `hash` its digest. `parent` holds sockets and the cache beyond this process.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn start(
        config: Config,
        (path, hash): (Option<PathBuf>, &str),
        parent: Arc<Parent>,
        prometheus: PrometheusHandle,
    ) -> Result<Self, StartError> {
        let started = Instant::now();
        let readiness = Arc::new(Readiness::new());
        // Before the first connection: what has been tracked once stays so.
        // One that is kept may be about to replace another, which goes on if it does not come up.
        let fails = if parent.is_keep() { Left::Replaced } else { Left::Open };
        let node = Tentative::new(Node::start(&config, &readiness), fails);
        let metrics = Arc::new(Metrics::new(config.workers));
        let (mut pools, mut zones) = (Vec::new(), HashMap::new());
        let (late, late_answers) = mpsc::channel(LATE);
        let view = make_view(&config, &mut pools, &mut zones, &metrics, (&config.listen, &late))?;
        let runtime = tokio::runtime::Handle::current();
        let resolver = Resolver::new(view, config.cache.size, &config.limits, metrics, runtime);
        tokio::spawn(keep_late(Arc::clone(&resolver), late_answers));
        // Before the first query is taken.
        let warm = Warm::start(&config, &parent, &resolver);
        let clients = Clients::new(config.limits.clone());
        let manner = Manner { workers: config.workers, buffer: config.keep.receive_buffer, early: false };
        let listening = Listening::new(&resolver, &readiness, clients, (&parent, manner));
        let addrs = listen(&config, &listening)?;
        for addr in parent.left() {
            tracing::warn!(%addr, "no address of `listen` any more, but the parent still holds it: start that anew");
            listening.answer_at(Place { addr, intercepted: false })?;
        }
        let admin = Admin { resolver: Arc::clone(&resolver), readiness: Arc::clone(&readiness), prometheus };
        let (admin, pages) = admin::listen(config.admin, Arc::new(admin))?;
        let control = Control::new(&config.control, &resolver, &readiness);
        match control.is_taken() {
            false => control.listen()?,
            // The agent that this one is to replace: it may have to go on.
            true if parent.is_keep() => {}
            true => return Err(taken(&config.control).into()),
        }
        gauge!(names::CONFIG_LAST_RELOAD).set(1.0);
        publish_config(hash, 1.0);
        tracing::info!(
            listen = ?addrs, admin = %admin, control = %config.control.display(), workers = config.workers,
            after_ms = started.elapsed().as_secs_f64() * 1e3, "started"
        );
        tokio::spawn(tell(Arc::clone(&readiness), Arc::clone(&parent), Arc::clone(&control)));
        if let Some((restarts, relayed)) = parent.counts() {
            counter!(names::RESTARTS).absolute(restarts);
            counter!(names::RELAYED).absolute(relayed);
        }
        admin::wait_for_upstream(Arc::clone(&readiness), Arc::clone(&resolver));
        Ok(Self {
            file: path.map(WatchedFile::new),
            resolv_conf: WatchedFile::new(system::RESOLV_CONF.into()),
            probes: Probes::start(&resolver),
            pools,
            node: node.keep(),
            zones,
            late,
            resolver,
            listening,
            readiness,
            parent,
            control,
            warm,
            pages,
            addrs,
            admin,
            config,
            hash: hash.to_owned(),
        })
    }

    /// Why it does not answer everywhere yet, if it does not.
    pub fn waits_for_a_port(&self) -> Option<String> {
        [Step::Listen, Step::Admin].into_iter().find_map(|step| self.readiness.why_not(step))
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
        if self.control.is_lost()
            && let Err(error) = self.control.listen()
        {
            tracing::warn!("{error}");
        }
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
        let metrics = Arc::clone(&self.resolver.metrics);
        let own = (&*self.addrs, &self.late);
        // First, since it cannot be taken back that pools are other ones; rules can.
        self.node.ask(&new)?;
        let view = make_view(&new, &mut self.pools, &mut self.zones, &metrics, own).inspect_err(|_| {
            if let Err(error) = self.node.ask(&self.config) {
                tracing::warn!(%error, "the rules are those of the new configuration");
            }
        })?;
        self.resolver.replace_view(view);
        self.config = new;
        publish_config(&self.hash, 0.0);
        publish_config(&loaded.hash, 1.0);
        self.hash = loaded.hash;
        Ok(())
    }

    /// How often [`Agent::show_life`] is to be called, if at all: some times in each period of the parent's watchdog, so that
    /// one word may come late.
    pub fn shows_life_each(&self) -> Option<Duration> {
        self.parent.watchdog().map(|period| period / SIGNS_OF_LIFE)
    }

    /// Tells the parent that the agent lives, if it answers itself.
    pub async fn show_life(&self) {
        if control::answers_itself(&self.resolver, &self.readiness).await {
            self.parent.tell(parent::WATCHDOG);
        }
    }

    /// Writes the cache down for another agent, and says so when it is done.
    pub fn write_cache(&self) {
        let (warm, parent) = (self.warm.clone(), Arc::clone(&self.parent));
        tokio::task::spawn_blocking(move || {
            if let Some(warm) = warm {
                warm.write();
            }
            parent.tell(parent::WRITTEN);
        });
    }

    /// What the parent says, when it says something.
    pub fn parent(&self) -> Arc<Parent> {
        Arc::clone(&self.parent)
    }

    /// One line that says how the agent is doing.
    pub fn log_stats(&self) {
        tracing::info!(stats = %control::stats(&self.resolver), "statistics");
    }

    /// Takes no new work, finishes what is in flight (at most [`DRAIN`]), and ends. Nothing new is led here any more before
    /// the first socket closes, and what was led here goes on to be until the last one has.
    pub async fn stop(self, end: End) {
        self.readiness.drain();
        self.parent.tell(parent::STOPPING);
        let (finish, deadline) = (Instant::now() + FINISH, Instant::now() + DRAIN);
        let replaced = end == End::Replaced;
        if replaced {
            // Whoever asks for pages from now on is the other's.
            self.pages.abort();
        }
        if self.node.intercepts() {
            self.node.withdraw().await;
            tokio::time::sleep(SETTLE).await;
        }
        self.listening.finish(if replaced { Stage::Sharing } else { Stage::Finishing });
        let workers = self.listening.stop_datagrams();
        // Each notices within HEARTBEAT; joined elsewhere, so that flights go on meanwhile.
        let joined = tokio::task::spawn_blocking(move || {
            for worker in workers {
                let _ = worker.join();
            }
        });
        if tokio::time::timeout(DRAIN.max(HEARTBEAT), joined).await.is_err() {
            tracing::warn!("a worker did not end");
        }
        // Last, so that whoever was about to connect when the rules went still is.
        self.wait_for(finish, || self.listening.clients.count() > 0).await;
        self.listening.stop_streams();
        let is_busy = || self.resolver.flights.waiting() > 0 || self.listening.clients.count() > 0;
        self.wait_for(deadline, is_busy).await;
        if self.node.intercepts() {
            tokio::time::sleep(SETTLE).await; // what says goodbye comes by the rules
        }
        if let Some(warm) = self.warm.as_ref().filter(|_| !replaced) {
            warm.write();
        }
        self.node.leave(match end {
            End::Replaced => Left::Replaced,
            End::Last if self.parent.is_keep() => Left::Last,
            End::Last => Left::Open,
        });
        let left = self.resolver.flights.waiting();
        self.control.leave();
        tracing::info!(unanswered = left, "ended");
    }

    async fn wait_for(&self, deadline: Instant, is_busy: impl Fn() -> bool) {
        while Instant::now() < deadline && is_busy() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn taken(control: &Path) -> io::Error {
    let why = "another agent answers there: stop it, or give this one a `control` of its own";
    io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("control: cannot listen on {}: {why}", control.display()),
    )
}

/// Answers at the addresses to listen on and at the ClusterIPs. Returns the former, ports resolved.
fn listen(config: &Config, listening: &Arc<Listening>) -> io::Result<Vec<SocketAddr>> {
    for &ip in &config.network.intercept {
        listening.answer_at(Place { addr: SocketAddr::new(ip, DNS_PORT), intercepted: true })?;
    }
    let at = |&addr: &SocketAddr| listening.answer_at(Place { addr, intercepted: false });
    config.listen.iter().map(at).collect()
}

/// Logs when the agent becomes ready, and when it is so no longer.
async fn tell(readiness: Arc<Readiness>, parent: Arc<Parent>, control: Arc<Control>) {
    let mut changes = readiness.changes();
    let mut was_ready = false;
    loop {
        let reasons = readiness.reasons();
        if reasons.is_empty() != was_ready {
            was_ready = reasons.is_empty();
            match was_ready {
                true => {
                    tracing::info!("ready");
                    parent.tell(parent::READY);
                    if let Err(error) = control.listen() {
                        tracing::warn!("{error}");
                    }
                }
                false => tracing::warn!(?reasons, "not ready any more"),
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
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

/// The sockets of a pool. With interception all that goes out passes by it by its mark. Whoever resolves the names of
/// servers that are dialled directly is reached by a ClusterIP, as a rule, which nobody can reach past connection
/// tracking; one that is intercepted is spared by the rules themselves.
fn kernel(network: &config::Network, upstream: &config::Upstream) -> Kernel {
    if !network.upstream_notrack && network.intercept.is_empty() {
        return Kernel::default();
    }
    let bootstrap = upstream.bootstrap.iter().filter_map(config::Server::addr);
    let tracked =
        bootstrap.filter(|addr| network.upstream_notrack && !network.intercept.contains(&addr.ip()));
    Kernel::marked(network.mark.own, tracked.collect())
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
