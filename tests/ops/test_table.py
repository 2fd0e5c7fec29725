"""The table of ops itself: no op twice, no name that another table does not have."""

from __future__ import annotations

import pytest

from agmc_onnx.motifs.level1 import EDGE_TYPES
from agmc_onnx.ops.table import MICROSOFT, TABLE, Op, table
from agmc_onnx.pruning.masked_norms import MASKS


def test_an_op_listed_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="Relu: listed twice"):
        table(Op("Relu"))


@pytest.mark.parametrize("op", TABLE.values(), ids=lambda op: f"{op.domain}.{op.op_type}")
def test_a_record_uses_known_names(op: Op) -> None:
    assert op.domain in ("", MICROSOFT) and op.op_type[0].isupper()
    assert op.edge is None or callable(op.edge) or op.edge in EDGE_TYPES
    assert op.statistics is None or op.statistics.masked in ("", *MASKS)
    assert not op.refit or (op.out_dim is not None and op.macs is not None and op.ties is not None)
