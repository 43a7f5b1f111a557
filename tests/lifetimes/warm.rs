//! What a process takes over from the one before it.

use std::io::Cursor;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nodens::cache::snapshot::{self, Restored};
use nodens::config::Config;
use nodens::metrics::Source;

use super::agent::{
    Agent, a, config, extended_error, nxdomain, query, record, response, soa, ttls, with_opt, zone,
};

/// When second 0 is by the wall clock.
const START: SystemTime = UNIX_EPOCH;

/// What an agent leaves at a second.
fn left_by(agent: &Agent, second: f64) -> Vec<u8> {
    let view = agent.resolver.view();
    let wall = START + Duration::from_secs_f64(second);
    let mut out = Cursor::new(Vec::new());
    let (cache, now) = (&agent.resolver.cache, agent.at(second));
    snapshot::write(cache, |key| view.rule_for(key), now, wall, 1 << 20, &mut out).expect("room for it");
    out.into_inner()
}

/// Has an agent, whose second 0 is another one's `second`, take that over.
fn taken_over(config: &Config, bytes: &[u8], second: f64) -> (Agent, Restored) {
    let agent = Agent::new(config);
    let restored = {
        let view = agent.resolver.view();
        let wall = START + Duration::from_secs_f64(second);
        snapshot::read(bytes, &agent.resolver.cache, |key| view.rule_for(key), agent.start, wall)
    };
    (agent, restored.expect("what was written"))
}

#[test]
fn answers_of_the_process_before_go_on_ageing() {
    let before = Agent::plain();
    let (web, gone) = (query("web.test.", 1), query("gone.test.", 1));
    before.learn(&web, &response(&web, vec![record("web.test.", 60, a(1))], vec![]));
    before.learn(&gone, &nxdomain(&gone, vec![record("test.", 30, soa(30))]));
    let (after, restored) = taken_over(&config(|_| {}), &left_by(&before, 10.0), 12.5);
    assert_eq!(restored.entries, 2);
    let (source, reply) = after.ask(2.4, &web).reply();
    assert_eq!((source, ttls(&reply)), (Source::Hit, vec![60 - 14]));
    let (source, reply) = after.ask(2.5, &gone).reply();
    assert_eq!((source, ttls(&reply)), (Source::Hit, vec![30 - 15]));
    assert!(after.ask(60.0, &query("other.test.", 1)).waits());
}

#[test]
fn what_expired_meanwhile_is_stale() {
    let immediate = || {
        config(|zone| {
            zone.policy.stale.as_mut().expect("the default").mode = nodens::config::StaleMode::Immediate
        })
    };
    let before = Agent::plain();
    let web = with_opt(query("web.test.", 1));
    before.learn(&web, &response(&web, vec![record("web.test.", 30, a(1))], vec![]));
    let (after, restored) = taken_over(&immediate(), &left_by(&before, 10.0), 100.0);
    assert_eq!((restored.entries, restored.since), (1, Duration::from_secs(90)));
    let (source, reply) = after.ask(0.0, &web).reply();
    assert_eq!((source, extended_error(&reply)), (Source::Stale, Some(3)));
    let never = config(|zone| zone.policy.stale = None);
    let (after, restored) = taken_over(&never, &left_by(&before, 10.0), 100.0);
    assert_eq!((restored.entries, restored.expired), (0, 1), "a zone without stale answers");
    assert!(after.ask(0.0, &web).waits());
}

/// As at a reload: an answer is bound to the suffix of its name, and stays while that is the longest one.
#[test]
fn answers_stay_with_their_suffix_however_zones_are_arranged() {
    let zones = |suffixes: &[&str]| Config {
        zones: suffixes.iter().map(|suffix| zone(suffix)).collect(),
        ..Config::default()
    };
    let before = Agent::new(&zones(&[".", "a.test.", "b.test."]));
    let asked = ["x.a.test.", "x.b.test.", "x.test."].map(|owner| query(owner, 1));
    for query in &asked {
        let owner = query.queries[0].name().to_ascii();
        before.learn(query, &response(query, vec![record(&owner, 60, a(1))], vec![]));
    }
    let bytes = left_by(&before, 0.0);
    for (suffixes, hits) in [
        (&[".", "a.test.", "b.test."][..], [true, true, true]),
        (&["b.test.", "a.test.", "."], [true, true, true]),
        (&[".", "b.test."], [false, true, true]),
        (&["a.test."], [true, false, false]),
        (&[".", "x.a.test.", "b.test.", "test."], [false, true, false]),
        (&["other."], [false, false, false]),
    ] {
        let (after, restored) = taken_over(&zones(suffixes), &bytes, 1.0);
        let kept = hits.iter().filter(|&&hit| hit).count() as u32;
        assert_eq!((restored.entries, restored.left_out), (kept, 3 - kept), "{suffixes:?}");
        for (query, hit) in asked.iter().zip(hits) {
            let is_hit = matches!(after.ask(1.0, query), super::agent::Outcome::Reply(Source::Hit, ..));
            assert_eq!(is_hit, hit, "{} with {suffixes:?}", query.queries[0]);
        }
    }
}
