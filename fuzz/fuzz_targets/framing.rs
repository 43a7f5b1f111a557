#![no_main]
//! See `tests/fuzz_targets/framing.rs`, which holds what is asserted.

#[path = "../../tests/fuzz_targets/framing.rs"]
mod framing;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    framing::check(input);
});
