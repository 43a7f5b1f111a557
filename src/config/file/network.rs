//! From `network` as written to a [`Network`].

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::problem::{Fault, shown};
use super::raw::{self, Key, Text};
use super::reader::Reader;
use super::value;
use crate::config::{DNS_PORT, Mark, Network};

/// A packet without a mark has the mark 0, so none of ours may be 0 (skb mark, 32 bits).
const MARK: RangeInclusive<u32> = 1..=u32::MAX;

/// linux/if.h, `IFNAMSIZ` without the NUL at the end.
const LINK_NAME: usize = 15;

/// The network that is wanted, for an agent with these `listen` addresses.
pub(super) fn network(raw: &raw::Network, listen: &[SocketAddr], reader: &mut Reader<'_>) -> Network {
    let default = Network::default();
    let mut flag = |key: &str, raw: &Key<String>, default| {
        reader.value(&format!("network.{key}"), raw, default, value::flag)
    };
    let keep_address = flag("keep_address", &raw.keep_address, default.keep_address);
    let notrack = flag("notrack", &raw.notrack, default.notrack);
    let accept_untracked = flag("accept_untracked", &raw.accept_untracked, default.accept_untracked);
    let upstream_notrack = flag("upstream_notrack", &raw.upstream_notrack, default.upstream_notrack);
    let intercept = intercept(&raw.intercept, listen, reader);
    if accept_untracked && !notrack && intercept.is_empty() {
        let what = "has nothing to accept, because everything is tracked";
        let fault = Fault::new(what, "set network.notrack to true as well, or leave this out");
        reader.refuse("network.accept_untracked", raw.accept_untracked.line().unwrap_or_default(), fault);
    }
    Network {
        address_on: reader.value("network.address_on", &raw.address_on, default.address_on, link),
        keep_address,
        notrack,
        accept_untracked,
        mark: mark(&raw.mark, !intercept.is_empty(), reader),
        intercept,
        upstream_notrack,
    }
}

/// A link's name as Linux takes it (`dev_valid_name`), and as it stays: a percent sign would have the kernel number it.
fn link(text: &str) -> Result<Option<String>, Fault> {
    let is_name = !text.is_empty()
        && text.len() <= LINK_NAME
        && text != "."
        && text != ".."
        && !text
            .contains(|letter: char| "/:%".contains(letter) || letter.is_whitespace() || letter.is_control());
    match text {
        "none" => Ok(None),
        _ if is_name => Ok(Some(text.to_owned())),
        _ => Err(Fault::new(
            format!("{} is no name of a link", shown(text)),
            format!("write none, or a name of at most {LINK_NAME} bytes such as nodelocaldns"),
        )),
    }
}

fn intercept(raw: &Key<Vec<Text>>, listen: &[SocketAddr], reader: &mut Reader<'_>) -> Vec<IpAddr> {
    let Some(items) = &raw.0 else { return Vec::new() };
    let mut addresses = reader.items("network.intercept", &items.value, cluster_ip);
    reader.refuse_repeats(&addresses, PartialEq::eq);
    addresses.retain(|item| {
        let ours = SocketAddr::new(item.value, DNS_PORT);
        let Some(index) = listen.iter().position(|listen| *listen == ours) else { return true };
        let what = format!("{ours} is listen[{index}] as well");
        reader.refuse(&item.key, item.line, Fault::new(what, "write it in one of the two"));
        false
    });
    addresses.into_iter().map(|item| item.value).collect()
}

/// An address that a Service of the cluster can have.
fn cluster_ip(text: &str) -> Result<IpAddr, Fault> {
    let ip = value::ip(text)?;
    let is_special = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    if is_special || is_link_local {
        let fix = "write the ClusterIP of the cluster's DNS, such as 10.96.0.10";
        return Err(Fault::new(format!("{ip} is not the ClusterIP of a Service"), fix));
    }
    Ok(ip)
}

fn mark(raw: &raw::Mark, intercepts: bool, reader: &mut Reader<'_>) -> Mark {
    let default = Network::default().mark;
    let bits = |text: &str| value::number(text, &MARK);
    let mark = Mark {
        intercept: reader.value("network.mark.intercept", &raw.intercept, default.intercept, bits),
        own: reader.value("network.mark.own", &raw.own, default.own, bits),
        mask: reader.value("network.mark.mask", &raw.mask, default.mask, bits),
    };
    let mask_line = raw.mask.line().unwrap_or_default();
    // The default of a mark that nobody uses harms no other mask.
    let intercepts = intercepts || raw.intercept.0.is_some();
    let used = [("own", &raw.own, mark.own, true), ("intercept", &raw.intercept, mark.intercept, intercepts)];
    for (name, raw, value, _) in used.into_iter().filter(|(.., used)| *used) {
        if value & !mark.mask != 0 {
            let (name, line) = raw.line().map_or(("mask", mask_line), |line| (name, line));
            let what = format!("the mark {value:#x} has bits outside of the mask {:#x}", mark.mask);
            let fault = Fault::new(what, "write a mask that holds every bit of the mark");
            reader.refuse(&format!("network.mark.{name}"), line, fault);
        }
    }
    if intercepts && mark.own == mark.intercept {
        let (name, line) = match (raw.intercept.line(), raw.own.line()) {
            (Some(line), _) => ("intercept", line),
            (None, line) => ("own", line.unwrap_or_default()),
        };
        let what = format!("{:#x} is the mark of our own queries and of those to intercept", mark.own);
        reader.refuse(&format!("network.mark.{name}"), line, Fault::new(what, "write two different marks"));
    }
    mark
}
