"""The table of ops itself: no op twice, no name that another table does not have."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from agmc_onnx.motifs.level1 import EDGE_TYPES
from agmc_onnx.ops.table import MICROSOFT, TABLE, Op, register
from agmc_onnx.pruning.masked_norms import MASKS

LINEAR_IN = ("", "each", "any one", "first", "second")
PACKAGE = Path(__file__).resolve().parents[2] / "agmc_onnx"


def test_an_op_listed_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="Relu: listed twice"):
        register(Op("Relu"))


@pytest.mark.parametrize("op", TABLE.values(), ids=lambda op: f"{op.domain}.{op.op_type}")
def test_a_record_uses_known_names(op: Op) -> None:
    assert op.domain in ("", MICROSOFT) and op.op_type[0].isupper()
    assert op.edge is None or callable(op.edge) or op.edge in EDGE_TYPES
    assert (op.linear_in, op.channels, op.layout) in set(
        product(LINEAR_IN, ("", "first", "last"), ("", "blocked", "plain"))
    )
    assert op.statistics is None or op.statistics.masked in ("", *MASKS)
    assert not op.refit or (op.out_dim is not None and op.macs is not None and op.ties is not None)


@pytest.mark.parametrize(("op_type", "n_files"), [("Conv", 2), ("BatchNormalization", 2), ("GroupQueryAttention", 1)])
def test_an_op_is_named_in_its_family_alone(op_type: str, n_files: int) -> None:
    """Outside of what speaks to other formats and runtimes.

    distill/inserted.py makes a BatchNormalization, precision/int8.py tells onnxruntime what to quantise.
    """
    files = [path for path in PACKAGE.rglob("*.py") if not {"exchange", "torch_view"} & set(path.parts)]
    found = [path for path in files if f'"{op_type}"' in path.read_text(encoding="utf-8")]
    assert len(found) == n_files, [path.name for path in found]
