"""agmc-onnx: compress any ONNX model to an exact budget by channel pruning with a learned graph policy.

The verbs of the command line under their own names: `compress`, `inspect`, `apply`, `verify`, `measure`, `finetune`,
`export`, `batch`, `report`, `doctor`, `frontier`; `import` is `import_`, `time-ops` is `time_ops`. Nothing heavy is imported
before one of them is used. `docs/stability.md` says what stays as it is.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from agmc_onnx import _moved
from agmc_onnx.errors import (
    AgmcError,
    BudgetError,
    DataError,
    ModelError,
    PlanError,
    UsageError,
    VerificationError,
    told_in_python,
)

if TYPE_CHECKING:
    from agmc_onnx.options import CompressOptions
    from agmc_onnx.pruning.verification import Verification
    from agmc_onnx.reporting.frontier import Frontier
    from agmc_onnx.reporting.schema import Report
    from agmc_onnx.verbs.apply import Applied, apply
    from agmc_onnx.verbs.batch import batch
    from agmc_onnx.verbs.batch import batch as compress_folder
    from agmc_onnx.verbs.card import card
    from agmc_onnx.verbs.compress import Result, compress
    from agmc_onnx.verbs.demo import demo
    from agmc_onnx.verbs.doctor import doctor
    from agmc_onnx.verbs.export import export
    from agmc_onnx.verbs.finetune import finetune
    from agmc_onnx.verbs.frontier import frontier
    from agmc_onnx.verbs.import_ import Imported, import_
    from agmc_onnx.verbs.import_ import import_ as import_model
    from agmc_onnx.verbs.inspect import inspect
    from agmc_onnx.verbs.measure import measure
    from agmc_onnx.verbs.report import report
    from agmc_onnx.verbs.report import report as write_report
    from agmc_onnx.verbs.time_ops import time_ops
    from agmc_onnx.verbs.torch_module import from_torch, to_torch
    from agmc_onnx.verbs.verify import verify

__version__ = "0.1.0"

__all__ = [
    "AgmcError", "Applied", "BudgetError", "CompressOptions", "DataError", "Frontier", "Imported", "ModelError", "PlanError",
    "Report", "Result", "UsageError", "Verification", "VerificationError", "apply", "batch", "card", "compress",
    "compress_folder", "demo", "doctor", "export", "finetune", "from_torch", "frontier", "import_", "import_model", "inspect",
    "measure", "report", "time_ops", "to_torch", "verify", "write_report",
]  # fmt: skip

_HOMES = {
    "CompressOptions": ("agmc_onnx.options", "CompressOptions"),
    "Result": ("agmc_onnx.verbs.compress", "Result"),
    "Report": ("agmc_onnx.reporting.schema", "Report"),
    "Applied": ("agmc_onnx.verbs.apply", "Applied"),
    "Verification": ("agmc_onnx.pruning.verification", "Verification"),
    "Imported": ("agmc_onnx.verbs.import_", "Imported"),
    "import_": ("agmc_onnx.verbs.import_", "import_"),
    "export": ("agmc_onnx.verbs.export", "export"),
    "finetune": ("agmc_onnx.verbs.finetune", "finetune"),
    "apply": ("agmc_onnx.verbs.apply", "apply"),
    "compress": ("agmc_onnx.verbs.compress", "compress"),
    "card": ("agmc_onnx.verbs.card", "card"),
    "batch": ("agmc_onnx.verbs.batch", "batch"),
    "frontier": ("agmc_onnx.verbs.frontier", "frontier"),
    "Frontier": ("agmc_onnx.reporting.frontier", "Frontier"),
    "inspect": ("agmc_onnx.verbs.inspect", "inspect"),
    "measure": ("agmc_onnx.verbs.measure", "measure"),
    "verify": ("agmc_onnx.verbs.verify", "verify"),
    "demo": ("agmc_onnx.verbs.demo", "demo"),
    "doctor": ("agmc_onnx.verbs.doctor", "doctor"),
    "report": ("agmc_onnx.verbs.report", "report"),
    "time_ops": ("agmc_onnx.verbs.time_ops", "time_ops"),
    "to_torch": ("agmc_onnx.verbs.torch_module", "to_torch"),
    "from_torch": ("agmc_onnx.verbs.torch_module", "from_torch"),
}
_OLD = {"compress_folder": "batch", "import_model": "import_", "write_report": "report"}

_moved.install()
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.29 and later send, and write into the home folder


def __getattr__(name: str) -> Any:
    if name in _OLD:
        warnings.warn(f"agmc_onnx.{name} is now {_OLD[name]}; the old name goes in version 0.3", DeprecationWarning, 2)
        return getattr(sys.modules[__name__], _OLD[name])
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    if not isinstance(value, type):  # a verb
        value = told_in_python(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_OLD])
