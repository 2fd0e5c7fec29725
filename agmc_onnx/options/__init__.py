"""Every option and its default value, once, with where the value comes from.

The options of `compress` are six dataclasses whose fields say what help, checks, config file and reference are made from; a new
one is one field here and one argument of `compress` and `batch`.

Sources are tagged: *paper* = AGMC, arXiv:2011.12641v1, section 4 unless said; *code* = the repository published with it
(`yusx-swapp/AGMC`, db1c632); *ours* = a choice or measurement of this project (`docs` and `tests/test_agmc.py`).
"""

from __future__ import annotations

from agmc_onnx.options.budget import BUDGETS, ONE_OF, Budget
from agmc_onnx.options.data import Data
from agmc_onnx.options.execution import Execution
from agmc_onnx.options.fields import Option, flag, option
from agmc_onnx.options.recovery import Recovery
from agmc_onnx.options.search import Search
from agmc_onnx.options.sparsity import Sparsity, pattern_of
from agmc_onnx.options.whole import PARTS, CompressOptions, Known, documented, known_options, options_in

__all__ = [
    "BUDGETS", "ONE_OF", "PARTS", "Budget", "CompressOptions", "Data", "Execution", "Known", "Option", "Recovery", "Search",
    "Sparsity", "documented", "flag", "known_options", "option", "options_in", "pattern_of",
]  # fmt: skip
