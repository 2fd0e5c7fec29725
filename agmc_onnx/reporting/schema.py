"""The report of a run as data: `agmc-onnx/report@1` of docs/files.md, typed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from agmc_onnx.errors import UsageError
from agmc_onnx.reporting.verdict import Loss, Verdict
from agmc_onnx.schema import RARE, Count, Record, checked, parse

REPORT_FORMAT: Literal["agmc-onnx/report@1"] = "agmc-onnx/report@1"
SCHEMA_VERSION = "1.3"  # the format's number, and one more whenever a field is added; what is there keeps its meaning

Share = Annotated[float, Meta(ge=0)]
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
Milliseconds = Annotated[float, Meta(gt=0, le=1e300)]
Interval = tuple[float | None, float | None]
ADVICE = "Name an X.report.json that compress wrote."


@dataclass(frozen=True, eq=False)
class Metric(Record):
    """A metric's value on the test role: percent, decibels (psnr, sisdr), or what a function of the user's returned."""

    name: str
    value: Finite
    n: Annotated[Count, Meta(description="samples")]
    interval: Annotated[tuple[Finite, Finite] | None, Meta(description="95 % confidence, of a share of samples")] = None


@dataclass(frozen=True, eq=False)
class LatencyFacts(Record):
    """Milliseconds per inference of a whole batch, original and result measured in turns."""

    p50: Milliseconds
    p90: Milliseconds
    batch: Count
    threads: Count
    min: float | None = None
    cpu: Annotated[float | None, Meta(description="mean processor time")] = None
    interval: Annotated[Interval | None, Meta(description="95 % confidence of the median")] = None
    cpu_p50: Annotated[float | None, Meta(description="median processor time")] = None
    cpu_p10: Annotated[
        float | None, Meta(description="first decile of processor time: what compares on a busy machine")
    ] = None
    provider: str = "cpu"
    rounds: Annotated[list[Milliseconds], Meta(description="every timed inference")] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Side(Record):
    """The original, or the result."""

    macs: Annotated[Count, Meta(description="of one sample; one is two FLOPs")]
    params: Count
    file_bytes: Annotated[Count, Meta(description="external weights included")]
    metric: Metric
    latency_ms: LatencyFacts
    peak_bytes: Annotated[Count | None, Meta(description="of activations, None where not known")] = None


@dataclass(frozen=True, eq=False)
class Compressed(Side):
    """The result; before recovery it had `metric_before_recovery`."""

    metric_before_recovery: Finite | None = None
    weight_density: Annotated[Share, Meta(le=1, description="non-zero share of all weights of two or more dims")] = 1.0


@dataclass(frozen=True, eq=False)
class Twin(Record):
    """X.float.onnx, the result before it was quantised."""

    file_bytes: Count
    metric: Metric
    latency_ms: LatencyFacts
    latency_ratio: Annotated[float, Meta(description="of the original's, by the median of the rounds")]


@dataclass(frozen=True, eq=False)
class Division(Record):
    """A division of the original's nodes into int8 and float, measured on the calibration role."""

    kind: Annotated[str, Meta(description="float, int8 or mixed")]
    n_float: Annotated[Count, Meta(description="nodes in float")]
    time: Annotated[float, Meta(description="share of the original's")]
    alike: Annotated[float, Meta(description="percent, the lesser of closeness and agreement with the original")]
    name: Annotated[str, Meta(description="what agreement came to")]
    value: Annotated[float, Meta(description="of it")]
    is_taken: Annotated[bool, Meta(description="whether it has the least time / alike")]


@dataclass(frozen=True, eq=False)
class PrecisionFacts(Record):
    """What a result that is not all float computes in."""

    asked: str
    target: Annotated[str, Meta(description="kind of processor that it was quantised for")]
    nodes: Annotated[dict[str, Count], Meta(description="how many nodes of the twin compute in what")]
    ranges: Annotated[str, Meta(description="extremes or least error, whichever answered better")]
    twin: Twin
    why_float: Annotated[dict[str, str], Meta(description="nodes that onnxruntime refuses in int8, and why")] = field(
        default_factory=dict
    )
    correlation: Annotated[
        float | None, Meta(description="Spearman's, of finalists' fidelity in float and quantised")
    ] = None
    stays: Annotated[dict[str, str], Meta(description="of mixed precision: why nodes stay float")] = field(
        default_factory=dict
    )
    tried: Annotated[list[Division], Meta(description="of mixed precision: what was measured of the original")] = field(
        default_factory=list
    )


