# Where build products go: outside the checkout, so that a fresh clone finds them again.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tikv-pitr/target
# Python and JuiceFS as scripts/setup installs them: $(PITR_VENV)/bin/python, $(PITR_VENV)/bin/juicefs.
export PITR_VENV ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tikv-pitr/venv
