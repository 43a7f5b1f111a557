//! Every listen address is on a link, once.

use nodens::node::link::{hold, holder};

use crate::node::{
    LIMIT, ON, V4, V6, addresses, answers, answers_a_pod, attempt, exists, hold_all, ip, is_up, make_link,
    on_a_node, on_a_node_with_a_pod, on_link, place,
};
use crate::support::wait_until;

/// Whether this kernel makes dummies.
fn has_dummies() -> bool {
    let made = attempt("ip", "iproute2", "link add probe type dummy").status.success();
    if made {
        ip("link del probe");
    }
    made
}

#[test]
fn a_link_is_made_or_lo_has_its_place_and_a_second_call_changes_nothing() {
    on_a_node(|| {
        let held = hold_all(ON, &[V4, V6]);
        // The kernel says whether it has dummies; both ways are right.
        let link = if has_dummies() { ON } else { "lo" };
        eprintln!("the addresses are on {link}");
        assert_eq!((held.created, held.raised), (link == ON, false));
        assert_eq!(exists(ON), link == ON);
        assert_eq!(held.added, [place(V4, link), place(V6, link)]);
        assert_eq!(held.adopted, []);
        let there = on_link(link);
        for address in [format!("{V4}/32 host"), format!("{V6}/128 global")] {
            assert!(there.contains(&address), "{address}: {there:?}");
        }
        assert!(is_up(link) && answers(V4));
        wait_until("it answers by IPv6", LIMIT, || answers(V6));
        assert!(ip(&format!("-oneline -6 address show dev {link} to {V6}")).contains("nodad"));

        let again = hold_all(ON, &[V4, V6]);
        assert!(!again.changed(), "{again:?}");
        assert_eq!(again.adopted, [place(V4, link), place(V6, link)]);
        assert_eq!(on_link(link), there);
    });
}

#[test]
fn a_link_of_any_kind_with_the_name_is_used_and_set_up() {
    on_a_node(|| {
        make_link("parent");
        ip("link set parent up");
        for kind in ["bridge", "ifb", "macvlan", "veth"] {
            let below = if kind == "macvlan" { "link parent" } else { "" };
            ip(&format!("link add {below} {ON} type {kind}"));
            assert!(!is_up(ON));
            let held = hold_all(ON, &[V4, V6]);
            assert_eq!((held.created, held.raised), (false, true), "{kind}");
            assert_eq!(held.added, [place(V4, ON), place(V6, ON)], "{kind}");
            assert!(is_up(ON) && answers(V4), "{kind}");
            if kind == "veth" {
                ip("link set veth0 up"); // the name of the other end
            }
            wait_until(&format!("{kind} answers by IPv6"), LIMIT, || answers(V6));
            let holders = holder(addresses(&[V4])[0]).expect("holders");
            assert_eq!(holders.len(), 1, "{holders:?}");
            assert_eq!(holders[0].kind.as_deref(), Some(kind));
            assert_eq!((holders[0].link.as_str(), holders[0].scope, holders[0].up), (ON, "host", true));
            assert!(!hold_all(ON, &[V4, V6]).changed(), "{kind}");
            ip(&format!("link del {ON}"));
        }
    });
}

#[test]
fn what_any_link_has_already_is_adopted() {
    on_a_node(|| {
        make_link(ON);
        make_link("eth0");
        ip("link set eth0 up");
        ip(&format!("address add {V4}/24 dev eth0"));
        ip(&format!("address add {V6}/128 dev lo"));
        let held = hold_all(ON, &[V4, V6]);
        assert!(!held.changed(), "{held:?}");
        assert_eq!(held.adopted, [place(V4, "eth0"), place(V6, "lo")]);
        assert_eq!(on_link(ON), [""; 0]);
        assert!(!is_up(ON), "nothing of ours is on it");
    });
}

/// node-cache's, which has stopped.
#[test]
fn a_link_that_was_left_with_its_address_is_adopted_and_the_rest_added() {
    on_a_node(|| {
        make_link(ON);
        ip(&format!("address add {V4}/32 dev {ON}"));
        let held = hold_all(ON, &[V4, V6, "169.254.20.11"]);
        assert!(held.raised && !held.created);
        assert_eq!(held.adopted, [place(V4, ON)]);
        assert_eq!(held.added, [place("169.254.20.11", ON), place(V6, ON)]);
    });
}

#[test]
fn what_was_taken_away_by_hand_is_put_back_alone() {
    on_a_node(|| {
        make_link(ON);
        hold_all(ON, &[V4, V6]);
        ip(&format!("address del {V6}/128 dev {ON}"));
        let held = hold_all(ON, &[V4, V6]);
        assert_eq!((held.added, held.adopted), (vec![place(V6, ON)], vec![place(V4, ON)]));
        ip(&format!("link set {ON} down"));
        let held = hold_all(ON, &[V4, V6]);
        assert!(held.raised && answers(V4));
        wait_until("it answers by IPv6", LIMIT, || answers(V6));
        assert_eq!(held.added, [place(V6, ON)], "an IPv6 address goes when its link goes down");
    });
}

