# Everything runs in the four environments that `make setup` builds from hash-locked files.
PYTHON ?= python3.11
APP := .venv/app/bin
ROOMS := features streaming batch models serving infra dags
PYTEST := $(APP)/python -m pytest
# A file's tests stay together, since they share what its fixtures started; the longest files come first.
# A third file at a time fills the pauses of the others, where there is memory for it.
FILES_AT_A_TIME := $(or $(shell awk '/MemAvailable/ { print ($$2 > 12000000) ? 3 : 2 }' /proc/meminfo 2>/dev/null),2)
PARALLEL := -n $(FILES_AT_A_TIME) --dist loadfile --no-loadscope-reorder

# Tests and the stack start hundreds of processes: what they import is compiled once, not in each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo up down status logs doctor lint test-unit test soak bench proto lock

help: ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

setup: ## build the environments and fetch the jars; a second run takes under a second
	@command -v $(PYTHON) >/dev/null || { echo "setup: no $(PYTHON) on PATH; install Python 3.11, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) infra/bootstrap.py

demo: setup ## the whole chain, from an empty broker to a report; DATA=movielens for real ratings
	@$(APP)/millrace demo $(if $(DATA),--data $(DATA))

up: setup ## start the local stack
	@$(APP)/millrace up

down: ## stop the local stack and every process that it started
	@$(APP)/millrace down

status: ## what runs, where, and how much memory it takes
	@$(APP)/millrace status

logs: ## the newest log lines of every program, or of one: make logs PROGRAM=flink
	@$(APP)/millrace logs $(PROGRAM)

doctor: setup ## check this machine and say what to do
	@$(APP)/millrace doctor

lint: setup ## ruff, formatting and strict types
	@$(APP)/ruff check .
	@$(APP)/ruff format --check -q .
	@$(APP)/mypy

test-unit: setup ## tests without a JVM: about two minutes on 2 cores
	@$(PYTEST) tests/unit tests/test_tidy.py -q -m "not soak" $(PARALLEL)

test: setup ## every test but the soak ones, on real parts, two or three files at a time
	@$(PYTEST) tests -q -m "not soak" $(PARALLEL)

soak: setup ## what takes more than a minute or two
	@$(PYTEST) tests -q -m soak

bench: setup ## every benchmark; make bench-NAME runs one
	@$(APP)/python -m tests.bench

bench-%: setup
	@$(APP)/python -m tests.bench $*

proto: setup ## generate the service's Python from serving/ranking.proto
	@$(APP)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. serving/ranking.proto

UV := .venv/uv/bin/uv
COMPILE := $(UV) pip compile -q pyproject.toml --python-version 3.11 --generate-hashes --no-header
lock: setup ## compile the locked requirement files again
	@$(COMPILE) --extra app --extra dev -o infra/requirements/app.txt
	@for name in serve stream airflow; do $(COMPILE) --extra $$name -o infra/requirements/$$name.txt || exit 1; done
	@$(PYTHON) infra/bootstrap.py
