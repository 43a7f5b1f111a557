//! What the store counts, and what it has room for.

use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::TXT;
use nodens::cache::Totals;
use nodens::config::Config;

use super::agent::{Agent, a, config, nxdomain, query, record, response, soa};

#[test]
fn an_entry_that_replaces_another_is_counted_once_and_is_no_eviction() {
    let agent = Agent::plain();
    let asked = query("web.test.", 1);
    for second in 0..5 {
        let answer = response(&asked, vec![record("web.test.", 30, a(second))], vec![]);
        agent.learn_at(second.into(), &asked, &answer);
        let Totals { positive, negative, evictions, .. } = agent.resolver.cache.totals();
        assert_eq!((positive, negative, evictions), (1, 0, 0), "after {second} refreshes");
    }
    agent.learn_at(5.0, &asked, &nxdomain(&asked, vec![record("test.", 30, soa(30))]));
    let Totals { positive, negative, evictions, .. } = agent.resolver.cache.totals();
    assert_eq!((positive, negative, evictions), (0, 1, 0), "the name is gone");
    agent.resolver.cache.flush(|_| true);
    let Totals { positive, negative, evictions, bytes } = agent.resolver.cache.totals();
    assert_eq!((positive, negative, evictions, bytes), (0, 0, 0, 0), "flushed");
}

#[test]
fn entries_beyond_the_budget_make_room_and_are_counted() {
    let agent = Agent::new(&Config { cache: small(), ..config(|_| {}) });
    for n in 0..20_000 {
        let owner = format!("n{n}.test.");
        let asked = query(&owner, 1);
        agent.learn(&asked, &response(&asked, vec![record(&owner, 30, a(1))], vec![]));
    }
    let Totals { positive, evictions, bytes, .. } = agent.resolver.cache.totals();
    assert!(bytes <= small().size, "{bytes} bytes");
    assert!(positive > 1000, "{positive} entries");
    assert_eq!(positive as u64 + evictions, 20_000);
    assert_eq!(positive as usize, agent.resolver.cache.iter().count());
}

#[test]
fn the_largest_answer_fits_into_the_smallest_budget() {
    let agent = Agent::new(&Config { cache: small(), ..config(|_| {}) });
    let asked = query("big.test.", 16);
    let text = "x".repeat(250);
    let txt = || RData::TXT(TXT::new(vec![text.clone()]));
    let answers = (0..245).map(|_| record("big.test.", 30, txt())).collect();
    let answer = response(&asked, answers, vec![]);
    assert!((64_000..=65_535).contains(&answer.to_vec().expect("it fits").len()));
    agent.learn(&asked, &answer);
    assert_eq!(agent.resolver.cache.totals().positive, 1);
    let (_, reply) = agent.ask(1.0, &asked).reply();
    assert!(reply.metadata.truncation, "by UDP");
}

/// The least that `cache.size` can say.
fn small() -> nodens::config::Cache {
    nodens::config::Cache { size: 1024 * 1024, rotate: true }
}