@dataclass(frozen=True, eq=False)
class RatioFacts(Record):
    """Latency of the result over that of the original."""

    median: float
    minimum: float
    interval: Interval | None = None
    cpu: Annotated[float | None, Meta(description="by processor time, where that compares")] = None


@dataclass(frozen=True, eq=False)
class TargetFacts(Record):
    """The budget."""

    kind: Annotated[str, Meta(description="flops, params or latency")]
    keep: Annotated[Share, Meta(description="share asked for, at most")]
    reached: Share
    predicted: Annotated[float | None, Meta(description="of a latency: what the table of op times says")] = field(
        default=None, metadata=RARE
    )
    table: Annotated[str | None, Meta(description="SHA-256 of the timed samples that a latency is predicted by")] = (
        field(default=None, metadata=RARE)
    )
    device: Annotated[dict[str, str] | None, Meta(description="whose latency it is, where not this one's")] = field(
        default=None, metadata=RARE
    )


@dataclass(frozen=True, eq=False)
class VerifiedFacts(Record):
    """How the result was compared with the masked original (`agmc_onnx.Verification`)."""

    masked_equivalence: bool | None
    max_abs_diff: float | None
    max_abs_output: float | None
    tolerance: float | None
    checker: bool | None
    n_samples: Count = 0
    note: str = ""
    recovered: bool = False
    statistics: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SourceFacts(Record):
    """The original's file; `path` is model.onnx for a model that was given in memory."""

    path: str
    sha256: str


@dataclass(frozen=True, eq=False)
class SizesFacts(Record):
    """Sizes of the inputs with batch 1, for cost, latency, memory and verification."""

    inputs: dict[str, list[int]]
    source: Annotated[str, Meta(description="fixed, given, data or guessed")]


@dataclass(frozen=True, eq=False)
class DataFacts(Record):
    """The data that was measured on."""

    source: str
    metric: str
    roles: Annotated[dict[str, Count], Meta(description="samples of every role")]


@dataclass(frozen=True, eq=False)
class GroupFacts(Record):
    """One group of channels."""

    name: str
    units: Count
    kept: Count
    why_frozen: Annotated[str | None, Meta(description="why it stays whole")] = None
    layer: Annotated[str, Meta(description="what the network's author called it, or its place in the network")] = ""


@dataclass(frozen=True, eq=False)
class Report(Record):
    """What a run did, and what came of it; reads as the mapping that X.report.json holds.

    `history` has a row an episode, `finalists` what was measured of the best ones, `network` the two-level graph that the
    page draws, `settings` the options by name. Of `stages`, `max_drop`, `latency_budget` and `slower` there is what the run had.
    """

    model: SourceFacts
    original: Side
    compressed: Compressed
    target: TargetFacts
    policy: str
    seed: int
    verified: VerifiedFacts
    format: Literal["agmc-onnx/report@1"] = REPORT_FORMAT
    schema_version: str = SCHEMA_VERSION
    set: Annotated[str | None, Meta(description="id of the set; model, plan and page carry it too")] = None
    verdict: Verdict | None = None
    loss: Loss | None = None
    closeness: Annotated[float | None, Meta(description="of the outputs to the original's, 0 to 100, without data")] = (
        None
    )
    latency_ratio: RatioFacts | None = None
    accuracy_measured: Annotated[bool, Meta(description="False without data")] = True
    data: DataFacts | None = None
    sizes: SizesFacts | None = None
    uncounted: Annotated[list[str], Meta(description="nodes whose MACs are not known")] = field(default_factory=list)
    episodes: Count = 0
    evaluations: Annotated[Count, Meta(description="networks that were measured")] = 0
    interrupted: bool = False
    resumed: Annotated[Count, Meta(description="evaluations taken from an interrupted run")] = 0
    wall_s: float = 0.0
    inference_s: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    finalists: list[dict[str, Any]] = field(default_factory=list)
    groups: list[GroupFacts] = field(default_factory=list)
    sparsity: Annotated[dict[str, Any] | None, Meta(description="of --sparsity")] = None
    precision: Annotated[PrecisionFacts | None, Meta(description="of --precision, where it is not float")] = field(
        default=None, metadata=RARE
    )
    gone: Annotated[dict[str, Any] | None, Meta(description="branches that are gone, where some are")] = field(
        default=None, metadata=RARE
    )
    stages: Annotated[list[dict[str, Any]] | None, Meta(description="of --stages")] = field(default=None, metadata=RARE)
    max_drop: Annotated[dict[str, Any] | None, Meta(description="of --max-drop")] = field(default=None, metadata=RARE)
    latency_budget: Annotated[dict[str, Any] | None, Meta(description="of --latency")] = field(
        default=None, metadata=RARE
    )
    slower: Annotated[dict[str, Any] | None, Meta(description="where a candidate was slower than the original")] = (
        field(default=None, metadata=RARE)
    )
    network: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    environment: Annotated[dict[str, str], Meta(description="versions and processor")] = field(default_factory=dict)
    output: Annotated[str | None, Meta(description="where the model was written")] = None


