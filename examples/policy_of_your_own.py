"""Add a policy: one that keeps more of narrow groups. It runs under the same budget, recovery and checks as all others."""

from pathlib import Path

import numpy as np

import agmc_onnx
from agmc_onnx.policies import POLICIES, Row

MODEL = Path(__file__).parents[1] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"


class Narrow:
    """Proposes once, and does not learn."""

    n_episodes = 1

    def __init__(self, problem, options, rng):
        self.n_units = problem.n_units

    def propose(self, rng):
        """Return a keep ratio for every group; the budget is met afterwards, whatever is proposed."""
        return np.clip((self.n_units.min() / self.n_units) ** 0.25, 0.05, 1.0)

    def observe(self, keep_ratio, reward, outcome):
        """Take the outcome of the proposal."""


if __name__ == "__main__":
    POLICIES.add("narrow", Row(Narrow))
    for name in ("narrow", "uniform"):
        options = {"policy": name, "latency_seconds": 0.2}
        report = agmc_onnx.compress(MODEL, flops=0.2, data="digits", **options).report
        print(
            f"{name}: top-1 {report['compressed']['metric']['value']:.2f} % with {report['target']['reached']:.3f} of the work"
        )
