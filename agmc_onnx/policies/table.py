"""The policies, a row each: what decides how much of every group to keep.

torch is imported by the rows that need it only, and only when one is made; numpy is not imported here either.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from agmc_onnx.errors import UsageError

if TYPE_CHECKING:  # --help reads the names of this table
    import numpy as np

    from agmc_onnx.arrays import FloatArray
    from agmc_onnx.search.options import SearchOptions
    from agmc_onnx.search.policy import Policy
    from agmc_onnx.search.problem import Outcome, Problem

PolicyFactory: TypeAlias = "Callable[[Problem, SearchOptions, np.random.Generator], Policy]"
EXTRAS = {"optuna": "search", "cmaes": "search"}  # the extra that brings a package a row may need


@dataclass(frozen=True)
class Row:
    """A policy.

    Attributes:
        make: Makes it of (problem, options, rng): a function or class, or where it is, "module:name", so that nothing is imported
            before it is wanted.
        inside: What makes the policy that the guide is put round; default: `make`.
        guided: Whether the plain name means `Guided` round it, our guide (`policies.guide.guided`); else the policy alone.
        options: Where its own options' class is, "module:name"; "" for a policy without any. `inside_options`: of `inside`.
        inside_options: See `options`.
        batches: Whether `observe` needs no more than its arguments: it may propose again before it observes.
        few: Whether it proposes a handful of candidates and learns nothing: quick enough to be asked again and again.
        needs: Packages that not every installation has, or that are slow to import.
    """

    make: str | PolicyFactory
    inside: str | PolicyFactory = ""
    guided: bool = False
    options: str = ""
    inside_options: str = ""
    batches: bool = False
    few: bool = False
    needs: tuple[str, ...] = ()

    @property
    def uses_torch(self) -> bool:
        """Whether torch is imported for it."""
        return self.guided or "torch" in self.needs


class Table(dict[str, Row]):
    """Rows by name. `bare:NAME` is the same row without the guide, and `guided:NAME` with it."""

    def add(self, name: str, row: Row) -> None:
        """Add a row.

        Raises:
            UsageError: If the name is taken.
        """
        if dict.__contains__(self, name):
            raise UsageError(f"policies: a name listed twice, got {name!r}; expected another. Rename one.")
        self[name] = row

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and dict.__contains__(self, _parts(name)[1])

    def __missing__(self, name: str) -> Row:
        form, plain = _parts(name)
        if not form or not dict.__contains__(self, plain):
            raise UsageError(
                f"policy: unknown name, got {name!r}; expected one of {', '.join(self)}, also with bare: or guided: before"
                " it, without our guide round it or with it."
            )
        return replace(self[plain], guided=form == "guided")


def _parts(name: str) -> tuple[str, str]:
    """Return the form that a name asks for, "" if none, and the plain name."""
    form, _, plain = name.rpartition(":")
    return (form, plain) if form in ("bare", "guided") else ("", name)


POLICIES = Table()


class Composed(Iterable[str]):
    """Every row's other form: without the guide where the plain name is guided, with it where it is not."""

    def __iter__(self) -> Iterator[str]:
        return (f"{'bare' if row.guided else 'guided'}:{name}" for name, row in POLICIES.items())


COMPOSED = Composed()

