# Two commands matter: `make demo` and `make test`. Both make their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo

.PHONY: demo test check lint types imports unit test-slow test-tools test-gpu bench policies findings \
	schema format clean

demo: $(STAMP)
	$(BIN)/dbt init $(DEMO) --example fox --force
	$(BIN)/dbt run $(DEMO)/job.yaml
	@echo
	$(BIN)/dbt report $(DEMO)/job.yaml

test: lint types imports unit

# The fast loop: make check FILE=src/dreambooth/jobs/wording.py
check: $(STAMP)
	$(BIN)/ruff check $(FILE)
	$(BIN)/ruff format --check $(FILE)
	$(BIN)/mypy
	tests="$$($(BIN)/python tests/mirrored.py $(FILE))"; \
		test -z "$$tests" || $(BIN)/python -m pytest -q -n 0 $$tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

# One process a core: the tests' networks are tiny and use one thread each.
unit: $(STAMP)
	$(BIN)/python -m pytest -q -n auto

# What takes minutes, or a part of it: make test-slow SHARD=1/4
test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow $(if $(SHARD),--shard $(SHARD))

# Tests that drive a browser, Node or PostgreSQL. Installs none of them, and fails where one is missing.
test-tools: $(STAMP)
	$(BIN)/python -m pytest -q -n 0 --tools -m 'browser or node or postgresql'

# On a machine with a card and a torch of its own, which is used as it is (PYTHON may itself be of an
# environment: its packages are seen); other libraries come from the index, or from a folder:
# make test-gpu WHEELS=folder. PEER=folder compares with scripts.
GPU_VENV := .venv-gpu
test-gpu:
	test -d $(GPU_VENV) || $(PYTHON) -m venv $(GPU_VENV)
	$(PYTHON) -c 'import site; print(*site.getsitepackages(), sep="\n")' \
		> $$($(GPU_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/parent.pth
	$(GPU_VENV)/bin/python -c 'import torch'
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		$(if $(WHEELS),--no-index --find-links $(WHEELS)) hatchling editables pytest hypothesis
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		$(if $(WHEELS),--no-index --find-links $(WHEELS)) --no-build-isolation -e .
	$(if $(PEER),PEER=$(abspath $(PEER))) $(GPU_VENV)/bin/python -m pytest -q -m gpu -W default $(GPU_TESTS) tests/gpu

# SIZE=small|sd15|sdxl; PEER=folder of diffusers' examples/dreambooth, to compare with its scripts.
SIZE ?= small
bench: $(STAMP)
	$(BIN)/python tests/bench/bench.py --size $(SIZE) $(if $(PEER),--peer-script $(PEER))

# What each freezing policy costs and gives on the embedded base: one markdown table.
policies: $(STAMP)
	$(BIN)/python tests/bench/policies.py

# Whether findings name runs that were spoilt on purpose, and leave good ones alone; goes on where it
# was cut. DREAMBENCH=folder adds photographed subjects.
WORK ?= findings
findings: $(STAMP)
	$(if $(DREAMBENCH),DREAMBENCH=$(abspath $(DREAMBENCH))) $(BIN)/python tests/bench/findings.py $(WORK)

schema: $(STAMP)
	$(BIN)/dbt schema --output schemas/job.schema.json
	$(BIN)/dbt schema --prompts --output schemas/prompts.schema.json
	$(BIN)/dbt schema --of sweep --output schemas/sweep.schema.json

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
		-c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(GPU_VENV) $(DEMO)