#[test]
fn loopback_and_wildcard_addresses_need_no_link() {
    on_a_node(|| {
        let held = hold_all(ON, &["127.0.0.1", "127.0.0.53", "::1", "0.0.0.0", "::"]);
        assert!(!held.changed() && held.adopted.is_empty(), "{held:?}");
        assert!(!exists(ON));
    });
}

#[test]
fn an_address_that_is_asked_for_twice_is_added_once() {
    on_a_node(|| {
        make_link(ON);
        assert_eq!(hold_all(ON, &[V4, V4, V4]).added, [place(V4, ON)]);
    });
}

/// kube-proxy takes away there what is no service's.
#[test]
fn an_address_on_the_link_of_ipvs_is_not_relied_on() {
    on_a_node(|| {
        make_link("kube-ipvs0");
        make_link(ON);
        ip(&format!("address add {V4}/32 dev kube-ipvs0"));
        assert_eq!(hold_all(ON, &[V4]).added, [place(V4, ON)]);
        let links: Vec<String> =
            holder(addresses(&[V4])[0]).expect("holders").into_iter().map(|holder| holder.link).collect();
        assert_eq!(links, ["kube-ipvs0", ON]);
        let again = hold_all(ON, &[V4]);
        assert!(!again.changed(), "{again:?}");
    });
}

/// What the adoption of addresses rests on: kube-proxy's IPVS mode does it so with ClusterIPs.
#[test]
fn an_address_on_a_link_that_is_down_answers_a_pod_and_is_adopted() {
    on_a_node_with_a_pod(|| {
        make_link("eth0");
        make_link(ON);
        ip(&format!("address add {V4}/32 dev eth0"));
        ip(&format!("address add {V6}/128 dev eth0 nodad"));
        assert!(!is_up("eth0"));
        for address in [V4, V6] {
            wait_until(&format!("{address} answers"), LIMIT, || answers(address));
            assert!(answers_a_pod(address), "{address}");
        }
        let held = hold_all(ON, &[V4, V6]);
        assert_eq!(held.adopted, [place(V4, "eth0"), place(V6, "eth0")]);
        assert!(!held.changed() && !is_up("eth0") && !is_up(ON));
    });
}

#[test]
fn ipv6_addresses_go_when_their_link_goes_down_and_others_stay() {
    on_a_node_with_a_pod(|| {
        make_link("eth0");
        make_link(ON);
        ip("link set eth0 up");
        ip(&format!("address add {V4}/32 dev eth0"));
        ip(&format!("address add {V6}/128 dev eth0 nodad"));
        wait_until("both answer", LIMIT, || answers(V4) && answers(V6));
        ip("link set eth0 down");
        assert_eq!(on_link("eth0"), [format!("{V4}/32 global")]);
        assert!(answers_a_pod(V4));
        let held = hold_all(ON, &[V4, V6]);
        assert_eq!((held.adopted, held.added), (vec![place(V4, "eth0")], vec![place(V6, ON)]));
        wait_until("on the link that is up", LIMIT, || answers(V6));
        assert!(answers_a_pod(V6));
    });
}

/// Without carrier an address that Linux wants to look for first stays tentative.
#[test]
fn a_tentative_address_without_carrier_is_not_relied_on_and_is_named_on_our_own_link() {
    on_a_node(|| {
        ip("link add eth0 type veth peer name other");
        ip("link set eth0 up");
        ip(&format!("address add {V6}/128 dev eth0"));
        make_link(ON);
        assert!(ip(&format!("-6 address show dev eth0 to {V6}")).contains("tentative"));
        assert_eq!(hold_all(ON, &[V6]).added, [place(V6, ON)]);
        wait_until("it answers", LIMIT, || answers(V6));
        let held = hold("eth0", &addresses(&[V6])).expect("a link");
        assert_eq!(held.adopted, [place(V6, ON)]);

        ip(&format!("link del {ON}"));
        let held = hold("eth0", &addresses(&[V6])).expect("a link");
        let said = held.missing[0].1.to_string();
        assert!(said.contains("eth0") && said.contains("no carrier"), "{said}");
        ip("link set other up");
        wait_until("it has a carrier", LIMIT, || {
            hold("eth0", &addresses(&[V6])).expect("a link").missing.is_empty()
        });
    });
}

#[test]
fn two_agents_at_once_add_one_address() {
    on_a_node(|| {
        make_link(ON);
        let wanted = addresses(&[V4, V6]);
        let all: Vec<_> = std::thread::scope(|scope| {
            let agents: Vec<_> = (0..4).map(|_| scope.spawn(|| hold(ON, &wanted).expect("held"))).collect();
            agents.into_iter().map(|agent| agent.join().expect("no panic")).collect()
        });
        assert!(all.iter().all(|held| held.missing.is_empty()), "{all:?}");
        assert_eq!(all.iter().map(|held| held.added.len()).sum::<usize>(), 2, "{all:?}");
        let ours = on_link(ON).into_iter().filter(|line| !line.starts_with("fe80")).collect::<Vec<_>>();
        assert_eq!(ours, [format!("{V4}/32 host"), format!("{V6}/128 global")]);
    });
}
