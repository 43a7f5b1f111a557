//! Which upstreams are still to be asked whether they lead back here.
//!
//! Each server is asked once at the start, one given by name when its name has been looked up for the first time. An
//! address that comes later is only held against our own: a loop ends the agent, and a record that changes while it
//! serves must not end every agent of a cluster. A query that comes back then joins its own flight and ends with it.

use std::sync::{Arc, Weak};

use crate::resolve::Resolver;
use crate::resolve::view::Zone;
use crate::upstream::server::Server;

/// Zones whose servers' names have not been looked up yet, and their servers that were asked.
pub(super) struct Probes(Vec<Waiting>);

type Waiting = (Weak<Zone>, Arc<Vec<Arc<Server>>>);

impl Probes {
    /// Asks each server that is there, for the first zone that its pool serves.
    pub(super) fn start(resolver: &Arc<Resolver>) -> Self {
        let view = resolver.view();
        let mut waiting = Vec::new();
        for (index, zone) in view.zones.iter().enumerate() {
            if view.zones[..index].iter().any(|before| Arc::ptr_eq(&before.pool, &zone.pool)) {
                continue;
            }
            probe(resolver, zone, &[]);
            if !zone.pool.is_looked_up() {
                waiting.push((Arc::downgrade(zone), zone.pool.servers()));
            }
        }
        Self(waiting)
    }

    /// Asks those whose names have been looked up by now.
    pub(super) fn go_on(&mut self, resolver: &Arc<Resolver>) {
        self.0.retain(|(zone, asked)| {
            let Some(zone) = zone.upgrade() else { return false };
            let is_there = zone.pool.is_looked_up();
            if is_there {
                probe(resolver, &zone, asked);
            }
            !is_there
        });
    }
}

/// Asks the servers of a zone, in the background, but for those that were asked before.
fn probe(resolver: &Arc<Resolver>, zone: &Arc<Zone>, before: &[Arc<Server>]) {
    for server in zone.pool.servers().iter() {
        if !before.iter().any(|before| Arc::ptr_eq(before, server)) {
            let (resolver, zone, server) = (Arc::clone(resolver), Arc::clone(zone), Arc::clone(server));
            tokio::spawn(async move { resolver.echoes.probe(&zone, &server).await });
        }
    }
}
