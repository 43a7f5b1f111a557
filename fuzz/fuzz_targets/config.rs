#![no_main]
//! See `tests/fuzz_targets/config.rs`, which holds what is asserted.

#[path = "../../tests/fuzz_targets/config.rs"]
mod config;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    config::check(input);
});