@dataclass(frozen=True)
class DrawnOp:
    """An op of the network that the page draws; `reads` and `makes` are positions among its values."""

    name: str
    type: str
    makes: Annotated[list[Count], Meta(min_length=1)]
    reads: list[Count]
    macs: tuple[Count, Count] = (0, 0)


@dataclass(frozen=True)
class DrawnBox:
    """Ops that share a box; `motif` and `ops` are positions."""

    motif: Count | None
    ops: Annotated[list[Count], Meta(min_length=1)]


@dataclass(frozen=True)
class DrawnMotif:
    """A motif that boxes are of."""

    name: str
    count: Count
    says: str


@dataclass(frozen=True)
class DrawnNetwork:
    """What the page draws of `network`."""

    values: list[tuple[str, list[int] | None, list[int] | None]]
    ops: list[DrawnOp]
    boxes: list[DrawnBox]
    motifs: list[DrawnMotif]

    def __post_init__(self) -> None:
        placed = sorted(op for box in self.boxes for op in box.ops)
        if placed != list(range(len(self.ops))):
            raise ValueError("boxes: ops are not each in one")
        if any(at >= len(self.values) for op in self.ops for at in (*op.makes, *op.reads)):
            raise ValueError("ops: a value that is none")
        if any(box.motif is not None and box.motif >= len(self.motifs) for box in self.boxes):
            raise ValueError("boxes: a motif that is none")


@dataclass(frozen=True)
class DrawnEpisode:
    """What the page draws of a row of `history`."""

    episode: Count
    reward: float


@dataclass(frozen=True)
class DrawnFinalist:
    """What the page says of a row of `finalists`."""

    kept: list[Count]
    reward: float
    metric: float
    fidelity: float | None = None
    taken: bool = False


@dataclass(frozen=True)
class DrawnStage:
    """What is said of a row of `stages`."""

    reached: float


@dataclass(frozen=True)
class DrawnGone:
    """What is said of `gone`."""

    branches: list[str]
    of: Count
    nodes: Count
    of_nodes: Count


@dataclass(frozen=True)
class DrawnDrop:
    """What is said of `max_drop`."""

    most: float
    drop: float
    limit: float
    n: Count
    trials: list[Any]


@dataclass(frozen=True)
class DrawnLayer:
    """What is said of a layer of `sparsity`."""

    storage: str


@dataclass(frozen=True)
class DrawnBytes:
    """Bytes of both models, zipped."""

    original: Count
    compressed: Count


@dataclass(frozen=True)
class DrawnSparsity:
    """What is said of `sparsity`."""

    weights: Count
    nonzeros: Count
    density: float
    method: str
    layers: list[DrawnLayer]
    zip_bytes: DrawnBytes
    pattern: str | None


@dataclass(frozen=True)
class Drawn:
    """What words and page need of the parts of a report that are written as they come."""

    network: DrawnNetwork | None = None
    history: list[DrawnEpisode] = field(default_factory=list)
    finalists: list[DrawnFinalist] = field(default_factory=list)
    stages: list[DrawnStage] | None = None
    gone: DrawnGone | None = None
    max_drop: DrawnDrop | None = None
    sparsity: DrawnSparsity | None = None

    def __post_init__(self) -> None:
        if len({len(one.kept) for one in self.finalists}) > 1:
            raise ValueError("finalists: kept counts of different groups")


def read_report(path: Path) -> Report:
    """Read an X.report.json.

    Raises:
        UsageError: If it cannot be read, or is not one.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). {ADVICE}") from None
    found = parse(raw, path, "a report", ADVICE, UsageError)
    if found.get("format") != REPORT_FORMAT:
        got = found.get("format")
        raise UsageError(f"{path}: not a report, got {got!r}; expected format {REPORT_FORMAT!r}. {ADVICE}")
    checked(found, Drawn, path, "a report", ADVICE, UsageError)
    return checked(found, Report, path, "a report", ADVICE, UsageError)
