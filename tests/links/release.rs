//! What is taken away at the end, and what stays.

use nodens::node::link::release;

use crate::node::{
    ON, V4, V6, addresses, attempt, exists, hold_all, ip, make_link, on_a_node, on_link, place,
};

#[test]
fn our_addresses_leave_the_link_and_others_stay() {
    on_a_node(|| {
        make_link(ON);
        ip(&format!("address add 192.0.2.1/24 dev {ON}"));
        hold_all(ON, &[V4, V6]);
        ip(&format!("address add {V4}/32 dev lo"));
        let released = release(ON, &addresses(&[V4, V6])).expect("released");
        assert_eq!(released.removed, [place(V4, ON), place(V6, ON)]);
        assert!(!released.link);
        let left: Vec<_> = on_link(ON).into_iter().filter(|line| !line.starts_with("fe80")).collect();
        assert_eq!(left, ["192.0.2.1/24 global"]);
        assert!(on_link("lo").iter().any(|line| line.starts_with(V4)), "on another link");
        let again = release(ON, &addresses(&[V4, V6])).expect("released");
        assert!(again.removed.is_empty());
    });
}

#[test]
fn a_link_that_is_no_dummy_stays() {
    on_a_node(|| {
        make_link(ON);
        hold_all(ON, &[V4, V6]);
        let released = release(ON, &addresses(&[V4, V6])).expect("released");
        assert!(!released.link && exists(ON));
    });
}

/// Where the kernel has dummies they go; where it has none, `lo` loses the addresses.
#[test]
fn what_hold_has_made_is_gone_after_release() {
    on_a_node(|| {
        let before = on_link("lo");
        let held = hold_all(ON, &[V4, V6]);
        let released = release(ON, &addresses(&[V4, V6, "127.0.0.1", "::1"])).expect("released");
        assert_eq!(released.removed, held.added);
        assert_eq!(released.link, held.created);
        assert!(!exists(ON));
        assert_eq!(on_link("lo"), before);
        assert_eq!(release(ON, &addresses(&[V4, V6])).expect("nothing"), Default::default());
    });
}

#[test]
fn a_dummy_with_an_address_of_somebody_else_stays() {
    on_a_node(|| {
        if !attempt("ip", "iproute2", &format!("link add {ON} type dummy")).status.success() {
            // Without dummies the same question is asked of `lo`.
            ip(&format!("address add {V4}/8 dev lo"));
            ip(&format!("address add {V6}/128 dev lo"));
            let released = release(ON, &addresses(&[V4, V6])).expect("released");
            assert!(released.removed.is_empty(), "not as we add them: {released:?}");
            return;
        }
        ip(&format!("address add 192.0.2.1/32 dev {ON}"));
        hold_all(ON, &[V4]);
        assert!(!release(ON, &addresses(&[V4])).expect("released").link);
        assert!(exists(ON));
    });
}
