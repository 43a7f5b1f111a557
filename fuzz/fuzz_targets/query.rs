#![no_main]
//! See `tests/fuzz_targets/query.rs`, which holds what is asserted.

#[path = "../../tests/fuzz_targets/query.rs"]
mod query;
#[path = "../../tests/fuzz_targets/walk.rs"]
mod walk;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    query::check(input);
});
