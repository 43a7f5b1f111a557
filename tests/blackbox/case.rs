//! Letter case: one entry for all, each client's own letters back.

use crate::support::{Agent, Nsd, Upstream, ask, dig, kdig};

#[test]
fn names_in_any_case_share_an_entry_and_keep_their_letters() {
    let nsd = Nsd::cluster();
    let agent = Agent::before(format!("tcp://{}", nsd.address));
    let spellings = [
        "webapp.default.svc.cluster.local.",
        "WEBAPP.DEFAULT.SVC.CLUSTER.LOCAL.",
        "WebApp.Default.Svc.Cluster.Local.",
        "wEbApP.dEfAuLt.sVc.cLuStEr.lOcAl.",
    ];
    for spelling in spellings {
        let printed = dig(agent.address, &[spelling, "A"]);
        assert_eq!(printed.question, spelling, "{}", printed.text);
        assert_eq!(printed.answers[0].name, spelling, "{}", printed.text);
        assert_eq!(printed.data("A"), ["10.96.46.232"], "{}", printed.text);
    }
    // kdig writes names in lower case unless told otherwise; the agent sees what it sends.
    let printed = kdig(agent.address, &[spellings[1], "A"]);
    assert_eq!(printed.data("A"), ["10.96.46.232"], "{}", printed.text);
    assert_eq!(agent.lookups("miss"), 1.0);
    assert_eq!(agent.lookups("hit"), 4.0);
}

#[test]
fn mixed_case_misses_go_upstream_once() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    for spelling in ["MiXed.example.", "mixed.EXAMPLE.", "MIXED.example."] {
        let reply = ask(agent.address, spelling, "A");
        assert_eq!(reply.queries[0].name.to_ascii(), spelling);
    }
    assert_eq!(upstream.count_of("mixed.example."), 1);
}

#[test]
fn negative_answers_keep_the_letters_too() {
    let nsd = Nsd::cluster();
    let agent = Agent::before(format!("tcp://{}", nsd.address));
    for spelling in ["NoWhere.cluster.local.", "nowhere.CLUSTER.local."] {
        let printed = dig(agent.address, &[spelling, "A"]);
        assert_eq!(printed.status, "NXDOMAIN", "{}", printed.text);
        assert_eq!(printed.question, spelling, "{}", printed.text);
    }
    assert_eq!(agent.lookups("hit"), 1.0);
}
