# make demo        install, train four hospitals' private model, say where the report is
# make test        install with test extras, then lint, types, import contracts, tests
# make test-slow   the tests that take more than half a minute
# make bench       every benchmark
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= fedward-run

.PHONY: demo test test-slow bench clean wire

demo: $(VENV)/installed
	$(BIN)/fedward simulate breast --force --out $(OUT)

test: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

test-slow: $(VENV)/installed-test
	$(BIN)/pytest -m slow --timeout 1800

bench: $(VENV)/installed-test
	$(BIN)/fedward bench simulation
	$(BIN)/fedward bench dp
	$(BIN)/fedward bench accuracy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Fedward needs Python 3.11 or newer; name one with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	@echo "installing (PyTorch is large; some minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@

wire: ## generate common/wire_pb2.py and client/agent_service_pb2.py; needs grpcio-tools 1.81
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. common/wire.proto client/agent_service.proto

clean:
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
