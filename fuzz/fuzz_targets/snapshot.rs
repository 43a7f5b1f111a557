#![no_main]
//! See `tests/fuzz_targets/snapshot.rs`, which holds what is asserted.

#[path = "../../tests/fuzz_targets/response.rs"]
mod response;
#[path = "../../tests/fuzz_targets/snapshot.rs"]
mod snapshot;
#[path = "../../tests/fuzz_targets/walk.rs"]
mod walk;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    snapshot::check(input);
});
