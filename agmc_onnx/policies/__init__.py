"""The policies: what decides how much of every group to keep."""

from agmc_onnx.policies.table import COMPOSED, POLICIES, PolicyFactory, Row, make_policy

__all__ = ["COMPOSED", "POLICIES", "PolicyFactory", "Row", "make_policy"]
