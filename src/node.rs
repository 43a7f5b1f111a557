//! What the agent asks of its node: addresses, rules and routes in the kernel, without any program beside it.
//!
//! There is one way to all of it, `Node::settle`: look at what is there, add what is missing. It is gone at the start,
//! when the kernel tells of a change, when the agent becomes able or unable to answer, and now and then in any case. So
//! whatever goes comes back, and what fails is tried again.

pub mod events;
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};

use crate::config::{Config, DNS_PORT, Network, Server};
use crate::metrics::{INTERCEPTING, SETUP_REPAIRS};
use crate::readiness::{Readiness, Step};
use events::Events;
use netfilter::{Firewall, Ownership, Refusal, Table};
use rules::{Kept, Wanted, chains};

/// The pause after a first failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Whoever mends the node does not want to wait for us.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A worker that hangs, or a table that anybody may delete, has no event: they are looked for this often.
const LOOK: Duration = Duration::from_millis(500);
/// So often everything is looked at though no event has told of a change.
const LOOK_AT_ALL: Duration = Duration::from_secs(10);
/// Firewalls have no event that we hear, and a look at them reads all their rules (20,000 take 0.1 s): one may take a
/// fiftieth of the time until the next.
const LOOKING: u32 = 50;
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
    /// Queries were led here once.
    led: bool,
    /// Firewalls were opened once.
    opened: bool,
    /// What was said about links of others, so that it is said once.
    said: BTreeSet<String>,
}

/// The node, as far as the agent has a hand in it.
#[derive(Debug)]
pub struct Node {
    network: Network,
    listen: Vec<SocketAddr>,
    kept: Kept,
    readiness: Arc<Readiness>,
    state: Mutex<State>,
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
        });
        if !node.is_wanted() {
            return node;
        }
        if !node.network.intercept.is_empty() {
            gauge!(INTERCEPTING).set(0.0);
        }
        // Before the first look, so that no change is missed.
        let link = node.network.address_on.as_deref().unwrap_or(link::LOOPBACK);
        let events = Events::open(link, &node.addresses())
            .inspect_err(|error| tracing::warn!(%error, "changes on this node are noticed late"));
        let done = node.settle(true);
        tokio::spawn(Arc::clone(&node).keep(events.ok(), done));
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

    /// Settles for as long as the agent runs.
    async fn keep(self: Arc<Self>, mut events: Option<Events>, mut done: bool) {
        let mut changes = self.readiness.changes();
        let mut looked_at_all = Instant::now();
        let mut took = Duration::ZERO;
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
            if self.readiness.is_draining() {
                return; // the agent itself says what goes when
            }
            let firewalls = (LOOKING * took).clamp(LOOK, LOOK_AT_ALL);
            let at_most = if self.network.accept_untracked { firewalls } else { LOOK_AT_ALL };
            let all = event || !done || looked_at_all.elapsed() >= at_most;
            if all {
                looked_at_all = Instant::now();
            }
            done = self.settle(all);
            if all {
                took = looked_at_all.elapsed();
            }
            if event {
                tokio::time::sleep(PACE).await;
            }
        }
    }

    /// Brings the node to what is wanted. False if something is left to be done. Without `all`, only what changes
    /// without an event is looked at.
    fn settle(&self, all: bool) -> bool {
        let mut state = self.state();
        let held = !all || self.hold(&mut state);
        let led = self.decide(&mut state, all);
        let ruled = !self.wants_rules() || self.enforce(&mut state);
        let opened = !all || !self.network.accept_untracked || self.open_firewalls(&mut state);
        held && led && ruled && opened
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

    /// Leads no more queries here but on connections that are open; answers still get out as they are. The agent is
    /// draining.
    pub fn withdraw(&self) {
        let mut state = self.state();
        if state.phase == Phase::Intercepting {
            state.phase = state.phase.without_new();
            self.enforce(&mut state);
        }
    }

    /// Leaves the node as it should be left, after the last socket has closed. What others listen at stays theirs, and all
    /// but the rules stay another agent's that has `replaced` this one.
    pub fn leave(&self, replaced: bool) {
        let mut state = self.state();
        if let Some(Err(error)) = state.table.as_mut().map(Table::remove) {
            tracing::warn!(%error, "rules stay behind");
        }
        if replaced {
            return;
        }
        let network = &self.network;
        if network.accept_untracked {
            let mut mine = self.untracked();
            mine.retain(|at| !sockets::others_listen(*at));
            if let Err(error) = Firewall::find().and_then(|firewall| firewall.close(&mine)) {
                tracing::warn!(%error, "rules of ours stay behind in firewalls");
            }
        }
        let alone = |ip: &IpAddr, port| !sockets::others_listen(SocketAddr::new(*ip, port));
        let free: Vec<IpAddr> = network.intercept.iter().copied().filter(|ip| alone(ip, DNS_PORT)).collect();
        if !free.is_empty()
            && let Err(error) = route::let_go(&free, self.mark())
        {
            tracing::warn!(%error, "routes stay behind, which lead nobody anywhere");
        }
        if let Some(on) = network.address_on.as_ref().filter(|_| !network.keep_address) {
            let free = self.listen.iter().filter(|at| alone(&at.ip(), at.port())).map(SocketAddr::ip);
            match link::release(on, &free.collect::<Vec<_>>()) {
                Ok(released) => tracing::info!(?released, "the listen addresses are taken away"),
                Err(error) => tracing::warn!(%error, "the listen addresses stay behind"),
            }
        }
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
        node.leave(false);
    }

    fn node(network: Network) -> Node {
        let readiness = Arc::new(Readiness::new());
        readiness.latch();
        let kept = Kept { most: 1, silence: FIRST_PAUSE };
        Node { network, listen: Vec::new(), kept, readiness, state: Mutex::default() }
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
