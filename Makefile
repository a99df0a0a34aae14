# `make demo` runs the main job; `make test` is what CI runs. Both set up what is missing first.
include scripts/env.mk

.PHONY: setup build test lint

setup:
	@scripts/setup

build: setup
	cargo build --locked -p pitr-sidecar

test: setup
	cargo test --locked --workspace
	$(PITR_VENV)/bin/python -m unittest discover -s tests

lint:
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
