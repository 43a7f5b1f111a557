//! The kernel's counters: `/proc/net/{snmp,snmp6,netstat}`.

use crate::doctor::finding::{Seen, Unseen};
use crate::doctor::sources::Sources;

/// Datagrams lost because the buffer of a socket was full, of this network namespace and all its sockets.
///
/// # Errors
/// Why they cannot be seen.
pub fn buffer_errors(sources: &Sources) -> Seen<u64> {
    let v4 = paired(&sources.read("/proc/self/net/snmp")?, "Udp", "RcvbufErrors")
        .ok_or_else(|| Unseen::new("/proc/net/snmp has no RcvbufErrors", ""))?;
    let text = sources.read_if_there("/proc/self/net/snmp6")?.unwrap_or_default();
    let v6 = text.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors"));
    Ok(v4 + v6.and_then(|value| value.trim().parse().ok()).unwrap_or(0))
}

/// Packets lost because the way back to their sender does not lead out by the link that they came by.
///
/// # Errors
/// Why they cannot be seen.
pub fn reverse_path_drops(sources: &Sources) -> Seen<u64> {
    paired(&sources.read("/proc/self/net/netstat")?, "TcpExt", "IPReversePathFilter")
        .ok_or_else(|| Unseen::new("/proc/net/netstat has no IPReversePathFilter", ""))
}

/// A value of a file that has names on one line and values on the next.
fn paired(text: &str, group: &str, name: &str) -> Option<u64> {
    let group = format!("{group}:");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&group));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|found| found == name)?;
    values.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_below_its_name() {
        let text = "Ip: Forwarding\nIp: 1\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 5 1 2 6 42\nUdpLite: RcvbufErrors\nUdpLite: 7\n";
        assert_eq!(paired(text, "Udp", "RcvbufErrors"), Some(42));
        assert_eq!(paired(text, "Udp", "SndbufErrors"), None);
        assert_eq!(paired("", "Udp", "RcvbufErrors"), None);
    }
}
