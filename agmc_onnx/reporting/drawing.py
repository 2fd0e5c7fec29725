"""The network of a report as a picture: level 2 with a box for every motif, and level 1 of every box."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agmc_onnx.reporting.layout import Layout, layered

BOX2, BOX1 = (202, 44), (212, 46)
GAP2, GAP1 = (14, 16), (16, 22)
N_HUES = 8  # colours of motifs in page.css; more motifs share them
LONGEST_CHAIN = 12  # single ops drawn as one box
MOST_WIDTHS = 3  # said of one box
TITLE_LENGTH = 26
NOTE_LENGTH = 26
MINOR = frozenset(("relu", "activation", "batchnorm", "norm", "identity", "pad", "split", "reshape"))  # not in titles

Network = Mapping[str, Any]


@dataclass(frozen=True)
class Box:
    """A box of level 2.

    Attributes:
        title, note: What is written in it, and below.
        says: All of it, for a pointer that rests there.
        hue: 0..N_HUES - 1 of its motif; None for ops outside of motifs.
        kept: Share of its MACs that is kept, 0..1; None where it has none.
        x, y: Upper left corner.
    """

    title: str
    note: str
    says: str
    hue: int | None
    kept: float | None
    x: float
    y: float


@dataclass(frozen=True)
class Picture:
    """Both levels.

    Attributes:
        boxes: Of level 2, in the order of the network.
        layout: Of level 2.
        details: For the script of the page. "templates": layouts of level 1 (w, h, at, paths); "boxes": for every box of
            level 2 its title, template, and ops ([type, name, size before, size after, MACs before, MACs after]).
    """

    boxes: tuple[Box, ...]
    layout: Layout
    details: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a box."""
        return BOX2


def draw(network: Network) -> Picture | None:
    """Return the picture of a report's "network", or None where it has no ops."""
    ops = network["ops"]
    if not ops:
        return None
    makers = _makers(ops)
    boxes = _with_chains(network, makers)
    box_of = {op: i for i, (_, members) in enumerate(boxes) for op in members}
    edges = sorted({(box_of[a], box_of[b]) for b, op in enumerate(ops) for a in _before(op, makers)})
    edges = [(a, b) for a, b in edges if a != b]
    layout = layered(len(boxes), edges, BOX2, GAP2)
    made, templates, details = [], _Templates(ops), []
    for (motif, members), (x, y) in zip(boxes, layout.at, strict=True):
        macs = [sum(ops[op].get("macs", (0, 0))[side] for op in members) for side in (0, 1)]
        kinds = " ".join(ops[op]["type"] for op in members)
        name = network["motifs"][motif]["name"] if motif is not None else ""
        width = _widths(network, ops, members)
        made.append(
            Box(
                title=_title(name, _place([ops[op]["name"] for op in members]), [ops[op]["type"] for op in members]),
                note=f"{width}{': ' if width else ''}{100 * macs[1] / macs[0]:.0f} %" if macs[0] else width,
                says=f"{name + ': ' if name else ''}{kinds} ({ops[members[0]]['name']} to {ops[members[-1]]['name']})",
                hue=None if motif is None else motif % N_HUES,
                kept=macs[1] / macs[0] if macs[0] else None,
                x=x,
                y=y,
            )
        )
        rows = [[op["type"], op["name"], *_sizes(network, op), *op.get("macs", ())] for op in (ops[i] for i in members)]
        details.append({"title": name or "outside of motifs", "template": templates.of(members), "ops": rows})
    return Picture(tuple(made), layout, {"templates": templates.found, "boxes": details, "size": BOX1})


class _Templates:
    """Layouts of level 1, one for each structure: the ops, then what they read from elsewhere."""

    def __init__(self, ops: Sequence[Mapping[str, Any]]) -> None:
        self.ops = ops
        self.found: list[dict[str, Any]] = []
        self._known: dict[tuple[Any, ...], int] = {}

    def of(self, members: Sequence[int]) -> int:
        """Return the number of the layout of these ops."""
        made = {value: i for i, op in enumerate(members) for value in self.ops[op]["makes"]}
        edges: list[tuple[int, int]] = []
        for i, op in enumerate(members):
            for value in self.ops[op]["reads"]:  # what is made elsewhere has a box of its own, behind those of the ops
                edges.append((made.setdefault(value, len(members) + sum(k >= len(members) for k in made.values())), i))
        edges = list(dict.fromkeys(edges))
        n = 1 + max(max(pair) for pair in edges) if edges else len(members)
        key = (n, *edges)
        if key not in self._known:
            self._known[key] = len(self.found)
            drawn = layered(n, edges, BOX1, GAP1)
            self.found.append({"w": drawn.width, "h": drawn.height, "at": drawn.at, "paths": drawn.paths})
        return self._known[key]


