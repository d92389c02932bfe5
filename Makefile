# Two commands do all the set-up: `make run` and `make test`. Both build .venv when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DATA ?= data
PORT ?= 8080
HOST ?= 127.0.0.1
# Test files run side by side; most of them wait more than they compute.
JOBS ?= 4

.DEFAULT_GOAL := help
.PHONY: help run test peers balanced check fuzz layers rolling crash restore-drill browser bench-peers soak overload import-million bench-imports bench-500m clean

help:
	@echo 'make run    a node on an embedded registry with sample data   (PORT=8080 HOST=127.0.0.1 DATA=data)'
	@echo 'make test   the whole test suite (installs chromium for the browser tests if it may)'
	@echo 'make peers  the reference Java client against a node (needs java and mvn)'
	@echo 'make balanced   two nodes behind HAProxy: restarts, a killed node (needs haproxy)'
	@echo 'make check  ruff, mypy and the layer test'
	@echo 'make fuzz   a million mutated Handle packets against the codec   (PACKETS=1000000 SEED=1)'
	@echo 'make restore-drill  how long backup, restore, move and export take   (ROWS=1000000 DRILL=--blocks)'
	@echo 'make layers  rows over blocks against a plain dictionary, two million changes   (LAYERS_STEPS=25000 SEED=1)'
	@echo 'make rolling  workers are replaced over and over under full load, nothing is lost   (ROLLING_S=60)'
	@echo 'make crash  kills, cut replies, races, a full disk: nothing acknowledged is lost   (KILLS=1000 CALLS=12500 ROUNDS=1000)'
	@echo 'make outage  the database killed, frozen, out of reach: warm names go on   (OUTAGE_S=600)'
	@echo 'make bench-peers  our fronts against nginx, redis, NSD and limits in C   (BENCH="--only http")'
	@echo 'make overload  five times the peak, a loud tenant, a flood of unknown names   (BENCH="--rounds 3")'
	@echo 'make soak   half an hour of load with writes and restarts   (SOAK_S=1800)'
	@echo 'make import-million   a file of a million rows, one in a hundred bad, the node killed twice   (IMPORT_ROWS=1000000)'
	@echo 'make bench-imports   files of every form into a node, sorted and shuffled   (COUNT=1000000 DATABASE=sqlite)'
	@echo 'make bench-500m   half a billion records: loaded, read, changed, verified   (COUNT=500000000 DATABASE=sqlite VOLUME=data/volume)'
	@echo 'make clean  remove the virtualenv and caches, keep the data'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'biaojie needs Python 3.11 or newer; set PYTHON=/path/to/python3.11'; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo 'The venv module is missing: apt-get install python3-venv'; exit 1; }

$(VENV)/.node: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check -e . && touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,check]' && touch $@ $(VENV)/.node

run: $(VENV)/.node
	@export BIAOJIE_DATA_DIR=$(DATA) BIAOJIE_PORT=$(PORT) BIAOJIE_HOST=$(HOST) \
	  BIAOJIE_LOG_LEVEL=$${BIAOJIE_LOG_LEVEL:-warning}; \
	$(BIN)/biaojie migrate && exec $(BIN)/biaojie serve --demo

test: $(VENV)/.test browser
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart=0 --durations=25 --durations-min=4 \
	  || { [ $$? = 1 ] || exit 1; \
	       echo 'Once more, one at a time, those that failed: beside others a test may be late.'; \
	       $(BIN)/python -m pytest --last-failed; }

# A client that none of us wrote; its library comes from Maven Central.
peers: $(VENV)/.test
	@$(BIN)/python -m pytest tests/system/peers/java_client.py

balanced: $(VENV)/.test
	@$(BIN)/python -m pytest -s tests/system/balanced/behind_haproxy.py

check: $(VENV)/.test
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy \
	  && $(BIN)/python -m pytest -q tests/test_layers.py

PACKETS ?= 1000000
SEED ?= 1
fuzz: $(VENV)/.test
	@$(BIN)/python -m tests.fuzz.handle_packets --packets $(PACKETS) --seed $(SEED)

ROWS ?= 1000000
restore-drill: $(VENV)/.test
	@$(BIN)/python -m tests.system.restore_drill --rows $(ROWS) $(DRILL)

# The layered registry against a plain dictionary, on every store.
LAYERS_STEPS ?= 25000
layers: $(VENV)/.test
	@LAYERS_STEPS=$(LAYERS_STEPS) LAYERS_SEED=$(SEED) $(BIN)/python -m pytest -q -s --timeout=0 tests/property/test_layers_model.py

ROLLING_S ?= 60
rolling: $(VENV)/.test
	@ROLLING_S=$(ROLLING_S) $(BIN)/python -m pytest -q -s --timeout=0 tests/system/test_workers_replaced.py -k no_request

# An hour or so with these numbers; a third of it for the kills of each database.
KILLS ?= 1000
CALLS ?= 12500
ROUNDS ?= 1000
crash: $(VENV)/.test
	@$(BIN)/python -m tests.crash kills retries race disk descriptors --kills $(KILLS) --calls $(CALLS) --rounds $(ROUNDS) --seed $(SEED)

# Each of four ways for so long.
OUTAGE_S ?= 600
outage: $(VENV)/.test
	@$(BIN)/python -m tests.crash outage --seconds $(OUTAGE_S) --json bench/results/outage.json

# Limits and drivers in C are built when a compiler is there; peers come from Debian when it may.
BENCH ?=
bench-peers: $(VENV)/.test
	@command -v cc >/dev/null || command -v gcc >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	       && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null; } \
	  || { echo 'The load drivers need a C compiler: apt-get install gcc libc6-dev'; exit 1; }
	@$(BIN)/python -m bench.peers $(BENCH)

SOAK_S ?= 1800
soak: $(VENV)/.test
	@$(BIN)/python -m bench.soak --seconds $(SOAK_S) $(BENCH)

overload: $(VENV)/.test
	@$(BIN)/python -m bench.overload $(BENCH)

IMPORT_ROWS ?= 1000000
import-million: $(VENV)/.test
	@IMPORT_ROWS=$(IMPORT_ROWS) $(BIN)/python -m pytest -q -s --timeout=0 tests/system/test_import_whole.py

# Half an hour or more, and 25 GB of disk; stopped, it goes on with the same command.
COUNT ?= 500000000
DATABASE ?= sqlite
VOLUME ?= data/volume
bench-500m: $(VENV)/.test
	@$(BIN)/biaojie bench volume --count $(COUNT) --database '$(DATABASE)' --folder $(VOLUME) --json $(VOLUME)/result.json --write $(BENCH)

# A minute or two for each database.
bench-imports: COUNT = 1000000
bench-imports: $(VENV)/.test
	@$(BIN)/biaojie bench import --count $(COUNT) --database '$(DATABASE)' --write $(BENCH)

# The browser tests need a Chromium; Debian and Ubuntu package one.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || [ -n "$$BIAOJIE_CHROMIUM" ] \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	       && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk >/dev/null; } \
	  || { echo 'The browser tests need Chromium: apt-get install chromium, or set BIAOJIE_CHROMIUM'; exit 1; }

clean:
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis
