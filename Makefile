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
	$(BIN)agmc-onnx compress agmc_onnx/data/digits/digits_resnet.onnx --flops 0.3 --data digits -o digits_small.onnx

docs:
	$(BIN)sphinx-build -W --keep-going -q -b html docs docs/_build
