"""agmc-onnx: compress any ONNX model to an exact budget by channel pruning with a learned graph policy.

The verbs of the command line under their own names: `compress`, `inspect`, `apply`, `verify`, `measure`, `finetune`,
`export`, `doctor`; `import` is `import_model`, `batch` `compress_folder`, and `report` `write_report`. Nothing heavy is imported
before one of them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from agmc_onnx.errors import AgmcError, BudgetError, DataError, ModelError, PlanError, UsageError, VerificationError

if TYPE_CHECKING:
    from agmc_onnx.config import CompressOptions
    from agmc_onnx.diagnosis import doctor
    from agmc_onnx.exchange.exporters.exporting import export
    from agmc_onnx.exchange.importers.importing import Imported, import_model
    from agmc_onnx.finetuning import finetune
    from agmc_onnx.folder import compress_folder
    from agmc_onnx.inspection import inspect, measure
    from agmc_onnx.pipeline import Result, apply, compress
    from agmc_onnx.pipeline import verify_files as verify
    from agmc_onnx.report.pages import write_report
    from agmc_onnx.verification import Verification

__version__ = "0.1.0"

__all__ = [
    "AgmcError", "BudgetError", "CompressOptions", "DataError", "Imported", "ModelError", "PlanError", "Result", "UsageError",
    "Verification", "VerificationError", "apply", "compress", "compress_folder", "doctor", "export", "finetune",
    "import_model", "inspect", "measure", "verify", "write_report",
]  # fmt: skip

_HOMES = {
    "CompressOptions": ("agmc_onnx.config", "CompressOptions"),
    "Result": ("agmc_onnx.pipeline", "Result"),
    "Verification": ("agmc_onnx.verification", "Verification"),
    "Imported": ("agmc_onnx.exchange.importers.importing", "Imported"),
    "import_model": ("agmc_onnx.exchange.importers.importing", "import_model"),
    "export": ("agmc_onnx.exchange.exporters.exporting", "export"),
    "finetune": ("agmc_onnx.finetuning", "finetune"),
    "apply": ("agmc_onnx.pipeline", "apply"),
    "compress": ("agmc_onnx.pipeline", "compress"),
    "compress_folder": ("agmc_onnx.folder", "compress_folder"),
    "inspect": ("agmc_onnx.inspection", "inspect"),
    "measure": ("agmc_onnx.inspection", "measure"),
    "verify": ("agmc_onnx.pipeline", "verify_files"),
    "doctor": ("agmc_onnx.diagnosis", "doctor"),
    "write_report": ("agmc_onnx.report.pages", "write_report"),
}

def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
