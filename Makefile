PYTHON ?= .venv/bin/python
BIN = $(dir $(PYTHON))

.PHONY: check lint test demo docs

check: lint test

lint:
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy

test:
	$(PYTHON) -m pytest

demo:
	$(BIN)agmc-onnx demo

docs:
	$(BIN)sphinx-build -W --keep-going -q -b html docs docs/_build
