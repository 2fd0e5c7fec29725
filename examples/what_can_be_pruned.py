"""Say which channels of a model live and die together, what stays whole and why, and which motifs repeat."""

import sys
from pathlib import Path

import agmc_onnx
from agmc_onnx.run.analysis import analyse_model

MODEL = Path(__file__).parents[1] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"

if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else MODEL
    found = agmc_onnx.inspect(path)
    print(f"{found['macs']:,} MACs, {100 * found['prunable']['macs']:.0f} % of them can shrink")
    for group in found["groups"]:
        print(f"  {group['name']}: {group['units']} units, in steps of {group['step']}")
    for group in found["frozen"]:
        print(f"  {group['name']} stays whole: {group['why']}")
    for motif in found["motifs"]:
        print(f"  {motif}")

    channels = analyse_model(path).channels
    first = channels.groups[0]
    axes = [axis for axis, entries in channels.axes.items() if set(entries.units.ravel()) & set(first.units)]
    print(f"{first.name} lives on {len(axes)} axes, among them {axes[:3]}")
