//! What the agent asks of its node: addresses, rules and routes in the kernel, without any program beside it.
//!
//! There is one way to all of it, `Node::settle`: look at what is there, add what is missing. It is gone at the start,
//! when the kernel tells of a change, when the agent becomes able or unable to answer, and now and then in any case. So
//! whatever goes comes back, and what fails is tried again.

pub mod events;
mod firewalls;
mod leave;
mod leftovers;
pub mod link;
pub mod netfilter;
mod netlink;
pub mod route;
mod rtnetlink;
pub mod rules;
pub mod sockets;
mod steps;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};

use crate::config::{Config, DNS_PORT, Network, Server};
use crate::metrics::{INTERCEPTING, SETUP_REPAIRS};
use crate::readiness::{Readiness, Step};
use events::Events;
use firewalls::Opening;
pub use leave::{Left, Tentative};
use netfilter::{Ownership, Refusal, Table};
use rules::{Kept, Wanted, chains};

/// The pause after a first failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Whoever mends the node does not want to wait for us.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A worker that hangs, or a table that anybody may delete, has no event: they are looked for this often.
const LOOK: Duration = Duration::from_millis(500);
/// So often everything is looked at though no event has told of a change.
const LOOK_AT_ALL: Duration = Duration::from_secs(10);
/// Connections to the ClusterIPs that are kept in mind, of each family: room for 2,000 new ones a second, which are kept for
/// 40 s each by default. They take some 100 bytes each in the kernel. Further ones are answered by the cluster's DNS.
const CONNECTIONS: u32 = 1 << 17;
/// Longer than a client waits for an answer without a word: `upstream.timeout` is 30 s at the most.
const UNANSWERED: Duration = Duration::from_secs(30);
/// Between two answers to events: whoever takes our address away in a loop shall not have us do the same.
const PACE: Duration = Duration::from_millis(50);

/// Why the rules of a new configuration are not in force.
#[derive(Debug, thiserror::Error)]
#[error("network.upstream_notrack: {0}")]
pub struct NodeError(#[from] Refusal);

/// Which queries the rules lead here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// Those to the listen addresses alone.
    #[default]
    Aside,
    /// Those to the ClusterIPs as well.
    Intercepting,
    /// Those to the ClusterIPs no longer, but connections that were go on here, and what was asked is answered.
    Leaving,
}

impl Phase {
    /// What comes when no new queries shall be led here.
    fn without_new(self) -> Self {
        match self {
            Self::Aside => Self::Aside,
            Self::Intercepting | Self::Leaving => Self::Leaving,
        }
    }
}

/// What is there, as far as we know.
#[derive(Debug, Default)]
struct State {
    table: Option<Table>,
    /// Of the rules that are in force, none before there were any.
    in_force: Option<(Phase, BTreeSet<u16>)>,
    phase: Phase,
    /// The ports of servers that are dialled directly.
    ports: BTreeSet<u16>,
    /// All addresses were there once: what is missing later was taken away.
    held: bool,
    /// Addresses that this process has added.
    added: BTreeSet<link::Place>,
    /// Queries were led here once.
    led: bool,
    /// Links of others that held ClusterIPs at the last look, so that it is said once.
    held_by: BTreeSet<link::Place>,
}

/// The node, as far as the agent has a hand in it.
#[derive(Debug)]
pub struct Node {
    network: Network,
    listen: Vec<SocketAddr>,
    kept: Kept,
    readiness: Arc<Readiness>,
    state: Mutex<State>,
    /// Apart from the rest, because a look at firewalls can take long.
    opening: Mutex<Opening>,
    /// Nothing is set up any more.
    left: AtomicBool,
}

