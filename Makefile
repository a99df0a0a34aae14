# `make demo` runs the main job; `make test` is what CI runs. Both set up what is missing first.
include scripts/env.mk

# `version` tells it; a build without git does without.
export PITR_COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null)

.PHONY: setup build test embedded lint demo playground soak bench sim fuzz interop interop-build

setup:
	@scripts/setup

# The whole workspace, so that tests find every dependency built with the same features. The
# binaries also lie at bin/, where a newcomer looks.
build: setup
	cargo build --locked --workspace
	@mkdir -p bin
	@cp -f $(CARGO_TARGET_DIR)/debug/tikv-pitr $(CARGO_TARGET_DIR)/debug/tikv-pitr-playground bin/

# Real servers and tools for the tests (Go builds them, into the cache; br takes ten minutes once). Without Go the tests that need them say so and
# are left out, but in CI (CI is set) that is a failure.
interop-build:
	@scripts/interop build || [ -z "$$CI" ]

test: build embedded interop-build
	cargo test --locked --workspace
	$(PITR_VENV)/bin/python -m unittest discover -s tests
	$(PITR_VENV)/bin/python interop/run.py

# Every test against a real peer, one line each: `interop PEER TEST ok|FAIL|absent`; PEER=br runs those of br.
# PITR_ROUNDS is the number of an operator's worst days (3).
interop: build interop-build
	@$(PITR_VENV)/bin/python interop/run.py $(PEER)

# What an engine fork links: both libraries without RocksDB, gRPC and the clouds' HTTP client, and the example engine.
embedded: setup
	cargo check --locked -p pitr-observer -p pitr-restore-worker --no-default-features
	cargo check --locked -p pitr-toy-engine
	@! cargo tree --locked -p pitr-observer -p pitr-restore-worker --no-default-features -e normal | grep -E 'rocksdb|reqwest' || \
	{ echo 'embedded: a library links RocksDB or an HTTP client without its feature'; exit 1; }

lint: setup
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	else echo 'lint: cargo-deny is not installed; licences and sources are not checked'; fi

# `make demo PD=real` runs it on a real PD.
demo: build $(if $(filter real,$(PD)),interop-build)
	@$(PITR_VENV)/bin/python demo/demo.py $(if $(filter real,$(PD)),--real-pd)

playground: build
	@$(PITR_VENV)/bin/python demo/playground.py

# The long rounds and the full sizes of the memory tests: PITR_ROUNDS is the number of kills and of faulty runs (CI runs 3 of each).
soak: build
	PITR_ROUNDS=$${PITR_ROUNDS:-10} cargo test --locked -p pitr-sidecar --test it -- soak --nocapture
	PITR_ROUNDS=$${PITR_ROUNDS:-20} $(PITR_VENV)/bin/python interop/run.py pd
	PITR_MEMORY=full cargo test --locked -p pitr-sidecar --test it -- memory:: --nocapture --test-threads=1

# What each path costs against what the machine allows; BENCH=capture-grpc runs what begins so.
# About three minutes; seconds per bench: BENCH_SECONDS.
bench: setup
	cargo build --locked -p pitr-bench
	@$(CARGO_TARGET_DIR)/debug/tikv-pitr-bench --filter "$(BENCH)" --seconds "$${BENCH_SECONDS:-6}"
	@$(if $(BENCH),,cargo test --locked --workspace --test it -- memory::costs --ignored --nocapture --test-threads=1 | grep -o 'bench sidecar-.*')

# Every decoder for FUZZ_SECONDS (20) each; installs the nightly compiler and cargo-fuzz if they are missing.
fuzz: setup
	@scripts/fuzz

# One seed of the simulation with every step (`make sim SEED=7`); without SEED as many as SEEDS says.
sim:
	cargo run --locked -q -p pitr-sim -- $(if $(SEED),replay $(SEED) --trace,run --seeds $(or $(SEEDS),1000))
