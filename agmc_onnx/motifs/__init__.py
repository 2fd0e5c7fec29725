"""The two-level hierarchical graph of a network: feature maps, typed ops, and motifs as the edges of level 2."""

from agmc_onnx.motifs.encoding import ChannelView, HierarchyArrays, arrays, channel_view
from agmc_onnx.motifs.level1 import EDGE_TYPES, SINK, SOURCE, feature_graph
from agmc_onnx.motifs.motifs import Hierarchy, Motif, build, describe, flatten
from agmc_onnx.motifs.regions import canonical_key

__all__ = [
    "EDGE_TYPES", "SINK", "SOURCE", "ChannelView", "Hierarchy", "HierarchyArrays", "Motif", "arrays", "build",
    "canonical_key", "channel_view", "describe", "feature_graph", "flatten",
]  # fmt: skip