def _makers(ops: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Return which op makes a feature map."""
    return {value: i for i, op in enumerate(ops) for value in op["makes"]}


def _before(op: Mapping[str, Any], makers: Mapping[int, int]) -> list[int]:
    """Return the ops whose feature maps an op reads, each once."""
    return list(dict.fromkeys(makers[value] for value in op["reads"] if value in makers))


def _with_chains(network: Network, makers: Mapping[int, int]) -> list[tuple[int | None, list[int]]]:
    """Return (motif, ops) of every box, where single ops that follow each other and nothing else share one."""
    ops = network["ops"]
    readers: dict[int, set[int]] = defaultdict(set)
    for b, op in enumerate(ops):
        for a in _before(op, makers):
            readers[a].add(b)
    out: list[tuple[int | None, list[int]]] = []
    chain_at: dict[int, int] = {}  # last op of a chain -> its box
    for box in network["boxes"]:
        if box["motif"] is not None:
            out.append((box["motif"], sorted(box["ops"])))
            continue
        op = box["ops"][0]
        before = _before(ops[op], makers)
        home = chain_at.pop(before[0], None) if len(before) == 1 and len(readers[before[0]]) == 1 else None
        if home is None or len(out[home][1]) >= LONGEST_CHAIN:
            home = len(out)
            out.append((None, []))
        out[home][1].append(op)
        chain_at[op] = home
    return out


def _sizes(network: Network, op: Mapping[str, Any]) -> list[str]:
    """Return the size of what an op makes, before and after, without the batch."""
    _, before, after = network["values"][op["makes"][0]]
    return [_size(before), _size(after)]


def _size(dims: Sequence[int] | None) -> str:
    return "?" if dims is None else " x ".join(str(d) for d in dims[1:]) or "1"


def _widths(network: Network, ops: Sequence[Mapping[str, Any]], members: Sequence[int]) -> str:
    """Return the channels behind each op with MACs, or else behind the whole box, before and after."""
    heavy = [op for op in members if "macs" in ops[op] and not ops[op]["type"].endswith("-depthwise")] or members[-1:]
    for some in (heavy if len(heavy) <= MOST_WIDTHS else heavy[-1:], heavy[-1:]):
        pairs = [pair for op in some if (pair := _width(network, ops[op]))]
        one, other = (", ".join(str(pair[side]) for pair in pairs) for side in (0, 1))
        text = f"{one} wide" if pairs and one == other else f"{one} \u2192 {other}" if pairs else ""
        if len(text) <= NOTE_LENGTH:
            break
    return text


def _width(network: Network, op: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the channels that an op makes, before and after; the first dim behind the batch unless another one shrank."""
    _, before, after = network["values"][op["makes"][0]]
    if not before or not after or len(before) < 2 or len(before) != len(after):
        return None
    changed = next((dim for dim in range(1, len(before)) if before[dim] != after[dim]), 1)
    return before[changed], after[changed]


def _place(names: Sequence[str]) -> str:
    """Return the module that all ops stand in, where exporters wrote it: "layer1.2" of /layer1/layer1.2/conv1/Conv."""
    paths = [name.split(" ")[-1].strip("/").split("/")[:-1] for name in names]
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return shared[-1] if shared else ""


def _title(name: str, place: str, kinds: Sequence[str]) -> str:
    """Return what a box is called: its motif, and where it stands, or else the ops that matter most."""
    shown = [place] if name and place else [_brief(kind) for kind in kinds if kind not in MINOR] or list(kinds)
    text = " ".join([name, *shown] if name else shown)
    return text if len(text) <= TITLE_LENGTH else f"{text[: TITLE_LENGTH - 1].rstrip()}\u2026"


def _brief(kind: str) -> str:
    """Return an op's type as titles have it: conv3-depthwise is dwconv3."""
    if kind.endswith("-depthwise"):
        return f"dw{kind.removesuffix('-depthwise')}"
    return f"g{kind.removesuffix('-grouped')}" if kind.endswith("-grouped") else kind
