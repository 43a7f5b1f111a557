//! Scenarios that must fail: an expectation that nothing can break would prove nothing.

use crate::{script, world};

/// The steps of one, and a part of the error that they must lead to.
const WRONG: &[(&str, &str)] = &[
    ("expect NOERROR", "nobody asked"),
    ("on www.example. A\n  SERVFAIL\nask www.example. A\nexpect NOERROR", "RCODE"),
    ("on www.example. A\n  silence\nask www.example. A\nexpect dropped", "a reply came"),
    ("ask localhost. A\nexpect waiting", "a reply already"),
    ("ask localhost. A\nexpect NXDOMAIN", "RCODE"),
    ("ask localhost. A\nexpect NOERROR hit", "not a hit but [\"local\"]"),
    ("ask localhost. A\nexpect NOERROR after=2ms", "came after"),
    ("ask localhost. A\nexpect NOERROR\n  nothing", "answer section"),
    ("ask localhost. A\nexpect NOERROR\n  localhost. 3600 A 127.0.0.2", "answer section"),
    ("ask localhost. A\nexpect NOERROR\n  localhost. 60 A 127.0.0.1", "answer section"),
    ("ask localhost. A\nexpect NOERROR flags=rd,ra", "flags"),
    ("ask localhost. A edns\nexpect NOERROR ede=3", "extended error"),
    ("ask localhost. A edns\nexpect NOERROR size=4096", "our payload size"),
    ("ask localhost. A\nexpect NOERROR no-options", "an OPT without options"),
    ("ask localhost. A\nexpect NOERROR length=12", "length"),
    ("ask localhost. A\nexpect NOERROR at-most=12", "at-most=12"),
    ("ask localhost. A\nexpect NOERROR answers=2", "answer records"),
    ("ask localhost. A\nexpect NOERROR purple", "`purple` is nothing to expect"),
    ("asked 1", "queries upstream"),
    ("asked 1 at=192.0.2.53", "queries upstream"),
    ("probed 1", "probes"),
    // Each of its states holds, and the probe goes where it must and counts as no query.
    ("on . SOA\n  silence\nask . SOA\nexpect waiting\nasked 1", "queries upstream"),
    ("server 192.0.2.53 silent\nask www.example. A\nexpect SERVFAIL", "came after 4s"),
    ("server 192.0.2.53 refuses\nask www.example. A\nexpect SERVFAIL\nprobed 1", "probes"),
    (
        "server 192.0.2.53 refuses 17\nask www.example. A\nexpect SERVFAIL after=4s\nstreams opened=0",
        "streams opened",
    ),
    (
        "server 192.0.2.53 refuses\nask www.example. A\nexpect SERVFAIL\nserver 192.0.2.53 up\nwait 1s\nasked 1",
        "queries",
    ),
    (
        "on www.example. A\n  after 9ms\n  NXDOMAIN\nask www.example. A\nwait 5ms\nserver 192.0.2.53 resets\n\
         expect NXDOMAIN after=9ms",
        "came after 14",
    ),
    ("sent www.example. A rd", "nothing like it went upstream"),
    ("streams opened=1", "streams opened"),
    ("on www.example. A\n  SERVFAIL\nask www.example. A\nexpect SERVFAIL\nsent www.example. A cd", "not cd"),
    ("on www.example. A\n  SERVFAIL\nask www.example. A\nexpect SERVFAIL\nstreams open=0", "streams open"),
    // Asked upstream, and nothing is said about it.
    ("ask www.example. A\nexpect SERVFAIL after=4s", "nothing is said about this"),
    // Nobody looks.
    ("ask localhost. A", "nothing is looked at in the end"),
    ("ask one: localhost. A\nasked 0", "`ask one` is not looked at"),
    ("ask localhost. A\nask localhost. A\nexpect NOERROR", "the one before it is not looked at"),
    ("on www.example. A\n  after 1s\n  SERVFAIL\nask www.example. A\nexpect waiting", "is not looked at"),
    // Words that mean nothing where they stand.
    ("asked 0 www.example. A rd", "asked N [NAME [TYPE]]"),
    ("streams opened", "opened=N, open=N"),
    ("streams", "one of them at least"),
    ("flush all\nasked 0", "`flush` is no step"),
    ("probed 0 www.example.", "probed N [at=SERVER]"),
    ("server 192.0.2.53 sleeps\nasked 0", "moves or serial"),
    ("server 192.0.2.53 resets tcp\nasked 0", "moves or serial"),
    ("repeat many\n  wait 1s\nasked 0", "`many` is no number"),
    ("repeat 2\n  ask localhost. A\nexpect NOERROR", "the one before it is not looked at"),
    ("repeat 2\n  ask {}: localhost. A\n  expect {}: NXDOMAIN\nasked 0", "5: wrong: RCODE"),
    ("repeat 2\n  wait 1s\n    SERVFAIL\nasked 0", "`wait` has no block"),
    ("repeat 2\n  cache { max_ttl: 1s }\nasked 0", "`cache` is no step"),
    ("wait 1s\n  SERVFAIL\nasked 0", "`wait` has no block"),
    ("ask localhost. A purple\nexpect NOERROR", "`purple` is no option of a query"),
    ("ask raw=00 purple\nexpect dropped", "`purple`"),
    ("ask raw=00\nexpect dropped after=1s", "`dropped` says all"),
    ("on www.example. A\n  NOERROR aaa\nasked 0", "`aaa`"),
    ("on www.example. A\n  silence 1s\nasked 0", "`silence` stands alone"),
    ("on www.example. A\nasked 0", "says nothing"),
    ("asked 0\ncache { max_ttl: 1s }\nasked 0", "before the first step"),
];

/// Plays all of them; an error names the first that does not fail as it must.
pub(crate) fn all_fail() -> Result<(), String> {
    for (steps, part) in WRONG {
        let text = format!("scenario wrong\n  It must fail.\n{steps}\n");
        let played = script::parse(&text).and_then(|all| all.iter().try_for_each(world::play));
        match played {
            Err(error) if error.contains(part) => {}
            other => return Err(format!("{steps}\n\n{other:?} instead of an error with {part:?}")),
        }
    }
    Ok(())
}
