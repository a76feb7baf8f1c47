# One obvious command for each thing. Needs Python 3.11, make, and the network for the first set-up.

PYTHON ?= $(shell for python in python3.11 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo "$$python" && break; done)
VENV := .venv/bin

.PHONY: setup test baselines lint audit docs demo bench loadtest chaos soak fuzz lock clean

setup: ## make .venv and unpack the default model; DEVICE=cpu or DEVICE=gpu instead of what is found
	@test -n "$(PYTHON)" || { echo "set-up: error: Python 3.11 is needed: neither python3.11 nor python3 is one" >&2; exit 1; }
	@"$(PYTHON)" requirements/install.py $(if $(DEVICE),--device "$(DEVICE)")

baselines: setup ## keep the figures of the small simulations that the tests compare with
	$(VENV)/python -m loadtests.baselines

# These take one core each. The others start engines, clusters or programs, which have the machine to themselves.
AT_ONCE := tests/unit tests/integration/jobs tests/integration/harvest tests/integration/client

test: setup ## every test
	$(VENV)/python -m pytest -n auto --dist loadfile $(AT_ONCE)
	$(VENV)/python -m pytest $(addprefix --ignore=,$(AT_ONCE)) tests

lint: setup ## style, types, and which package imports which
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy
	$(VENV)/mypy --follow-imports=silent tests/integration/jobs/test_openai_client.py
	$(VENV)/lint-imports
	$(VENV)/bandit --quiet --configfile pyproject.toml --recursive conserve deployments loadtests requirements/install.py

audit: ## known faults of the locked packages; asks the network
	@test -n "$(PYTHON)" || { echo "audit: error: Python 3.11 is needed" >&2; exit 1; }
	@"$(PYTHON)" requirements/install.py --audit

docs: setup ## docs/ as pages, in out/site; SERVE=1 shows them on http://127.0.0.1:8001, and again after each change
	NO_MKDOCS_2_WARNING=1 $(VENV)/mkdocs $(if $(SERVE),serve --dev-addr 127.0.0.1:8001,build --quiet)

demo: setup ## the main job, end to end; DOCUMENTS=folder instead of the descriptions of installed packages
	@$(VENV)/python -m loadtests.demo $(if $(DOCUMENTS),--documents "$(DOCUMENTS)")

bench: setup ## stock vLLM beside ours: chat and pressure once; W=all REPEATS=3 TRACES=folder, and ARGS= for the rest
	$(if $(filter-out all,$(W)),,@$(VENV)/python -m loadtests.scheduler_cost --out out/bench)
	@$(VENV)/python -m loadtests.coserve $(if $(W),--workload "$(W)") $(if $(REPEATS),--repeats "$(REPEATS)") \
		$(if $(TRACES),--traces "$(TRACES)") $(ARGS)

loadtest: setup ## load over HTTP and gRPC: chats alone, beside batches, and what the front costs; TRACES=folder, ARGS= for the rest
	@$(VENV)/python -m loadtests.loadtest $(if $(TRACES),--traces "$(TRACES)") $(ARGS)

chaos: setup ## faults of every kind for an hour; ENGINE=real for vLLM, SEED=7, and ARGS= for the rest
	@$(VENV)/python -m loadtests.chaos $(if $(ENGINE),--engine "$(ENGINE)") $(if $(SEED),--seed "$(SEED)") $(ARGS)

soak: setup ## a changing load for half an hour: does anything grow? ENGINE=real for vLLM, and ARGS= for the rest
	@$(VENV)/python -m loadtests.soak $(if $(ENGINE),--engine "$(ENGINE)") $(ARGS)

fuzz: setup ## what strangers may send to each surface, 20,000 inputs each; ARGS="--surface http --inputs 1000 --seed 2"
	@$(VENV)/python -m loadtests.fuzz --out out/fuzz $(ARGS)

lock: ## resolve the dependencies of pyproject.toml anew; UPGRADE=1 takes the newest versions
	@test -n "$(PYTHON)" || { echo "lock: error: Python 3.11 is needed" >&2; exit 1; }
	@"$(PYTHON)" requirements/install.py --lock $(if $(UPGRADE),--upgrade)

clean: ## remove what the commands above made here, not the user's cache folder
	rm -rf .venv .setup.lock out build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
