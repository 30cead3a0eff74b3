# The two commands of the README are `make run` and `make test`; everything else serves them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
JARS := jars
DEMO_EVENTS ?= 200000
DOCKER ?= docker
# For instance: make bench-kafka BENCH_KAFKA="--parts soak --soak-minutes 20"
BENCH_KAFKA ?= --parts throughput threads latency soak outage
# For instance: make bench-delivery BENCH_DELIVERY="--parts latency"
BENCH_DELIVERY ?=
TESTS ?= tests/unit tests/postgres tests/kafka tests/minicluster tests/cluster

.PHONY: help run kafka-demo delivery-demo test check bench bench-delivery bench-kafka jars image image-steps venv clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

run: venv  ## generate events with every kind of damage, run the main job on them, show its books
	@mkdir -p $(DEMO)
	$(BIN)/breakwater generate --events $(DEMO_EVENTS) --out $(DEMO)/events.jsonl
	$(BIN)/breakwater run --input $(DEMO)/events.jsonl --output $(DEMO)/out --overwrite

kafka-demo: venv jars  ## the same from Kafka to Kafka: starts a broker of its own, shows books and output (needs Maven)
	$(BIN)/python -m flink_jobs.demo.kafka_demo --events $(DEMO_EVENTS)

delivery-demo: venv  ## the main job against a service that is not well: shows retries, breakers and the books
	$(BIN)/python -m flink_jobs.demo.delivery_demo

test: venv  ## run the tests; TESTS=tests/unit for the fast ones only
	$(BIN)/python -m pytest $(TESTS)

check: venv  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: venv  ## measure side by side; the tables in bench/README.md come from here
	$(BIN)/python bench/main_job.py
	$(MAKE) bench-kafka

bench-delivery: venv jars  ## what delivery costs: beside none, AsyncDataStream, keyed state and a bare httpx loop; BENCH_DELIVERY has its options
	$(BIN)/python bench/delivery.py $(BENCH_DELIVERY)

bench-kafka: venv jars  ## the part of it that is from Kafka to Kafka (needs Maven); BENCH_KAFKA has its options
	$(BIN)/python -m bench.kafka $(BENCH_KAFKA)

jars: $(JARS)/.ready  ## fetch the Kafka connector, and a broker for the tests, with Maven

$(JARS)/.ready: docker/pom.xml
	@command -v mvn >/dev/null || { echo "make jars needs Maven (and its Java): install it, on Debian with: apt-get install maven" >&2; exit 1; }
	@rm -rf $(JARS)
	mvn --quiet --batch-mode --file docker/pom.xml dependency:copy-dependencies
	mvn --quiet --batch-mode --file docker/pom.xml --activate-profiles broker dependency:copy-dependencies
	@touch $@

image:  ## the image for clusters; needs Docker (or: make image DOCKER=podman)
	$(DOCKER) build --file docker/Dockerfile --tag breakwater .

image-steps: venv jars  ## what the image's build runs, outside of a container, into build/image
	@rm -rf build/image && mkdir -p build/image
	@cp -r $$($(BIN)/python -c 'from flink_jobs.cluster.submit import flink_home; print(flink_home())') build/image/flink
	PYTHON=$(BIN)/python docker/install.sh build/image/venv $(JARS) build/image/flink

venv: $(VENV)/.ready  ## create .venv with the exact versions of constraints.txt

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit("Breakwater needs Python 3.10 to 3.12, %s is %d.%d: name another one, as in make run PYTHON=python3.11" % (sys.executable, *v))'
	@echo "creating $(VENV): about 1 GB, a minute or two"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools wheel
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

clean:  ## remove what make made
	rm -rf $(VENV) $(DEMO) $(JARS) bench/data build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
