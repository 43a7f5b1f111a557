//! What a query gets as time goes by, with a clock that the test holds.
//!
//! [`Resolver::handle`] decides without I/O, and the time is its argument: each scenario stores answers
//! at second 0 and asks at any second after that. Flights that it would start are never driven.

#[path = "lifetimes/agent.rs"]
mod agent;
#[path = "lifetimes/answers_made_here.rs"]
mod answers_made_here;
#[path = "lifetimes/expiry.rs"]
mod expiry;
#[path = "lifetimes/keys.rs"]
mod keys;
#[path = "lifetimes/store.rs"]
mod store;
#[path = "lifetimes/warm.rs"]
mod warm;
