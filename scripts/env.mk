# Where build products go: outside the checkout, so that a fresh clone finds them again.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tikv-pitr/target
