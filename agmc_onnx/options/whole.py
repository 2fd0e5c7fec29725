"""All options of `compress`: found by name, checked together, handed on part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from os import PathLike
from typing import Any, ParamSpec, TypeVar

from agmc_onnx.errors import UsageError, did_you_mean
from agmc_onnx.options.budget import Budget
from agmc_onnx.options.data import Data
from agmc_onnx.options.execution import Execution
from agmc_onnx.options.fields import Option
from agmc_onnx.options.recovery import Recovery
from agmc_onnx.options.search import Search
from agmc_onnx.options.sparsity import Sparsity

P = ParamSpec("P")
R = TypeVar("R")

PARTS: dict[str, type] = {
    "budget": Budget,
    "data": Data,
    "search": Search,
    "recovery": Recovery,
    "sparsity": Sparsity,
    "execution": Execution,
}


@dataclass(frozen=True)
class Known:
    """An option of `compress`.

    Attributes:
        name: Of the field; as a flag with dashes.
        part: Key of `PARTS`.
        kind: bool, int, float, str or tuple.
        default: Its value where nothing is given.
        says: What its metadata say.
    """

    name: str
    part: str
    kind: type
    default: Any
    says: Option


@cache
def known_options() -> dict[str, Known]:
    """Return every option of `compress` by its name, part by part."""
    found = {}
    for part, kind in PARTS.items():
        for one in fields(kind):
            names = {name.strip() for name in str(one.type).partition("[")[0].split("|")}
            of = next(k for k in (bool, int, float, tuple, str) if k.__name__ in names)
            found[one.name] = Known(one.name, part, of, one.default, one.metadata["option"])
    return found


@dataclass(frozen=True)
class CompressOptions:
    """Options of the main job in six parts; a stage takes the parts that it needs, not all of it."""

    budget: Budget
    data: Data
    search: Search
    recovery: Recovery
    sparsity: Sparsity
    execution: Execution

    @classmethod
    def of(cls, **options: Any) -> CompressOptions:
        """Return checked options.

        Args:
            options: Fields of the six parts.

        Raises:
            UsageError: If a name is unknown, a value is out of range, or not exactly one budget is given.
        """
        known = known_options()
        for name, value in options.items():
            if name not in known:
                raise UsageError(
                    f"options: unknown name, got {name!r}; expected one of {', '.join(sorted(known))}."
                    f"{did_you_mean(name, known)}"
                )
            known[name].says.check(name, value, known[name].kind)
        given = {name: str(v) if isinstance(v, PathLike) else v for name, v in options.items() if v is not None}
        is_timed = given.get("latency") is not None or (given.get("max_drop") and given.get("minimise") == "latency")
        given.setdefault("round_to", "auto" if is_timed else 4)  # in whole blocks where time counts
        given.setdefault("batch", given.get("workers", Execution.workers))
        parts = {
            part: kind(**{name: value for name, value in given.items() if known[name].part == part})
            for part, kind in PARTS.items()
        }
        for part in parts.values():
            part.check()
        made = cls(**parts)
        made._check()
        return made

    def _check(self) -> None:
        """Raise for options of two parts that do not go together."""
        stages, recover, sparse = self.budget.stages, self.recovery.recover, self.sparsity
        if sparse.sparse_decide == "policy" and stages > 1:
            raise UsageError(f"--sparse-decide: got policy beside --stages {stages}; expected uniform there.")
        self._check_precision()
        if sparse.is_sparse and recover == "statistics":
            raise UsageError(
                "--sparsity: got --recover statistics, which has no second moments to choose weights by; expected compensate,"
                " distill or none. Change --recover."
            )
        if recover == "none" and sparse.sparse_method not in (None, "magnitude"):
            raise UsageError(
                f"--sparse-method: {sparse.sparse_method} looks at activations, got --recover none; expected --recover"
                " compensate or distill. Or use --sparse-method magnitude."
            )
        if stages > 1 and (self.budget.max_drop is not None or recover == "none"):
            beside = "--max-drop" if self.budget.max_drop is not None else "--recover none, which hands nothing on"
            raise UsageError(f"--stages: got {stages} beside {beside}; expected 1 there. Leave out --stages.")

    def _check_precision(self) -> None:
        """Raise for a precision that gains nothing, or does not go with something else."""
        precision, provider = self.sparsity.precision, self.execution.provider
        if precision in ("fp16", "bf16"):
            if precision == "bf16":
                why = "gains nothing: onnxruntime has no bfloat16 kernels for convolutions"
            elif provider == "cpu":
                why = "gains nothing: onnxruntime computes float16 as float on provider cpu"
            else:
                why = f"is not searched with on provider {provider}, where it rounds all candidates alike"
            raise UsageError(
                f"--precision: {precision} {why}; expected float or int8 here. Compress in float, then `agmc-onnx export --to"
                f" {precision}`, which halves the file."
            )
        if precision == "mixed" and provider == "cuda":
            raise UsageError(
                "--precision: mixed is decided by times of kernels on provider cpu, got cuda; expected int8 there, or --provider"
                " cpu. Change one."
            )
        if precision != "float" and (self.sparsity.is_sparse or self.budget.stages > 1):
            beside = f"--stages {self.budget.stages}" if self.budget.stages > 1 else "zeros among weights"
            raise UsageError(f"--precision: got {precision} beside {beside}; expected float there. Leave one out.")

    def but(self, **options: Any) -> CompressOptions:
        """Return the options with some of them changed, unchecked."""
        known = known_options()
        return replace(
            self,
            **{
                part: replace(
                    getattr(self, part), **{name: value for name, value in options.items() if known[name].part == part}
                )
                for part in {known[name].part for name in options}
            },
        )

    def flat(self) -> dict[str, Any]:
        """Return every option with its value, by name."""
        return {name: getattr(getattr(self, one.part), name) for name, one in known_options().items()}

    def with_data(self, is_given: bool) -> CompressOptions:
        """Return the options with what depends on data filled in.

        Args:
            is_given: Whether there are samples to refit on, real ones or what a network's stored statistics replace them by.
        """
        return self if self.recovery.recover is not None else self.but(recover="compensate" if is_given else "none")


def options_in(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options among the arguments of a call that are not the defaults."""
    known = known_options()
    return {name: arguments[name] for name, one in known.items() if arguments[name] != one.default}


def documented(function: Callable[P, R]) -> Callable[P, R]:
    """Add every option to a function's docstring, where its arguments are told."""
    lines = []
    for one in known_options().values():
        choices = f": {', '.join(one.says.choices)}" if one.says.choices else ""
        lines.append(f"        {one.name}: {one.says.help[0].upper()}{one.says.help[1:]}{choices}.\n")
    text = function.__doc__ or ""
    end = text.index("\n\n    Returns:" if "    Returns:" in text else "\n\n    Raises:")
    function.__doc__ = f"{text[:end]}\n{''.join(lines).rstrip()}{text[end:]}"
    return function
