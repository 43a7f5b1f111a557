//! The end of an agent whose rules the kernel refuses.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use nodens::config::{Config, Network};
use nodens::node::Node;
use nodens::node::netfilter::tables;
use nodens::privileges;
use nodens::readiness::Readiness;

use crate::node::{CLUSTER, address, on_a_node};
use crate::support::{seconds, wait_until};

/// Sockets to netfilter of this network namespace, but for the kernel's own, with the number 0: a table goes with its own.
fn sockets() -> usize {
    let text = fs::read_to_string("/proc/net/netlink").expect("a list of sockets");
    let columns = text.lines().map(|line| line.split_whitespace().skip(1).take(2).collect::<Vec<_>>());
    columns.filter(|columns| columns[0] == "12" && columns[1] != "0").count()
}

fn is_led_here() -> bool {
    let tables = tables().expect("tables");
    tables.iter().flat_map(|table| &table.chains).any(|chain| chain.name == "intercept_route")
}

/// Otherwise queries would be led to sockets that nobody reads any more.
#[test]
fn rules_that_cannot_be_changed_for_the_end_go_at_once() {
    on_a_node(|| {
        let intercept = CLUSTER.map(|text| address(text).ip()).to_vec();
        let config = Config { network: Network { intercept, ..Network::default() }, ..Config::default() };
        let readiness = Arc::new(Readiness::new());
        readiness.latch();
        // No thread outlives its work, so that later ones may do as little as this one.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime =
            runtime.enable_all().thread_keep_alive(Duration::from_millis(1)).build().expect("a runtime");
        let node = runtime.block_on(async { Node::start(&config, &readiness) });
        let pause = |ms| runtime.block_on(async { tokio::time::sleep(Duration::from_millis(ms)).await });
        wait_until("queries are led here", seconds(5), || {
            pause(20);
            is_led_here()
        });
        assert_eq!(sockets(), 1);
        readiness.drain();
        pause(50);
        privileges::restrict(&Config::default()).expect("nothing is needed");
        runtime.block_on(node.withdraw());
        assert_eq!(sockets(), 0);
        assert_eq!(readiness.reasons().len(), 2, "{:?}", readiness.reasons());
    });
}
