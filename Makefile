# Both `make demo` and `make test` set themselves up: they need Python >= 3.11, make and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench docs clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "teas needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/ready  ## adapt a spiking network to real data, and write a report page
	$(BIN)/teas demo --out runs/demo

test: $(VENV)/ready  ## every test; those on MNIST need it in data/
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/ready  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

PEERS := --contender spikingjelly_multistep --contender spikingjelly --contender snntorch --contender sinabs --contender norse --contender norse_compiled
WEIGHTS ?=  # e.g. make bench WEIGHTS='--weights data/resnet20-12fca82f.th'; random without

bench: $(VENV)/ready  ## ratios of time and memory: our engines beside other libraries and the ANN, and a training step
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/teas bench --network resnet20 --window 8 --window 45 --seconds 2 $(WEIGHTS) $(PEERS) --contender ann --contender ann_int8 \
	  --contender count_int8 --contender count --contender event --contender event_first --contender event_even --picture runs/bench.png
	$(BIN)/teas bench --network resnet20 --window 8 --window 256 --seconds 2 $(WEIGHTS) --contender ann --contender count --contender event --contender event_first
	$(BIN)/teas bench --network vgg16 --window 45 --seconds 2 --contender norse --contender norse_compiled --contender spikingjelly --contender spikingjelly_multistep --contender ann --contender count_int8
	$(BIN)/teas bench --network resnet20 --window 8 --seconds 12 --contender train_spikingjelly_multistep --contender train_teas
	$(BIN)/python benchmarks/training_step.py

docs: $(VENV)/ready  ## the documentation, into site/; any broken link or reference is an error, which --quiet would hide
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
