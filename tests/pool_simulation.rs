//! The upstream pool under load, in a simulation: the agent's own pool, a network in memory, a clock that jumps.
//!
//! A case says what happens to its servers and when, and what must hold. It prints its figures:
//!
//! ```text
//! POOL_SEEDS=50 cargo test --test pool_simulation silent -- --nocapture
//! ```
//!
//! runs the cases of that name with fifty seeds each; `POOL_FIRST_SEED` begins elsewhere, and with `POOL_SECONDS` each
//! second is shown. Network and load follow from the seed; the pool's own random numbers do not. Timers have
//! milliseconds, so a duration may be up to one too long.

#[path = "pool_simulation/busy.rs"]
mod busy;
#[path = "pool_simulation/case.rs"]
mod case;
#[path = "pool_simulation/chaos.rs"]
mod chaos;
#[path = "pool_simulation/checked.rs"]
mod checked;
#[path = "pool_simulation/dead.rs"]
mod dead;
#[path = "pool_simulation/endpoint.rs"]
mod endpoint;
#[path = "pool_simulation/gone.rs"]
mod gone;
#[path = "pool_simulation/line.rs"]
mod line;
#[path = "pool_simulation/load.rs"]
mod load;
#[path = "pool_simulation/network.rs"]
mod network;
#[path = "pool_simulation/set.rs"]
mod set;
#[path = "pool_simulation/slower.rs"]
mod slower;
#[path = "pool_simulation/world.rs"]
mod world;