impl Node {
    /// Sets up what the configuration wants, and keeps it so from then on. What cannot be had yet is a reason why the
    /// agent is not ready, and is tried again.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: &Config, readiness: &Arc<Readiness>) -> Arc<Self> {
        let state = State { ports: ports(config), ..State::default() };
        let node = Arc::new(Self {
            network: config.network.clone(),
            listen: config.listen.clone(),
            kept: Kept { most: CONNECTIONS, silence: config.limits.tcp_idle + UNANSWERED },
            readiness: Arc::clone(readiness),
            state: Mutex::new(state),
            opening: Mutex::default(),
            left: AtomicBool::new(false),
        });
        if !node.is_wanted() {
            return node;
        }
        if !node.network.intercept.is_empty() {
            gauge!(INTERCEPTING).set(0.0);
        }
        // Before the first look, so that no change is missed.
        let link = node.network.address_on.as_deref().unwrap_or(link::LOOPBACK);
        let addresses = [node.addresses(), node.network.intercept.clone()].concat();
        let events = Events::open(link, &addresses)
            .inspect_err(|error| tracing::warn!(%error, "changes on this node are noticed late"));
        let done = node.settle(true);
        tokio::spawn(Arc::clone(&node).keep(events.ok(), done));
        if node.network.accept_untracked {
            let opened = node.open_firewalls();
            tokio::spawn(Arc::clone(&node).keep_open(opened));
        }
        tokio::spawn(Arc::clone(&node).clean_up());
        node
    }

    /// Whether the configuration asks for anything here.
    fn is_wanted(&self) -> bool {
        self.network.address_on.is_some() || self.wants_rules()
    }

    fn wants_rules(&self) -> bool {
        self.network.notrack || self.network.upstream_notrack || !self.network.intercept.is_empty()
    }

    /// Whether queries to ClusterIPs may be led here.
    pub fn intercepts(&self) -> bool {
        !self.network.intercept.is_empty()
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.listen.iter().map(SocketAddr::ip).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what may wait for the kernel on a thread of its own: queries are answered meanwhile. `None` if it panics.
    async fn apart<T: Send + 'static>(self: &Arc<Self>, work: fn(&Self) -> T) -> Option<T> {
        let node = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&node)).await.ok()
    }

    /// Nothing is to be set up any more: the agent itself says what goes when.
    fn is_leaving(&self) -> bool {
        self.readiness.is_draining() || self.left.load(Ordering::Relaxed)
    }

    /// Settles for as long as the agent runs.
    async fn keep(self: Arc<Self>, mut events: Option<Events>, mut done: bool) {
        let mut changes = self.readiness.changes();
        let mut looked_at_all = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let wait = if done { LOOK } else { pause };
            pause = if done { FIRST_PAUSE } else { (2 * pause).min(LONGEST_PAUSE) };
            let event = tokio::select! {
                () = changed(&mut events) => true,
                ended = changes.changed() => {
                    if ended.is_err() {
                        return;
                    }
                    false
                }
                () = tokio::time::sleep(wait) => false,
            };
            if self.is_leaving() {
                return;
            }
            let all = event || !done || looked_at_all.elapsed() >= LOOK_AT_ALL;
            if all {
                looked_at_all = Instant::now();
            }
            let settle: fn(&Self) -> bool =
                if all { |node| node.settle(true) } else { |node| node.settle(false) };
            done = self.apart(settle).await.unwrap_or(false);
            if event {
                tokio::time::sleep(PACE).await;
            }
        }
    }

    /// Brings the node to what is wanted. False if something is left to be done. Without `all`, only what changes
    /// without an event is looked at.
    fn settle(&self, all: bool) -> bool {
        let mut state = self.state();
        if self.left.load(Ordering::Relaxed) {
            return true;
        }
        let held = !all || self.hold(&mut state);
        let led = self.decide(&mut state, all);
        let ruled = !self.wants_rules() || self.enforce(&mut state);
        held && led && ruled
    }

    /// The rules are in force.
    fn enforce(&self, state: &mut State) -> bool {
        let had = state.in_force.is_some();
        match self.try_enforce(state) {
            Ok(gone) => {
                self.readiness.has(Step::Rules, "");
                if gone && had {
                    repaired(Step::Rules, state.table.as_ref().map_or("", Table::name));
                }
            }
            Err(refusal) => {
                self.readiness.lacks(Step::Rules, "", format!("{}: {refusal}", self.settings()));
                return false;
            }
        }
        let intercepting = state.phase == Phase::Intercepting;
        if intercepting {
            self.readiness.has(Step::Intercept, "");
        }
        if !self.network.intercept.is_empty() {
            gauge!(INTERCEPTING).set(if intercepting { 1.0 } else { 0.0 });
        }
        true
    }

    /// Returns whether rules that should be there were gone.
    fn try_enforce(&self, state: &mut State) -> Result<bool, Refusal> {
        let State { table, in_force, phase, ports, .. } = state;
        let table = match table {
            Some(table) => table,
            None => table.insert(open_table()?),
        };
        // What the kernel keeps for us nobody else can take away.
        let may_go = in_force.is_some() && table.ownership() == Ownership::Ourselves;
        let gone = may_go && !table.is_there()?;
        let wanted = (*phase, ports.clone());
        if gone || in_force.as_ref() != Some(&wanted) {
            let before = in_force.as_ref().map(|(phase, _)| *phase);
            table.replace(&self.chains(&wanted.0, &wanted.1))?;
            tracing::info!(table = table.name(), now = ?wanted.0, ?before, "rules are in force");
            *in_force = Some(wanted);
        }
        Ok(gone)
    }

    fn chains(&self, phase: &Phase, ports: &BTreeSet<u16>) -> Vec<netfilter::Chain> {
        let network = &self.network;
        let at_dns = |&ip: &IpAddr| SocketAddr::new(ip, DNS_PORT);
        let cluster_ips: Vec<SocketAddr> = network.intercept.iter().map(at_dns).collect();
        let (none, no_ports) = (&[][..], BTreeSet::new());
        chains(&Wanted {
            notrack: if network.notrack { &self.listen } else { none },
            intercept: if *phase == Phase::Intercepting { &cluster_ips } else { none },
            leaving: if *phase == Phase::Leaving { &cluster_ips } else { none },
            kept: self.kept,
            upstream_ports: if network.upstream_notrack { ports } else { &no_ports },
            never_upstream: &network.intercept,
            mark: network.mark,
        })
    }

    /// The settings that need rules.
    fn settings(&self) -> String {
        let network = &self.network;
        let all = [
            ("network.notrack", network.notrack),
            ("network.intercept", !network.intercept.is_empty()),
            ("network.upstream_notrack", network.upstream_notrack),
        ];
        let wanted: Vec<&str> = all.into_iter().filter(|(_, wanted)| *wanted).map(|(key, _)| key).collect();
        wanted.join(", ")
    }

    /// Follows the servers of a new configuration, whose `network` is the same.
    ///
    /// # Errors
    /// When the kernel does not take its rules; the old ones stay.
    pub fn ask(&self, config: &Config) -> Result<(), NodeError> {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.ports, ports(config));
        if !self.network.upstream_notrack || state.ports == before {
            return Ok(());
        }
        if let Err(refusal) = self.try_enforce(&mut state) {
            state.ports = before;
            return Err(refusal.into());
        }
        Ok(())
    }
}

