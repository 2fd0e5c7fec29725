"""Compress one model to several budgets with the quick handcrafted policy, and compare the runs on one page."""

from pathlib import Path

import agmc_onnx

MODEL = Path(__file__).parents[1] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"

if __name__ == "__main__":
    outputs = []
    for keep in (0.6, 0.3, 0.15):
        output = f"digits_{round(100 * keep)}.onnx"
        options = {"policy": "greedy", "latency_seconds": 0.5}
        report = agmc_onnx.compress(MODEL, flops=keep, data="digits", output=output, **options).report
        metric = report["compressed"]["metric"]
        print(f"keep {keep:.2f}: {report['compressed']['macs']:,} MACs, top-1 {metric['value']:.2f} %")
        outputs.append(output)
    print(f"wrote {agmc_onnx.report(*outputs, output='budgets.html')}")
