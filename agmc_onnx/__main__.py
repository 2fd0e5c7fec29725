"""`python -m agmc_onnx`, the same as the console script."""

from agmc_onnx.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
