"""Every option and its default value, once, with where the value comes from.

The options of `compress` are six dataclasses whose fields say what help, checks, config file and reference are made from; a new
one is one field here and one argument of `compress` and `batch`.

Sources are tagged: *paper* = AGMC, arXiv:2011.12641v1, section 4 unless said; *code* = the repository published with it
(`yusx-swapp/AGMC`, db1c632); *ours* = a choice or measurement of this project (`docs` and `tests/test_agmc.py`).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from agmc_onnx.errors import UsageError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its type and default; `option` puts it into a field's metadata.

    Attributes:
        help: What it does, for --help; the choices and the default are added.
        metavar: What stands for the value there.
        more: What else there is to know, for the reference: where the default comes from, what was measured.
        low, high: Bounds of a number; None: no bound.
        is_open: Whether the bounds themselves are no values.
        example: Of a value, for errors.
        wrong: What is said of a number outside of the bounds.
        choices: The allowed names; or the tables that they are the keys of, "module:TABLE", read when they are asked for.
        default_text: Said where the default depends on other options.
        is_common: Whether --help shows it; --help-all shows every one.
        extra: A text that is allowed beside numbers.
    """

    help: str
    metavar: str = ""
    more: str = ""
    low: float | None = None
    high: float | None = None
    is_open: bool = False
    example: str = ""
    wrong: str = "out of range"
    choices: tuple[str, ...] = ()
    default_text: str | None = None
    is_common: bool = False
    extra: str | None = None

    @property
    def expected(self) -> str:
        """What a value must be, such as "0 < R < 1, such as 0.5 to keep half"."""
        sign, letter, low = "<" if self.is_open else "<=", self.metavar or "N", f"{self.low or 0:g}"
        if self.high is not None:
            found = f"{low} {sign} {letter} < {self.high:g}"
        elif self.low is not None:
            found = f"more than {low}" if self.is_open else f"at least {low}"
        else:
            found = "a number"
        beside = f", or {self.extra}" if self.extra else ""
        return f"{found}{f', such as {self.example}' if self.example else ''}{beside}"

    def names(self) -> tuple[str, ...]:
        """Return the allowed names; empty where any will do."""
        found: list[str] = []
        for choice in self.choices:
            module, _, table = choice.partition(":")
            found += getattr(importlib.import_module(module), table) if table else [choice]
        return tuple(found)

    def check(self, name: str, value: Any, kind: type) -> None:
        """Raise for a value that the option cannot have.

        Args:
            name: Of the option, as a field.
            value: What was given; None is no value.
            kind: bool, int, float, str or tuple.

        Raises:
            UsageError: If it is of another kind, out of range, or no known name.
        """
        if value is None or (self.extra is not None and value == self.extra):
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is bool and not isinstance(value, bool):
            raise self._wrong(name, "not a switch's value", value, "true or false. Choose one")
        if kind is int and not (is_number and isinstance(value, int)):
            raise self._wrong(name, "not a whole number", value, self.expected)
        if kind is float and not is_number:
            raise self._wrong(name, "not a number", value, self.expected)
        if kind is str and not isinstance(value, str | PathLike):
            raise self._wrong(name, "not a text", value, "a name or a path")
        if kind is tuple and (isinstance(value, str) or not all(isinstance(item, str) for item in value)):
            raise self._wrong(name, "not a list of texts", value, "one text for each")
        if kind in (int, float) and not self._holds(value):
            raise self._wrong(name, self.wrong, value, self.expected)
        if self.choices and value not in (known := self.names()):
            text = f"one of {', '.join(known)}.{did_you_mean(value, known) or ' Choose one.'}"
            raise self._wrong(name, "unknown name", value, text.rstrip("."))

    def _holds(self, value: float) -> bool:
        low = self.low is None or (value > self.low if self.is_open else value >= self.low)
        return low and math.isfinite(value) and (self.high is None or value < self.high)

    def _wrong(self, name: str, what: str, value: Any, expected: str) -> UsageError:
        end = "" if expected.endswith("?") else "."
        return UsageError(f"{flag(name)}: {what}, got {value!r}; expected {expected}{end}")


def flag(name: str) -> str:
    """Return an option as it is typed: --latency-table of latency_table."""
    return f"--{name.replace('_', '-')}"


