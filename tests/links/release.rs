//! What is taken away at the end, and what stays.

use std::collections::BTreeSet;

use nodens::node::link::{ALIAS, Released};

use crate::node::{ON, V4, V6, exists, hold_all, ip, make_link, on_a_node, on_link, place};

/// As by an agent that has added nothing itself.
#[track_caller]
fn release(on: &str, texts: &[&str]) -> Released {
    let released = nodens::node::link::release(on, &crate::node::addresses(texts), &BTreeSet::new());
    released.unwrap_or_else(|problem| panic!("{problem}"))
}

#[test]
fn our_addresses_leave_the_link_and_others_stay() {
    on_a_node(|| {
        make_link(ON);
        ip(&format!("address add 192.0.2.1/24 dev {ON}"));
        hold_all(ON, &[V4, V6]);
        ip(&format!("address add {V4}/32 dev lo"));
        let released = release(ON, &[V4, V6]);
        assert_eq!(released.removed, [place(V4, ON), place(V6, ON)]);
        assert!(!released.link);
        let left: Vec<_> = on_link(ON).into_iter().filter(|line| !line.starts_with("fe80")).collect();
        assert_eq!(left, ["192.0.2.1/24 global"]);
        assert!(on_link("lo").iter().any(|line| line.starts_with(V4)), "on another link");
        let again = release(ON, &[V4, V6]);
        assert!(again.removed.is_empty());
    });
}

/// Whatever its form: of the node's own network, as `ip` adds one, and as we would.
#[test]
fn an_address_that_was_adopted_stays_and_its_routes_with_it() {
    on_a_node(|| {
        let (own, own6) = ("192.0.2.10", "fd00:2::10");
        make_link(ON);
        ip(&format!("link set {ON} up"));
        ip(&format!("address add {own}/24 dev {ON}"));
        ip(&format!("address add {own6}/64 dev {ON} nodad"));
        ip(&format!("route add default via 192.0.2.1 dev {ON}"));
        ip(&format!("address add {V4}/32 scope host dev {ON}"));
        ip(&format!("address add {V6}/128 dev {ON} nodad"));
        for (address, link) in [("192.0.2.20/24", "lo"), ("192.0.2.21/32 scope host", "lo")] {
            ip(&format!("address add {address} dev {link}"));
        }
        let all = [own, own6, V4, V6, "192.0.2.20", "192.0.2.21"];
        let state = || (on_link(ON), on_link("lo"), ip("route show"), ip("-6 route show"));
        let before = state();
        assert!(!hold_all(ON, &all).changed());
        assert_eq!(release(ON, &all), Released::default());
        assert_eq!(state(), before);
    });
}

/// The kernel says whose it is, as of Linux 5.18. Before, the process itself has to know.
#[test]
fn what_an_agent_before_us_has_added_is_known_and_on_old_kernels_what_we_have() {
    on_a_node(|| {
        make_link(ON);
        hold_all(ON, &[V4, V6]);
        assert_eq!(release(ON, &[V4, V6]).removed, [place(V4, ON), place(V6, ON)]);
        ip(&format!("address add {V4}/32 scope host dev {ON}"));
        ip(&format!("address add {V6}/64 dev {ON} nodad"));
        let added = BTreeSet::from([place(V4, ON), place(V6, ON)]);
        let released = nodens::node::link::release(ON, &crate::node::addresses(&[V4, V6]), &added);
        let released = released.expect("released");
        assert_eq!(released.removed, [place(V4, ON)], "and not one that looks otherwise now");
    });
}

/// Where the kernel has no dummies, and there is one by now.
#[test]
fn what_hold_has_added_to_lo_goes_though_there_is_a_link_of_the_name() {
    on_a_node(|| {
        hold_all("lo", &[V4]);
        make_link(ON);
        assert_eq!(release(ON, &[V4]).removed, [place(V4, "lo")]);
        assert!(exists(ON));
    });
}

#[test]
fn a_link_that_we_have_not_made_stays() {
    on_a_node(|| {
        make_link(ON);
        hold_all(ON, &[V4, V6]);
        assert!(!release(ON, &[V4, V6]).link && exists(ON));
    });
}

/// Dummies are not to be had everywhere, and are told from others by their alias alone.
#[test]
fn a_link_that_we_have_made_goes_with_its_last_address() {
    on_a_node(|| {
        make_link(ON);
        ip(&format!("link set {ON} alias {ALIAS}"));
        hold_all(ON, &[V4, V6]);
        ip(&format!("address add 192.0.2.1/32 dev {ON}"));
        assert!(!release(ON, &[V4, V6]).link && exists(ON), "it holds an address of somebody else");
        hold_all(ON, &[V4, V6]);
        ip(&format!("address del 192.0.2.1/32 dev {ON}"));
        let released = release(ON, &[V4, V6]);
        assert!(released.link && released.removed.len() == 2 && !exists(ON), "{released:?}");
    });
}

/// Where the kernel has dummies they go; where it has none, `lo` loses the addresses.
#[test]
fn what_hold_has_made_is_gone_after_release() {
    on_a_node(|| {
        let before = on_link("lo");
        let held = hold_all(ON, &[V4, V6]);
        let released = release(ON, &[V4, V6, "127.0.0.1", "::1"]);
        assert_eq!(released.removed, held.added);
        assert_eq!(released.link, held.created);
        assert!(!exists(ON));
        assert_eq!(on_link("lo"), before);
        assert_eq!(release(ON, &[V4, V6]), Released::default());
    });
}