/// A table, and none that an agent before us has left behind.
fn open_table() -> Result<Table, Refusal> {
    let table = Table::open()?;
    if table.ownership() == Ownership::Ourselves {
        tracing::warn!("this kernel (before Linux 5.12) leaves our rules behind if the process is killed");
        let removed = netfilter::remove_orphans()?;
        tracing::info!(?removed, "rules that were left behind are gone");
    }
    Ok(table)
}

/// Something of ours was gone and is there again.
fn repaired(step: Step, what: &str) {
    counter!(SETUP_REPAIRS, "step" => step.label()).increment(1);
    tracing::warn!(step = step.label(), "put back what somebody has taken away: {what}");
}

/// Returns when something has changed; without events, never.
async fn changed(events: &mut Option<Events>) {
    match events {
        Some(open) => {
            if let Err(error) = open.next().await {
                tracing::warn!(%error, "changes on this node are noticed late");
                *events = None;
            }
        }
        None => std::future::pending().await,
    }
}

/// The ports of all servers.
fn ports(config: &Config) -> BTreeSet<u16> {
    let servers = config.zones.iter().flat_map(|zone| &zone.upstream.servers);
    let port = |server: &Server| match server {
        Server::Named(_, _, port) => *port,
        server => server.addr().map_or(DNS_PORT, |addr| addr.port()),
    };
    servers.map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Scheme, Zone};
    use hickory_proto::rr::Name;

    #[test]
    fn the_ports_of_every_kind_of_server_are_known_once() {
        let addr = |text: &str| text.parse().unwrap();
        let servers = vec![
            Server::Tcp(addr("10.0.0.1:53")),
            Server::Udp(addr("[fd00::1]:5353")),
            Server::Tls(addr("10.0.0.1:853"), "dns.example".to_owned()),
            Server::Auto(addr("10.0.0.2:5353")),
            Server::Named(Scheme::Tcp, Name::root(), 1053),
        ];
        let zones = vec![Zone::new(vec![Name::root()], servers)];
        let config = Config { zones, ..Config::default() };
        assert_eq!(ports(&config).into_iter().collect::<Vec<_>>(), [53, 853, 1053, 5353]);
        assert_eq!(ports(&Config::default()).into_iter().collect::<Vec<_>>(), [53], "of the system");
    }

    #[test]
    fn nothing_is_asked_of_the_kernel_unless_it_is_wanted() {
        let readiness = Arc::new(Readiness::new());
        readiness.latch();
        let node = Node::start(&Config::default(), &readiness);
        assert!(!node.intercepts() && readiness.reasons().is_empty());
        assert!(node.state().table.is_none());
        node.leave(Left::Open);
    }

    fn node(network: Network) -> Node {
        let readiness = Arc::new(Readiness::new());
        readiness.latch();
        let kept = Kept { most: 1, silence: FIRST_PAUSE };
        let (state, opening) = (Mutex::default(), Mutex::default());
        Node { network, listen: Vec::new(), kept, readiness, state, opening, left: AtomicBool::new(false) }
    }

    /// What the kernel does for us it does when it can: another's transaction may take its time.
    #[tokio::test]
    async fn whoever_waits_for_the_kernel_keeps_nobody_else_waiting() {
        let node = Arc::new(node(Network::default()));
        let held = Arc::clone(&node);
        let (begin, began) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let kernel = std::thread::spawn(move || {
            let _state = held.state();
            begin.send(()).unwrap();
            let _ = ended.recv_timeout(Duration::from_secs(10));
        });
        began.recv().unwrap();
        let keeping = tokio::spawn(Arc::clone(&node).keep(None, false));
        let leaving = Arc::clone(&node);
        let withdrawing = tokio::spawn(async move { leaving.withdraw().await });
        // Longer than the first pause, so that it has begun to settle.
        tokio::time::timeout(Duration::from_secs(5), tokio::time::sleep(2 * FIRST_PAUSE)).await.unwrap();
        assert!(!withdrawing.is_finished(), "it is waited for");
        end.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(5), withdrawing).await.unwrap().unwrap();
        kernel.join().unwrap();
        node.readiness.drain();
        tokio::time::timeout(Duration::from_secs(5), keeping).await.unwrap().unwrap();
    }

    /// Whoever was about to set something up when the end came.
    #[test]
    fn nothing_is_set_up_after_the_end() {
        let node = node(Network {
            address_on: Some("a/b".to_owned()),
            accept_untracked: true,
            ..Network::default()
        });
        node.readiness.latch();
        node.left.store(true, Ordering::Relaxed);
        assert!(node.settle(true) && node.open_firewalls());
        assert!(node.readiness.reasons().is_empty(), "or the name would be refused");
    }

    /// A table that was not to be had may be had the next time, as one that stays behind this process.
    #[test]
    fn nothing_is_intercepted_before_it_is_known_who_ends_the_rules() {
        let node = node(Network { intercept: vec!["10.96.0.10".parse().unwrap()], ..Network::default() });
        let mut state = node.state();
        assert!(node.readiness.can_answer() && state.table.is_none());
        assert!(!node.decide(&mut state, true), "it is tried again");
        assert_eq!(state.phase, Phase::Aside);
        assert!(node.chains(&state.phase, &BTreeSet::new()).is_empty());
    }

    #[test]
    fn connections_go_on_here_only_if_some_were_led_here() {
        assert_eq!(Phase::Aside.without_new(), Phase::Aside);
        assert_eq!(Phase::Intercepting.without_new(), Phase::Leaving);
        let node = node(Network { intercept: vec!["10.96.0.10".parse().unwrap()], ..Network::default() });
        node.state().phase = Phase::Intercepting;
        node.readiness.lacks(Step::Listen, "10.96.0.10:53", "somebody has the port");
        let mut state = node.state();
        assert!(node.decide(&mut state, true));
        assert_eq!(state.phase, Phase::Leaving);
        assert_eq!(node.chains(&state.phase, &BTreeSet::new()).len(), 3);
        // Draining changes nothing any more: the agent itself says what goes when.
        state.phase = Phase::Intercepting;
        node.readiness.drain();
        assert!(node.decide(&mut state, true));
        assert_eq!(state.phase, Phase::Intercepting);
    }
}
