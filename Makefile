# Everything runs in a private .venv, made on first use: `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The whole suite in two processes: tests wait more than they work. A part that is named here runs in one.
PYTEST_ARGS ?= -n 2 --dist loadfile

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test frameworks long generate checkgenerate lint format typecheck conformance bench sdks docs assets screenshots lowest release-image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(VENV)/.with-cli ## record the example responses and print what they cost
	@$(BIN)/llm-cost-ops quickstart

test: $(VENV)/.with-dev ## run the whole test suite, some ten minutes (PYTEST_ARGS="-k text" for a part)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

frameworks: ## the callbacks of frameworks that want older SDKs than the extra [sdks], each in an environment of its own
	@set -e; for name in llama-index openai-agents; do \
	  $(MAKE) --no-print-directory VENV=$(VENV)-$$name $(VENV)-$$name/bin/pip; \
	  $(VENV)-$$name/bin/python -m pip install --quiet -e ".[server,sdk-$$name]" hypothesis pytest pytest-asyncio; \
	  $(VENV)-$$name/bin/python -m pytest -q tests/unit/callbacks; \
	done

long: $(VENV)/.with-dev ## the long runs: state machines, faults, crash points at every write, power loss (ten minutes)
	LONG_TESTS=1 LLM_COST_OPS_CRASH_STEP=1 $(BIN)/python -m pytest $(PYTEST_ARGS) tests/unit/ledger tests/faults tests/property tests/unit/interceptors

generate: $(VENV)/.with-dev ## write llm_cost_ops/_gen from proto/
	$(BIN)/python -m tools.proto generate

checkgenerate: $(VENV)/.with-dev ## fail when llm_cost_ops/_gen is not what proto/ generates
	$(BIN)/python -m tools.proto checkgenerate

lint: $(VENV)/.with-dev ## ruff, and buf's lint, format and breaking checks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m tools.proto lint

format: $(VENV)/.with-dev ## format Python and proto files in place
	$(BIN)/ruff check --fix --quiet || true
	$(BIN)/ruff format
	$(BIN)/python -m tools.proto format

typecheck: $(VENV)/.with-dev ## mypy --strict
	$(BIN)/mypy

conformance: $(VENV)/.with-dev ## protobuf's own conformance runner against our codecs (wants npm)
	$(BIN)/python tests/conformance/protobuf/run.py

bench: $(VENV)/.with-dev ## run every benchmark
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script; done

sdks: ## try instrumentation with the newest SDKs, in an environment of its own (a package index; not run by CI)
	@$(PYTHON) -m venv .venv-sdks
	@.venv-sdks/bin/python -m pip install --quiet --editable '.[dev]'
	@.venv-sdks/bin/python -m pip install --quiet --upgrade $$(.venv-sdks/bin/python -c 'import tomllib; print(*(each.partition("==")[0] for each in tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["sdks"]))')
	@.venv-sdks/bin/python -m pip list --format=freeze | grep -iE '^(aiohttp|anthropic|boto3|cohere|google-genai|mistralai|openai)=='
	.venv-sdks/bin/python -m pytest tests/unit/instrumentation $(PYTEST_ARGS)

# Pip says, and may: tools of the extra dev want newer ones. OpenTelemetry's SDK is of the release of its API.
lowest: $(VENV)/.with-dev ## put the lowest versions that pyproject.toml allows into VENV, for `make test` (CI does in one of its own)
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c 'import re, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; extras = project["optional-dependencies"]; needs = [*project["dependencies"], *(need for extra in ("cli", "grpc", "metrics", "postgres", "server") for need in extras[extra]), *(need for need in extras["dev"] if need.startswith("opentelemetry-sdk"))]; print(*(re.sub(">=([^,]+).*", r"==\1", need) for need in needs))')

docs: $(VENV)/.with-docs ## build docs/ into build/docs, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

assets: $(BIN)/pip ## fetch what pages load from others (uPlot, Swagger UI), pinned and checked (wants npm)
	$(BIN)/python -m tools.assets

screenshots: $(VENV)/.with-dev $(VENV)/.with-browser assets ## take the pictures of the dashboard in docs/images (wants Chromium)
	$(BIN)/python -m tools.dashboard.screenshots

release-image: $(VENV)/.with-dev ## make today's protocol the one that breaking changes are measured against
	$(BIN)/python -m tools.proto release-image

clean: ## remove what make made, but not .venv
	rm -rf build dist htmlcov .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# The environment. Each extra has a stamp, so that pip runs again only when pyproject.toml changes.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "llm-cost-ops needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version 2>&1)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) has no working venv module (Debian: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.with-%: pyproject.toml | $(BIN)/pip
	@echo "Installing llm-cost-ops[$*] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
