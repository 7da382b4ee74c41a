# What to type here. The first target that needs it makes .venv, with the versions in $(CONSTRAINTS).
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where it is set, each of the hundreds of processes that the tests start compiles all modules anew: a fifth of their time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 22

.PHONY: run
run: restic $(READY) ## Run the quickstart here: a server, an agent, a backup each minute (Ctrl-C ends it)
	@$(BIN)/lamplighter up examples/quickstart

# Beside mypy, which leaves a core idle: each of the four workers would compile all tests.
COMPILE_TESTS = $(BIN)/pytest -q --collect-only >/dev/null 2>&1
.PHONY: test
test: restic rclone ssh busybox curl openssl sqlite3 prometheus chromium $(READY) ## Check style, types and imports, and run all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(COMPILE_TESTS) & \
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 4 --dist worksteal -m "not cluster" # more than cores: many tests wait for processes

# Slower than `make test`, and no part of it. What it runs: make coverage TESTS="tests/unit tests/simulation"
TESTS ?= tests
.PHONY: coverage
coverage: restic rclone ssh busybox curl openssl sqlite3 prometheus chromium $(READY) ## Measure which lines and branches the tests run, and show it
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -n 4 --dist worksteal -m "not cluster" $(TESTS); \
		status=$$?; $(BIN)/coverage combine --quiet && $(BIN)/coverage report && exit $$status

.PHONY: test-postgresql
test-postgresql: restic rclone ssh busybox curl openssl sqlite3 $(READY) ## Run the tests of real parts with their servers on PostgreSQL
	LAMPLIGHTER_TEST_DATABASE=postgresql $(BIN)/pytest -q -n 4 --dist worksteal tests/integration

# For this Python and machine alone, without an index: make agent-file PYTHONS=
PYTHONS ?= 3.11 3.12 3.13 3.14
MACHINES ?= x86_64 aarch64
WHEELS := dist/compiled
.PHONY: agent-file
agent-file: $(READY) ## Build the agent as one file, dist/lamplighter-agent.pyz, for each Python and machine
	rm -rf $(WHEELS) && mkdir -p $(WHEELS)
	@set -e; for python in $(PYTHONS); do for machine in $(MACHINES); do \
		$(BIN)/pip download --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --no-deps --only-binary :all: \
			--python-version $$python --platform manylinux_2_17_$$machine --platform manylinux2014_$$machine \
			--dest $(WHEELS) msgspec; \
	done; done
	$(BIN)/python -m images.single_file dist/lamplighter-agent.pyz $(if $(PYTHONS),$(WHEELS)/*.whl)
	rm -r $(WHEELS)

.PHONY: hooks
hooks: $(READY) ## Have each commit pass the checks of style, types and imports first
	$(BIN)/pre-commit install

.PHONY: format
format: $(READY) ## Format the code, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: bench
bench: $(READY) ## Measure, each figure beside its limit in the same run
	$(BIN)/python -m bench

.PHONY: bench-scale
bench-scale: $(READY) ## Measure memory and CPU time of each host with 100,000 of them in one process
	$(BIN)/python -m bench scale

# For a part of it: make faults-servers SERVERS="--agents 600 --minutes 3"
SERVERS ?=
.PHONY: faults-servers
faults-servers: $(READY) ## Kill and stop three servers over one PostgreSQL under 2,000 agents, for ten minutes
	$(BIN)/python -m tests.faults.several $(SERVERS)

# For a part of it: make faults SEEDS=1000 ROUNDS=30
SEEDS ?= 10000
ROUNDS ?= 300
.PHONY: faults
faults: restic $(READY) ## Run the parts under faults, at length
	$(BIN)/python -m tests.faults --seeds $(SEEDS) --rounds $(ROUNDS)
	LAMPLIGHTER_FUZZ=20 $(BIN)/pytest -q tests/integration/test_hostile.py tests/integration/test_hostile_rest.py \
		tests/unit/test_cron_grammar.py tests/integration/test_bench.py

.PHONY: pictures
pictures: chromium $(READY) ## Make the README's pictures anew, of a made-up fleet
	$(BIN)/python -m tests.browser.pictures docs/images

.PHONY: cluster-test
cluster-test: restic $(READY) ## Test against a real Kubernetes API server
	$(BIN)/pytest -q tests/cluster

.PHONY: clean
clean: ## Remove what make made; .lamplighter, which holds your data, stays
	rm -rf $(VENV) dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml wire/version.py $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null \
		|| { echo "$(PYTHON) is missing: apt-get install python3 python3-venv, or name another: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$$($(PYTHON) -V) is too old: install Python 3.11 or newer and name it, as in make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make a venv: apt-get install python3-venv" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

# Each program that is not in a wheel, and the package of Debian that has it.
.PHONY: restic rclone ssh busybox curl openssl sqlite3
restic: PACKAGE := restic
rclone: PACKAGE := rclone
ssh: PACKAGE := openssh-client
busybox: PACKAGE := busybox-static
curl openssl sqlite3: PACKAGE = $@
restic rclone ssh busybox curl openssl sqlite3:
	@command -v $@ >/dev/null \
		|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
			&& { apt-get install -qq -y $(PACKAGE) || { apt-get update -qq && apt-get install -qq -y $(PACKAGE); }; }; } \
		|| { echo "$@ is missing: apt-get install $(PACKAGE)" >&2; exit 1; }

# Without it, the tests of alerts and of the dashboard are skipped.
.PHONY: prometheus
prometheus:
	@command -v promtool >/dev/null \
		|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get install -qq -y prometheus; } \
		|| echo "prometheus is missing, and its tests are skipped: apt-get install prometheus" >&2

# Without it, tests/browser is skipped.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null \
		|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
			&& { apt-get install -qq -y chromium || { apt-get update -qq && apt-get install -qq -y chromium; }; }; } \
		|| echo "chromium is missing, so pages are not tested in a browser: apt-get install chromium" >&2