def option(default: Any, help: str, metavar: str = "", **facts: Any) -> Any:
    """Return a field with a default and what `Option` says of it."""
    return field(default=default, metadata={"option": Option(help, metavar, **facts)})


SHARE = {
    "low": 0,
    "high": 1,
    "is_open": True,
    "wrong": "the share to keep is out of range",
    "example": "0.5 to keep half",
}
AT_LEAST_1 = {"low": 1, "wrong": "too small"}
AT_LEAST_0 = {"low": 0, "wrong": "too small"}
BUDGETS = ("flops", "params")  # the fields that name a share of a cost
ONE_OF = (*BUDGETS, "latency", "max_drop")  # the fields of which exactly one is given


@dataclass(frozen=True)
class Budget:
    """What the result may cost, or lose: one of the first four."""

    flops: float | None = option(None, "keep at most this share of the MACs, 0 < R < 1", "R", is_common=True, **SHARE)
    params: float | None = option(
        None, "keep at most this share of the parameters, 0 < R < 1", "R", is_common=True, **SHARE
    )
    latency: float | None = option(
        None,
        "keep at most this share of the latency, 0 < R < 1, measured on this machine",
        "R",
        more="That of one inference of batch 1 with --threads, measured beside the original's.",
        is_common=True,
        **SHARE,
    )
    max_drop: float | None = option(
        None,
        "the smallest model that loses at most P points of the metric; needs --data",
        "P",
        is_common=True,
        low=0,
        high=100,
        is_open=True,
        example="1",
        wrong="the points to lose are out of range",
    )
    minimise: str = option("flops", "what --max-drop makes small", "NAME", choices=BUDGETS)
    latency_table: str | Path | None = option(
        None,
        "op times of another device for --latency; `agmc-onnx time-ops` makes them",
        "FILE",
        default_text="timed here",
        more="Ops that are timed here are timed once, and kept in the user's cache folder.",
    )
    stages: int = option(1, "steps in which the budget is reached, each recovered before the next", "N", **AT_LEAST_1)

    def check(self) -> None:
        """Raise unless exactly one budget is given."""
        given = [name for name in ONE_OF if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(
                f"budget: got {' and '.join(flag(name) for name in given) or 'none'}; expected exactly one of"
                " --flops R, --params R and --latency R, with 0 < R < 1, or --max-drop P. Say how much to keep, or to lose."
            )
        if self.latency_table is not None and self.latency is None:
            raise UsageError("--latency-table: got no --latency; expected the budget it is for. Add --latency R.")


@dataclass(frozen=True)
class Data:
    """How much of the data is used, and what candidates are judged by."""

    judge: str = option(
        "fidelity",
        "what a reward is made of",
        "NAME",
        choices=("fidelity", "metric"),
        more="fidelity: the closeness of a candidate's outputs to the original's (of class scores as soft probabilities),"
        " metric: the card's (paper). On few images closeness says far more than a count of right answers (ours). Finalists"
        " are chosen by it too.",
    )
    reward_samples: int = option(
        500,
        "samples every candidate is measured on, at most; the best ones on eight times as many",
        "N",
        more="Judged by fidelity, a candidate that is not behind the best so far is measured on more, up to eight times as"
        " many: among the best, 500 images tell nothing. Finalists are measured on those too.",
        **AT_LEAST_1,
    )
    racing: bool = option(
        False,
        "stop measuring a candidate that is clearly worse than the best so far",
        more="Image by image, after a quarter or half of them; its reward is then an estimate. Not the default: the refit"
        " takes as long as what it saves from.",
    )
    search_samples: int = option(128, "calibration samples a candidate is refitted with", "N", **AT_LEAST_1)
    input_shape: tuple[str, ...] = option(
        (),
        "sizes of an input's open dims, for cost, latency, memory and verification: NAME=1,3,224,224",
        "NAME=SIZES",
        default_text="the data's, else a guess that is printed",
        example="x=1,3,224,224",
        more="May be given once for each input; the name may be left out where there is one input. The batch counts as 1. A"
        " source that is imported is read at these sizes.",
    )

    def check(self) -> None:
        """Raise for what does not go together."""
        if self.racing and self.judge != "fidelity":
            raise UsageError(f"--racing: got --judge {self.judge}; expected fidelity, which is known image by image.")


@dataclass(frozen=True)
class Search:
    """What proposes candidates, how many, and what they may be."""

    policy: str = option(
        "agmc",
        "what decides how much of every group to keep",
        "NAME",
        choices=("agmc_onnx.policies:POLICIES", "agmc_onnx.policies:COMPOSED"),
        is_common=True,
    )
    episodes: int = option(
        100,
        "candidates evaluated; 0 searches nothing, the policy names the finalists",
        "N",
        is_common=True,
        more="The paper has 400; 100 find nearly as much here in a quarter of the time (ours).",
        **AT_LEAST_0,
    )
    reward: str = option(
        "err", "what the policy is rewarded for", "NAME", choices=("agmc_onnx.search.rewards:REWARDS",)
    )
    finalists: int = option(
        4,
        "best candidates recovered in full and measured on more samples at the end",
        "N",
        **AT_LEAST_1,
    )
    importance: str | None = option(
        None,
        "ranking of the channels of a group",
        "NAME",
        choices=("agmc_onnx.pruning.importance:IMPORTANCE", "agmc_onnx.pruning.importance:NEED_DATA"),
        default_text="moments with --data and depthwise convolutions, else l2",
        more="L2 is the published code's; moments, where candidates are refitted on data, is ours.",
    )
    round_to: int | str | None = option(
        None,
        "kept channels are a multiple of K where the group allows; auto: of what is fast here",
        "K",
        default_text="auto with --latency, else 4",
        extra="auto",
        more="auto: the channels that convolutions take at once on this machine, half or a quarter of them in small groups,"
        " at least 4 (ours: onnxruntime leaves its fast layout for widths that are no multiple of 4; 17 channels took 1.9"
        " times as long as 16, and 20 as long as 32). At half the MACs ResNet-20 keeps 87.6 % in fours, 83.4 % in"
        " whole blocks.",
        **AT_LEAST_1,
    )
    floor: float = option(
        0.2,
        "smallest share kept of any group, unless the budget needs less",
        "R",
        low=0,
        high=1,
        example="0.2",
        more="0.2 is the published code's a_max of 0.8.",
    )
    exclude: str | None = option(
        None,
        "groups that stay whole: names as inspect prints them, separated by commas, with * and ?, or residual for all that"
        " shortcuts join",
        "NAMES",
        default_text="none",
        more="Names of weights or nodes work too. `layer:NAME` says that a layer stays, while its widths may shrink.",
    )
    keep_layers: bool = option(
        False,
        "make layers narrower, but let none go",
        more="Layers stay, too, where there is no data. With --stages they go in the last one.",
    )
    batch: int | None = option(
        None,
        "candidates proposed before the first is learned from",
        "N",
        default_text="as many as --workers",
        more="The result depends on it, unlike on --workers.",
        **AT_LEAST_1,
    )

    def check(self) -> None:
        """Nothing here depends on something else."""

    @property
    def excluded(self) -> tuple[str, ...]:
        """Names of the groups that stay whole."""
        return tuple(name for text in (self.exclude or "").split(",") if (name := text.strip()))


@dataclass(frozen=True)
class Recovery:
    """How candidates and the result recover from the cut."""

    recover: str | None = option(
        None,
        "how candidates and the result recover from the cut",
        "NAME",
        choices=("none", "statistics", "compensate", "distill"),
        default_text="compensate with --data, else none",
        is_common=True,
        more="compensate: every candidate is refitted in closed form before it is measured, and the result with all"
        " calibration samples; distill: as that, and then the result learns from the original, without labels, on the card's"
        " [train] images or else the calibration role; statistics: only means and variances are put right; none: measured as"
        " cut.",
    )
    search_positions: int = option(4000, "output positions sampled per node for a candidate's refit", "N", **AT_LEAST_1)
    distill_steps: int = option(1000, "optimiser steps of --recover distill", "N", **AT_LEAST_1)

    def check(self) -> None:
        """Nothing here depends on something else."""

    @property
    def is_refit(self) -> bool:
        """Whether weights are refitted on data."""
        return self.recover != "none"


@dataclass(frozen=True)
class Sparsity:
    """Single weights that become zero; they keep their shapes."""

    sparsity: float | None = option(
        None,
        "share of the weights of dense layers that become zero",
        "R",
        default_text="none",
        low=0,
        high=1,
        is_open=True,
        example="0.3",
        wrong="the share of zeros is out of range",
    )
    sparse_pattern: str | None = option(
        None, "of M such weights in a row keep at most N; instead of --sparsity", "N:M", default_text="none"
    )
    sparse_method: str | None = option(
        None,
        "how they are chosen",
        "NAME",
        choices=("magnitude", "wanda", "obs"),
        default_text="obs, or magnitude without recovery",
    )
    sparse_layers: str = option(
        "dense", "which layers: fully connected ones, or convolutions too", "NAME", choices=("dense", "all")
    )
    sparse_decide: str = option(
        "uniform",
        "who divides the zeros among the layers",
        "NAME",
        choices=("uniform", "policy"),
        more="uniform: every layer has the same share of zeros; policy: the policy decides it layer by layer, in the same"
        " episode as the widths, such that --sparsity of all the layers' weights together are zero.",
    )
    sparse_storage: str = option(
        "dense",
        "dense, or as sparse_initializer where smaller",
        "NAME",
        choices=("dense", "smallest"),
        more="smallest is not the default, since onnx's own checker and most other runtimes refuse sparse_initializer, and a"
        " zip file makes up the difference.",
    )

    def check(self) -> None:
        """Raise for what does not go together."""
        if self.sparse_pattern is not None:
            n, m = pattern_of(self.sparse_pattern)
            if self.sparsity is not None:
                raise UsageError(
                    f"--sparsity: got {self.sparsity} beside --sparse-pattern {n}:{m}, which sets {1 - n / m:.3g} of the"
                    " weights to zero; expected one of the two. Leave one out."
                )
        if self.sparse_decide == "policy" and self.sparsity is None:
            raise UsageError(
                "--sparse-decide: got policy without --sparsity; expected a share to divide. Give --sparsity R."
            )

    @property
    def is_sparse(self) -> bool:
        """Whether single weights become zero."""
        return self.sparsity is not None or self.sparse_pattern is not None


@dataclass(frozen=True)
class Execution:
    """Where and how long a run runs, and what is random in it."""

    minutes: float | None = option(
        None,
        "the whole command takes so many minutes at most: the search ends in time, with the best by then",
        "M",
        default_text="none",
        is_common=True,
        low=0,
        is_open=True,
        wrong="too few",
        more="What comes behind the search is reckoned in, by what one candidate takes; at least one candidate is measured."
        " The same seed gives the same result only where as many candidates are evaluated.",
    )
    seed: int = option(
        0, "of every random choice; the same seed gives the same result", "S", is_common=True, **AT_LEAST_0
    )
    resume: bool = option(False, "go on with an interrupted run of the same output, model, data and options")
    workers: int = option(1, "processes that evaluate candidates side by side, with --threads each", "N", **AT_LEAST_1)
    ray: str | None = option(
        None,
        "Ray cluster where --workers run: local, auto, host:port or ray://host:port",
        "ADDRESS",
        default_text="none",
    )
    threads: int = option(1, "threads of onnxruntime, and of torch in a refit", "N", **AT_LEAST_1)
    provider: str = option("cpu", "where onnxruntime runs", "NAME", choices=("cpu", "cuda", "auto"))
    latency_seconds: float = option(5.0, "time given to measuring latency", "S", low=0, wrong="not a time", example="5")

    def check(self) -> None:
        """Nothing here depends on something else."""


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
        given.setdefault("round_to", 4 if given.get("latency") is None else "auto")  # in whole blocks where time counts
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


def pattern_of(text: str) -> tuple[int, int]:
    """Return (n, m) of a pattern "N:M".

    Raises:
        UsageError: If it is none.
    """
    n, _, m = text.partition(":")
    if not (n.isdecimal() and m.isdecimal() and 0 < int(n) < int(m)):
        raise UsageError(
            f"--sparse-pattern: not a pattern, got {text!r}; expected N:M with 0 < N < M, such as 2:4 to keep 2 of 4."
        )
    return int(n), int(m)
