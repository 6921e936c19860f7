# SPDX-License-Identifier: Apache-2.0
# On a fresh Debian or Ubuntu with git and make, as root or with sudo. Every target installs what it is missing.
#   make setup   .venv/bin/observe                       make test    the whole test suite
#   make demo    one real docker create + start, timed   make check   formatter, linter, type checker
#                (RECORDING=FILE keeps the recording)    make bench   side by side with the peers

VENV := .venv
TOOL := $(VENV)/.tool
DEV := $(VENV)/.dev
SCRIPTS := scripts/private-dockerd scripts/demo scripts/make-dashboards scripts/dashboard-picture
BENCHMARKS := $(filter-out bench/_%,$(wildcard bench/*.py))
# BPF and private daemons need root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=DOCKER_HOST,RECORDING,TMPDIR,CI,OBSERVE_NO_SKIP)

.PHONY: setup demo test check bench
setup: $(TOOL)

$(TOOL): pyproject.toml scripts/setup
	scripts/setup tool
	touch $@

$(DEV): pyproject.toml scripts/setup | $(TOOL)
	scripts/setup dev
	touch $@

demo: $(TOOL)
	@scripts/setup engine
	@$(SUDO) scripts/private-mounts $(VENV)/bin/python scripts/demo

test: $(DEV)
	@scripts/setup engine peers browser
	$(SUDO) scripts/private-mounts $(VENV)/bin/pytest

check: $(DEV)
	$(VENV)/bin/ruff format --check . $(SCRIPTS)
	$(VENV)/bin/ruff check . $(SCRIPTS)
	$(VENV)/bin/mypy
	MYPYPATH=scripts $(VENV)/bin/mypy -p dashboards
	MYPYPATH=scripts $(VENV)/bin/mypy --scripts-are-modules $(SCRIPTS)

bench: $(DEV)
	@scripts/setup engine peers
	@set -e; for benchmark in $(BENCHMARKS); do \
		$(SUDO) scripts/private-mounts $(VENV)/bin/python $$benchmark; \
	done
