# make run   set up everything and run the whole recipe (about 20 minutes after set-up on two cores)
# make test  set up what is missing and pass the tests
# Both start at once the second time. PIP_FLAGS goes to pip, for example an --extra-index-url with CPU builds of torch.

PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
PIP_FLAGS ?=

BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: run test kill-test browser-test lint wheel clean distclean

run: $(VENV)/.installed
	$(BIN)/llama2lab run --preset mini --seed $(SEED)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow and not browser"

# kill -9 at ten random moments of a run and 200 of an annotation store, 30 annotators at once (several minutes)
kill-test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

# real JupyterLab and Voila in headless chromium (apt-get install chromium)
browser-test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m browser

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check llama2lab tests
	$(BIN)/python -m mypy

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .

# pip reads this machine's own settings; a CPU build of torch that they offer is taken. Installing needs no more
# than what pyproject.toml says, so the stamps depend on nothing else.
$(VENV)/.installed: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	  f"error: Python {v[0]}.{v[1]} is too old; llama2lab needs 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# what is built, but not what was trained
clean:
	rm -rf dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find llama2lab tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