AGMC, INFORMED = "agmc_onnx.policies.agmc", "agmc_onnx.policies.guide.informed"
POLICIES.add(
    "agmc",
    Row(
        f"{AGMC}.policy:AgmcPolicy",
        f"{INFORMED}:InformedAgmc",
        guided=True,
        options=f"{AGMC}.options:AgmcOptions",
        inside_options=f"{INFORMED}:InformedAgmcOptions",
        batches=True,
        needs=("torch",),
    ),
)
POLICIES.add("uniform", Row("agmc_onnx.policies.handcrafted:uniform", batches=True, few=True))
POLICIES.add("shallow", Row("agmc_onnx.policies.handcrafted:shallow", batches=True, few=True))
POLICIES.add("deep", Row("agmc_onnx.policies.handcrafted:deep", batches=True, few=True))
POLICIES.add("random", Row("agmc_onnx.policies.handcrafted:random", batches=True))
POLICIES.add("greedy", Row("agmc_onnx.policies.greedy:greedy_policy", batches=True, few=True, needs=("torch",)))
POLICIES.add("solver", Row("agmc_onnx.policies.solver:SolverPolicy", batches=True, few=True))
POLICIES.add(
    "amc",
    Row(
        "agmc_onnx.policies.amc:AmcPolicy",
        f"{INFORMED}:InformedAmc",
        guided=True,
        options=f"{AGMC}.options:DdpgOptions",
        inside_options=f"{INFORMED}:InformedOptions",
        batches=True,
        needs=("torch",),
    ),
)
GNN_RL, GNN_RL_OPTIONS = (
    "agmc_onnx.policies.gnn_rl.policy:GnnRlPolicy",
    "agmc_onnx.policies.gnn_rl.options:GnnRlOptions",
)
POLICIES.add(
    "gnn-rl", Row(GNN_RL, guided=True, options=GNN_RL_OPTIONS, inside_options=GNN_RL_OPTIONS, needs=("torch",))
)
POLICIES.add("global", Row("agmc_onnx.policies.blackbox:global_ranking", batches=True, few=True))
POLICIES.add("sensitivity", Row("agmc_onnx.policies.blackbox:sensitivity", few=True, needs=("torch",)))
POLICIES.add("evopress", Row("agmc_onnx.policies.evopress:EvoPressPolicy", batches=True))
POLICIES.add("local", Row("agmc_onnx.policies.blackbox:local", guided=True, batches=True))
POLICIES.add("tpe", Row("agmc_onnx.policies.blackbox:tpe", guided=True, needs=("optuna",)))
POLICIES.add("cmaes", Row("agmc_onnx.policies.blackbox:cmaes", guided=True, needs=("cmaes",)))


class DecidedPolicy:
    """No learning: candidates that were chosen beforehand, one after the other."""

    def __init__(self, candidates: list[FloatArray]) -> None:
        """Take at least one candidate, the favourite first."""
        self.waiting = candidates
        self.n_episodes = len(candidates)

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return the next candidate."""
        return self.waiting.pop(0)

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Learn nothing."""


def make_policy(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> Policy:
    """Return the policy `options.policy` for this problem; with no episodes, the `n_decided` candidates it takes as it is.

    Raises:
        UsageError: If there is no such row in `POLICIES`, a package is missing, or options are given that would do nothing.
    """
    row = POLICIES[options.policy]
    _check(row, options)
    make = _found(row.inside or row.make) if row.guided else _found(row.make)
    if not options.n_episodes:
        return DecidedPolicy(_decided(row, make, problem, options, rng))
    policy: Policy = make(problem, options, rng)
    if not row.guided:
        return policy
    from agmc_onnx.policies.guide.guided import Guided

    return Guided(policy, problem, options, rng)


def _decided(
    row: Row, make: Any, problem: Problem, options: SearchOptions, rng: np.random.Generator
) -> list[FloatArray]:
    """Return what a policy takes without an evaluation: the prior's first candidates if guided, else its own first one."""
    if not row.guided:
        return [make(problem, options, rng).propose(rng)]
    from agmc_onnx.policies.guide.guided import unmeasured

    return unmeasured(problem, options)


def _check(row: Row, options: SearchOptions) -> None:
    """Raise if a package is missing, or options are given that would do nothing in this composition."""
    for package in row.needs:
        try:
            importlib.import_module(package)
        except ImportError as missing:
            raise UsageError(
                f"policy: {options.policy} needs a package that is not installed, got {missing.name}; expected {package}."
                f" Run pip install 'agmc-onnx[{EXTRAS[package]}]'."
            ) from missing
    place = (row.inside_options or row.options) if row.guided else row.options
    expected = _found(place) if place else type(None)
    if options.own is not None and type(options.own) is not expected:
        wanted = expected.__name__ if place else "none, it has none of its own"
        raise UsageError(
            f"policy: these options do nothing for {options.policy}, got {type(options.own).__name__}; expected {wanted}."
        )
    if options.guide is not None and not row.guided:
        raise UsageError(
            f"policy: {options.policy} has no guide, got {type(options.guide).__name__}; expected none. Leave it out, or ask"
            f" for guided:{_parts(options.policy)[1]}."
        )


def _found(place: str | PolicyFactory) -> Any:
    """Return what is at "module:name"."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
