"""The order of the layers, and who may import onnxruntime and torch, or print: read from the imports.

Imports inside functions count, and those for type checkers. What still breaks a rule is listed; the lists only get shorter.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "agmc_onnx"
LAYERS = (  # upwards; of rooms in one layer, those on the right may read those on the left
    "errors, arrays, schema | options | graph | ties | ops | motifs, data | measuring, torch_view | latency, precision | "
    "pruning | refit, distill | search | policies | run | reporting, exchange | verbs | cli"
)
ROOMS = LAYERS.replace(",", " ").replace("|", " ").split()
LEARNED = ("policies/agmc/", "policies/gnn_rl/", "policies/guide/", "policies/amc.py")

# One import still points upwards; each exception has its reason behind it
UPWARDS = """
graph/registry.py -> ops    # the table puts itself there; it is imported where the first question comes before it was
"""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of all modules that are imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from [f"agmc_onnx.{a.name}" for a in node.names] if node.module == "agmc_onnx" else [node.module]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def room(path: str) -> str:
    return path.split("/", maxsplit=1)[0].removesuffix(".py")


def check(found: set[str], known: str) -> None:
    """Fail where something new breaks a rule, and where something listed no longer does."""
    listed = {line.split("#")[0].strip() for line in known.split("\n")} - {""}
    assert not found - listed, f"new: {sorted(found - listed)}"
    assert not listed - found, f"mended, so take it off the list: {sorted(listed - found)}"


def test_imports_point_downwards() -> None:
    found = set()
    for path, tree in modules():
        if path in ("__init__.py", "__main__.py", "_moved.py"):  # the public face: above everything
            continue
        for name in imported(tree):
            other = name.removeprefix("agmc_onnx.") if name.startswith("agmc_onnx.") else ""
            if other and other.split(".")[0] in ROOMS and ROOMS.index(other.split(".")[0]) > ROOMS.index(room(path)):
                found.add(f"{path} -> {other}")
    check(found, UPWARDS)


def test_every_module_has_a_room() -> None:
    rooms = {room(path) for path, _ in modules()} - {"__init__", "__main__", "_moved"}
    assert rooms == set(ROOMS)


def test_only_the_command_line_prints() -> None:
    # programs, which run in processes of their own
    programs = {"latency/op_times.py", "measuring/probe.py", "exchange/importers/paddle_worker.py"}
    found = set()
    for path, tree in modules():
        calls = [
            n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") in ("print", "input")
        ]
        if calls and not path.startswith("cli/") and path not in programs:
            found.add(path)
    assert not found, f"new: {sorted(found)}"


def test_onnxruntime_and_torch_have_their_rooms() -> None:
    rooms = {
        "onnxruntime": ("measuring/", "latency/", "precision/", "exchange/", "verbs/doctor.py"),
        "torch": ("torch_view/", "refit/", "distill/", "exchange/", "verbs/doctor.py", *LEARNED),
        "torch_geometric": LEARNED,
        "onnx_graphsurgeon": ("graph/", "pruning/depth.py", "verbs/doctor.py"),
    }
    found = set()
    for path, tree in modules():
        for name in {name.split(".")[0] for name in imported(tree)} & rooms.keys():
            if not path.startswith(rooms[name]):
                found.add(f"{path} -> {name}")
    assert not found, f"new: {sorted(found)}"


def test_no_module_has_the_name_of_its_function() -> None:
    found = set()
    for path, tree in modules():
        names = {n.name for n in ast.iter_child_nodes(tree) if isinstance(n, ast.FunctionDef)}
        if path.split("/")[-1].removesuffix(".py") in names and not path.startswith("verbs/"):
            found.add(path)
    assert not found, f"new: {sorted(found)}"


def test_what_functions_import_is_there() -> None:
    missing = set()
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agmc_onnx."):
                module = importlib.import_module(node.module or "")
                names = {a.name for a in node.names if not hasattr(module, a.name)}
                missing |= {f"{path} -> {node.module}.{n}" for n in names if find_spec(f"{node.module}.{n}") is None}
    assert not missing
