PYTHON ?= .venv/bin/python
BIN = $(dir $(PYTHON))

.PHONY: check lint test demo

check: lint test

lint:
	$(BIN)ruff check .
	$(BIN)mypy

test:
	$(PYTHON) -m pytest

demo:
	$(BIN)agmc-onnx compress models/digits/digits_resnet.onnx --flops 0.3 --data digits -o digits_small.onnx
