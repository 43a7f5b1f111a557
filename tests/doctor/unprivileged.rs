//! Examined by somebody who may not see everything.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::examine::{Level, doctor, findings};
use crate::home::Home;
use crate::topology::{Families, Node, Proxy, Topology, on_a_node};

#[test]
fn what_only_root_sees_is_not_seen_and_not_called_good() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let node = Node::start();
        let home = Home::intercepting(&node);
        let _agent = home.start();
        fs::set_permissions(home.dir.path(), fs::Permissions::from_mode(0o755)).expect("a directory of ours");
        // The program may lie where only root finds it, so it stays root without any of root's power.
        let by = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--nnp"];
        let found = findings(&doctor(&home, &by, &["--json"]));
        for check in ["rules", "firewall", "conntrack"] {
            let unseen = |level| found.iter().any(|finding| finding.check == check && finding.level == level);
            assert!(unseen(Level::Unknown), "{check}: {found:#?}");
        }
        assert!(found.iter().all(|finding| finding.check != "rules" || finding.level == Level::Unknown));
        let text = String::from_utf8(doctor(&home, &by, &[]).stdout).expect("text");
        assert!(text.lines().last().is_some_and(|line| line.contains(" not seen")), "{text}");
        // And by somebody else, who may not ask the agent either.
        let program = home.dir.path().join("nodens");
        fs::copy(crate::support::program(), &program).expect("a copy of the program");
        let nobody =
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--nnp"];
        let mut command = std::process::Command::new(nobody[0]);
        command
            .args(&nobody[1..])
            .arg(&program)
            .arg("doctor")
            .arg("--json")
            .arg("--config")
            .arg(&home.config);
        let output = crate::support::run(&mut command).expect("setpriv (Debian package util-linux)");
        let found = findings(&output);
        let agent: Vec<_> = found.iter().filter(|finding| finding.check == "agent").collect();
        assert_eq!(agent[0].level, Level::Unknown, "{found:#?}");
        assert!(agent[0].mend.contains("sudo"), "{}", agent[0].mend);
    });
}
