//! The configuration changes again and again.

use rustix::process::Signal;

use crate::client::Load;
use crate::home::Home;
use crate::seen::Events;
use crate::support::{bound_ms, on_a_node, rate, seconds, wait_until};

const TIMES: u32 = 50;

#[test]
fn reloads_lose_nothing() {
    on_a_node(|| {
        let home = Home::new("watchdog: 3s");
        let mut keep = home.keep();
        home.wait_until_ready(&mut keep);
        let agent = keep.agent();
        let load = Load::start(home.listen(), rate());
        std::thread::sleep(seconds(2));
        let mut events = Events::default();
        events.happens(format!("{TIMES} reloads"));
        for number in 1..=TIMES {
            home.configure(&format!("    cache: {{ negative_max_ttl: {number}s }}\n"));
            keep.signal(Signal::HUP);
            wait_until("it has been reloaded", seconds(10), || {
                home.admin.count("nodens_config_reloads_total", &[("result", "ok")]) as u32 == number
            });
        }
        let seen = load.finish();
        eprint!("{}", seen.report("reload", &events));
        seen.must_be_whole();
        assert_eq!(agent, keep.agent(), "it is the same process");
        assert!(seen.slowest_ms() <= bound_ms(20, 500), "{} ms", seen.slowest_ms());
    });
}
