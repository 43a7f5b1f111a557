# What a developer and CI call. `make test` installs what it needs on a fresh Debian machine.

PACKAGES := nsd unbound dnsdist dnsmasq-base dnsperf bind9-dnsutils knot-dnsutils \
            curl procps util-linux iproute2 nftables iptables conntrack ca-certificates gcc libc6-dev \
            musl-tools libc-ares-dev python3-dnspython golang-go default-jdk-headless
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# Most tests wait for something most of the time, so there are more at once than a small machine has cores.
export RUST_TEST_THREADS ?= $(shell n=$$(nproc); echo $$((n < 4 ? 4 : n)))

# Of each target of `make fuzz`.
FUZZ_SECONDS ?= 600
# Of the differential test in `make nightly`, beside its own.
SEEDS := 1 2 3 4 5 6 7 8 9

.PHONY: help test deps lint bench nightly coverage fuzz

help:
	@echo "make test      install what the tests need (apt, cargo), and run all of them"
	@echo "make lint      formatting, clippy, documentation"
	@echo "make bench     the microbenchmarks, the comparison with other servers, floods and failing upstreams (33 minutes)"
	@echo "make coverage  how many lines of src/ the tests run, by directory; OF=wire lists the others (10 minutes)"
	@echo "make fuzz      every fuzz target for FUZZ_SECONDS ($(FUZZ_SECONDS)); see fuzz/README.md"
	@echo "make nightly   what takes longer than CI may: bench, coverage, fuzz, each property 100 times as often,"
	@echo "               half an hour of kills and handovers, and the differential test and the simulation of the pool with"
	@echo "               other seeds"

deps:
	@if ! dpkg-query -W -f='$${db:Status-Status}\n' $(PACKAGES) 2>/dev/null | grep -c '^installed$$' \
	    | grep -qx $(words $(PACKAGES)); then \
	  $(SUDO) apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $(PACKAGES); \
	fi
	@command -v cargo >/dev/null || { echo "no cargo: install Rust 1.90 or later with rustup (https://rustup.rs)"; exit 1; }

# The Debian servers are started by the tests themselves; those of the packages need not run.
test: deps
	cargo test --locked --workspace --all-features
	cargo test --locked --lib --no-default-features

lint:
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --all-targets --all-features -- -D warnings
	cargo clippy --locked --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --all-features

bench: deps
	cargo bench --locked --bench micro
	cargo bench --locked --bench snapshot
	cargo bench --locked --bench compare
	cargo bench --locked --bench flood
	cargo bench --locked --bench pool

nightly: bench coverage fuzz
	POOL_SEEDS=50 cargo test --locked --test pool_simulation
	PROPTEST_CASES=25600 cargo test --locked --test wire_properties
	NEVER_SOAK=1800 cargo test --locked --test never_down soak -- --nocapture
	@set -e; for seed in $(SEEDS); do NODENS_SEED=$$seed cargo test --locked --test differential; done

fuzz:
	@cargo +nightly --version >/dev/null || { echo "no nightly: rustup toolchain install nightly"; exit 1; }
	@command -v c++ >/dev/null || { echo "no C++ compiler, which libFuzzer needs: install the package g++"; exit 1; }
	@command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked
	@set -e; for target in $$(cargo +nightly fuzz list); do \
	  mkdir -p fuzz/found/$$target fuzz/corpus/$$target; \
	  cargo +nightly fuzz run $$target fuzz/found/$$target fuzz/corpus/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1; \
	done

coverage: deps
	@.ci/coverage $(OF)
