"""Compress the digits example to 30 % of its MACs, and print what came of it."""

from pathlib import Path

import agmc_onnx

MODEL = Path(__file__).parents[1] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"

if __name__ == "__main__":
    result = agmc_onnx.compress(MODEL, flops=0.3, data="digits", output="digits_small.onnx", episodes=10)
    before, after = result.report["original"], result.report["compressed"]
    print(f"MACs {before['macs']:,} -> {after['macs']:,}")
    print(f"{after['metric']['name']} {before['metric']['value']:.2f} -> {after['metric']['value']:.2f} %")
    print(f"differs from the masked original by at most {result.verification.max_abs_diff:.1e}")
    print("open digits_small.report.html in a browser")
