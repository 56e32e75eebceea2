# The farm's own commands. `make` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Made anew when the dependencies change; its presence says that the install is whole.
INSTALLED := $(VENV)/.installed

# Other people's clients, in an environment of their own; the one for Node only where npm is.
COMPAT := .venv-compat

.DEFAULT_GOAL := help
.PHONY: catalogue check suite compose-env compose-key compose-join compose-token containers help install compat demo test lint types unit integration families nightly fmt imports up down clean screenshots chaos slow bench

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("the farm needs Python 3.11 or newer; this is " + sys.version.split()[0] + ": use make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[local,otel]' --group dev
	touch $@

install: $(INSTALLED) ## make .venv with the farm and everything it needs

$(COMPAT)/.installed: pyproject.toml tests/compat/constraints.txt
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(COMPAT)/bin/python -m pip install --quiet --constraint tests/compat/constraints.txt --group compat
	command -v npm >/dev/null && npm install --silent --no-audit --no-fund --prefix $(COMPAT)/node openai@6 \
		|| echo "npm cannot install the client for Node: its test will be skipped"
	touch $@

compat: $(INSTALLED) $(COMPAT)/.installed ## other people's clients against the farm
	$(BIN)/python -m pytest tests/compat

demo: $(INSTALLED) ## start a farm, render all four tasks into demo-out/, stop it
	$(BIN)/farm demo --out demo-out

# Two processes run the tests, each with its own servers; the tests of one file stay together. The folders with the longest
# files come first (testpaths in pyproject.toml), so that both processes end at the same time. Static checks run beside them.
TEST_PROCESSES ?= 2

test: $(INSTALLED) $(COMPAT)/.installed ## the whole test suite, on real servers
	$(MAKE) --no-print-directory --jobs 2 check suite

check: $(INSTALLED) ## lint and types, quiet unless something is wrong
	@$(MAKE) --no-print-directory lint types > .check.log 2>&1 && echo "lint and types: ok" || { cat .check.log; exit 1; }

suite: $(INSTALLED) $(COMPAT)/.installed ## the tests alone
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED) ## ruff and the import contracts
	$(BIN)/ruff check farm workers tools tests examples
	$(BIN)/ruff format --check farm workers tools tests examples
	$(BIN)/lint-imports

types: $(INSTALLED) ## mypy, strict
	$(BIN)/mypy

unit: $(INSTALLED) ## the tests that need no server
	$(BIN)/python -m pytest tests/unit

integration: $(INSTALLED) $(COMPAT)/.installed ## the rest of the suite, on real servers
	$(BIN)/python -m pytest tests/contract tests/integration tests/compat tests/acceptance tests/browser tests/chaos

families: $(INSTALLED) ## a tiny model of each family of pipelines, with stock diffusers and through the farm
	$(BIN)/python -m pytest tests/contract
	$(BIN)/python -m tests.contract.families --write

nightly: $(INSTALLED) ## what takes too long for every change
	NIGHTLY=1 $(BIN)/python -m pytest tests/slow tests/integration/test_api_schema.py tests/chaos tests/browser

fmt: $(INSTALLED) ## format the code
	$(BIN)/ruff check --fix-only --quiet farm workers tools tests examples
	$(BIN)/ruff format farm workers tools tests examples

# LitServe, which a bench measures the farm against, beside the farm's own libraries and not among them.
.bench/.installed: pyproject.toml
	$(BIN)/python -m pip install --quiet --target .bench --no-deps --group bench
	touch $@

bench: $(INSTALLED) .bench/.installed ## every part beside a named peer in the same run: about fifty minutes on two cores
	$(BIN)/python -m tests.bench.script
	$(BIN)/python -m tests.bench.latency
	$(BIN)/python -m tests.bench.engine
	$(BIN)/python -m tests.bench.engine --work popular
	$(BIN)/python -m tests.bench.engine --side 256 --jobs 4
	$(BIN)/python -m tests.bench.arrivals
	$(BIN)/python -m tests.bench.farm
	$(BIN)/python -m tests.bench.switching
	$(BIN)/python -m tests.bench.overhead
	$(BIN)/python -m tests.bench.overhead --depth 1000 100000 1000000
	$(BIN)/python -m tests.bench.dispatch_round
	$(BIN)/python -m tests.bench.bulk
	$(BIN)/python -m tests.bench.webhooks

catalogue: $(INSTALLED) ## read what the pipelines of the installed diffusers accept, into farm/pipelines/
	$(BIN)/python -m workers.catalogue

screenshots: $(INSTALLED) ## images of the dashboard's pages, into docs/images/dashboard/
	$(BIN)/python -m pytest -q tests/browser/screenshots.py

SECONDS ?= 1800
SEED ?= $(shell $(PYTHON) -c 'import secrets; print(secrets.randbelow(2**31))')

slow: $(INSTALLED) ## the tests that take too long for the suite, or a compiler
	$(BIN)/python -m pytest tests/slow

chaos: $(INSTALLED) ## break a whole farm for SECONDS (1800) by the choices of SEED (random, printed), and judge it
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED) --report chaos-out/report.json

up: $(INSTALLED) ## start a farm here and stay with it; Ctrl-C stops it
	$(BIN)/farm up

down: $(INSTALLED) ## stop the farm that runs here
	$(BIN)/farm down

compose-env: ## draw the secrets of docker-compose.yml into .env; what is there is kept
	@$(PYTHON) infra/compose_env.py infra/compose.env.example .env

compose-key: ## the first API key of the farm in containers, shown once
	@docker compose exec api farm init --show-key

compose-join: ## let workers of other machines join at HOST, this machine's private address; then add docker-compose.join.yml
	@test -n "$(HOST)" || { echo "usage: make compose-join HOST=10.0.0.5, the address at which the other machines reach this one" >&2; exit 2; }
	@infra/certificate.sh $(HOST)
	@$(PYTHON) infra/compose_env.py infra/compose.env.example .env FRONT_DOOR_CERTIFICATE=$(HOST).pem FRONT_DOOR_ADDRESS=$(HOST) \
		JOIN_HOST=$(HOST) JOIN_ADDRESS=$(HOST) JOIN_POSTGRES_PASSWORD=@secret S3_PUBLIC_URL=https://$(HOST):8334

compose-token: ## print the .env of another machine whose workers shall join; the token is good for a year
	@docker compose exec -T api farm workers tokens create "machine of $$(date +%Y-%m-%d)" --hours 8760 | sed 's/^/FARM_JOIN_TOKEN=/'
	@. ./.env; echo "FARM_JOIN_URL=https://$$JOIN_HOST:$${FRONT_DOOR_PORT:-8000}"
	@echo FARM_CA=ca.pem
	@echo "# copy infra/front-door/tls/ca.pem to the same place there, and add FARM_WORKER_HOST=NAME" >&2

containers: ## build the images and play the acceptance on a container engine; variables: tests/containers/__main__.py
	@$(PYTHON) -m tests.containers

clean: ## remove what the targets made, except the farm's data
	rm -rf $(VENV) $(COMPAT) demo-out .mypy_cache .ruff_cache .pytest_cache
