//! Properties of the wire code, on any input and against another implementation (hickory-proto) as oracle.
//!
//! `PROPTEST_CASES` sets how many inputs each property sees. What a run finds becomes a named test.

#[path = "wire_properties/answers.rs"]
mod answers;
#[path = "wire_properties/any_bytes.rs"]
mod any_bytes;
#[path = "wire_properties/generate.rs"]
mod generate;
#[path = "wire_properties/queries.rs"]
mod queries;
#[path = "fuzz_targets/response.rs"]
mod response;
#[path = "fuzz_targets/snapshot.rs"]
mod snapshot;
#[path = "wire_properties/snapshots.rs"]
mod snapshots;
#[path = "fuzz_targets/walk.rs"]
mod walk;
