//! The servers of `/etc/resolv.conf`, read by hickory-resolver.

use std::net::SocketAddr;

/// Where the system says which servers it asks.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The system's servers, without those at an address of `ours`, whatever its port: asking ourselves would be a loop. Empty, with a warning,
/// when the file cannot be read.
pub fn servers(ours: &[SocketAddr]) -> Vec<SocketAddr> {
    let config = match hickory_resolver::system_conf::read_system_conf() {
        Ok((config, _)) => config,
        Err(error) => {
            tracing::warn!(%error, file = RESOLV_CONF, "no servers for `system`: name some in this file");
            return Vec::new();
        }
    };
    let mut servers = Vec::new();
    for server in config.name_servers() {
        let addr = SocketAddr::new(server.ip, 53);
        if ours.iter().any(|own| own.ip() == server.ip) {
            tracing::warn!(server = %server.ip, "own address in {RESOLV_CONF} is passed over: it would be a loop");
        } else if !servers.contains(&addr) {
            servers.push(addr);
        }
    }
    servers
}
