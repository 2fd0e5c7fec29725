"""The rows of the papers' tables and figures, and of the networks in them, read from papers.toml."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from agmc_onnx.errors import UsageError
from agmc_onnx.options import Search

FILE = Path(__file__).with_name("papers.toml")
ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
KINDS = ("compress", "transfer", "nodes")


@dataclass(frozen=True)
class Network:
    """A network of the papers.

    Attributes:
        name: As the rows call it.
        files: Names that its weights may have in a folder of models, in the order they are looked for.
        data: The kind of images it takes: "cifar10", "imagenet", or "none" where a row needs none.
        zoo: Row of `models.zoo.BUILDERS` that builds it, or None.
        zoo_options: Options of `models.zoo.build`.
        input_shape: (N, C, H, W) where it is not the zoo's.
    """

    name: str
    files: tuple[str, ...]
    data: str
    zoo: str | None = None
    zoo_options: Mapping[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Row:
    """A number of a paper, and what repeats it.

    Attributes:
        id: Unique.
        table: Table or figure of the paper.
        network: That is pruned.
        policy: That decides.
        paper: The paper's numbers; papers.toml says under which names.
        options: Of `agmc_onnx.compress`, or of the experiment where `kind` is another.
        kind: One of `KINDS`.
        episodes: Candidates evaluated.
        batch: Samples of a timed inference.
        checkpoints: Episodes after which the best validation accuracy is wanted; default: the last.
        source: Network that a transferred agent has searched before.
        differs: What is not as in the paper.
    """

    id: str
    table: str
    network: Network
    policy: str
    paper: Mapping[str, Any]
    options: Mapping[str, Any]
    kind: str = "compress"
    episodes: int = Search.episodes
    batch: int = 1
    checkpoints: tuple[int, ...] = ()
    source: Network | None = None
    differs: str = ""

    @property
    def setting(self) -> str:
        """What is asked for, in words."""
        if self.kind == "nodes":
            return f"{100 * self.options['labelled']:g} % of the nodes labelled"
        told = [f"{self.options['flops']:g} of the MACs"]
        if "sparsity" in self.options:
            what = "weights" if self.options.get("sparse_layers") == "all" else "dense weights"
            told.append(f"{self.options['sparsity']:g} of the {what} zero")
        return ", ".join(told)


def read_rows(path: Path = FILE) -> list[Row]:
    """Return all rows.

    Raises:
        UsageError: If a row has an unknown key, kind or network, or an id twice.
    """
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    networks = {name: _made(Network, {"name": name, **facts}, path) for name, facts in found["networks"].items()}
    rows: list[Row] = []
    for facts in found["rows"]:
        for key in ("network", "source"):
            if key in facts and facts[key] not in networks:
                raise UsageError(
                    f"{path.name}: unknown network, got {facts[key]!r}; expected one of {', '.join(networks)}. Add it."
                )
        named = {key: networks[facts[key]] for key in ("network", "source") if key in facts}
        rows.append(_made(Row, {**facts, **named}, path))
        if rows[-1].kind not in KINDS:
            raise UsageError(
                f"{path.name}: unknown kind, got {rows[-1].kind!r}; expected one of {', '.join(KINDS)}. Correct it."
            )
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        twice = sorted({one for one in ids if ids.count(one) > 1})
        raise UsageError(f"{path.name}: ids that stand twice, got {', '.join(twice)}; expected one row each. Rename.")
    return rows


def _made(kind: type[Any], facts: Mapping[str, Any], path: Path) -> Any:
    unknown = set(facts) - {one.name for one in fields(kind)}
    if unknown:
        known = ", ".join(one.name for one in fields(kind))
        raise UsageError(f"{path.name}: unknown keys, got {', '.join(sorted(unknown))}; expected {known}. Correct it.")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()})


def chosen(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return the rows whose id or table fits one of the names, which may have * and ?.

    Raises:
        UsageError: If a name fits none.
    """
    for name in names:
        if not any(fnmatch(row.id, name) or fnmatch(row.table, name) for row in rows):
            tables = ", ".join(dict.fromkeys(row.table for row in rows))
            raise UsageError(
                f"papers: no such row, got {name!r}; expected a row of `papers.py list`, or one of {tables}."
            )
    return [row for row in rows if any(fnmatch(row.id, name) or fnmatch(row.table, name) for name in names)]


def commands(row: Row, seed: int = 0) -> list[str]:
    """Return what repeats a row step by step, as shell commands; `papers.py run` does the same and notes what it measures."""
    from agmc_onnx.policies import POLICIES

    model = row.network.files[-1]
    if row.kind == "nodes":
        given = " ".join(f"--{name} {value}" for name, value in row.options.items())
        return [f"python -m tools.experiments.node_classification --network {row.network.name} {given}"]
    if row.kind == "transfer":
        return [f"python -m tools.experiments.papers run {row.id} --models MODELS --data CARD.toml --out rows.jsonl"]
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in row.options.items())
    tail = f"--episodes {row.episodes}"
    if row.policy not in POLICIES:
        return [
            f"python -m tools.compare_policies {model} --data CARD.toml {options} --policies {row.policy}"
            f" --seeds {seed} {tail} --out runs/{row.id}.jsonl"
        ]
    told = [
        f"agmc-onnx compress {model} --data CARD.toml {options} --policy {row.policy} {tail} --seed {seed} -o {row.id}.onnx"
    ]
    if {"after", "change"} & set(row.paper):
        told.append(f"agmc-onnx finetune {row.id}.onnx --teacher {model} --data CARD.toml -o {row.id}.tuned.onnx")
    if {"latency", "weights"} & set(row.paper):
        told.append(f"agmc-onnx measure {model} {row.id}.onnx --batch {row.batch}")
    return told
