"""The agreement of outputs of which no graph is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agmc_onnx.measuring.agreeing import agreement
from agmc_onnx.measuring.outputs import answers_by_shape


def agree(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    answers = answers_by_shape(theirs)
    return agreement(
        answers, [a.seen(ours) for a in answers if a.at[-1] < len(ours)], [a.seen(theirs) for a in answers]
    )[1]
