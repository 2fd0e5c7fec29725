"""The policies: what decides how much of every group to keep."""

from agmc_onnx.policies.table import COMPOSED, POLICIES, PolicyFactory, Row, make_policy
from agmc_onnx.search.policy import Policy

__all__ = ["COMPOSED", "POLICIES", "Policy", "PolicyFactory", "Row", "make_policy"]
