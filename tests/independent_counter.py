"""A second count of MACs that shares no code with the package: the model is run, and the arrays it really makes are counted.

Functions are inlined, every value of a graph is made an output of an onnxruntime session, and the branches and bodies of If,
Loop and Scan are run as graphs of their own, as often as the model runs them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort

ort.set_default_logger_severity(4)
Values = dict[str, Any]
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_WEIGHT_AT = {"QLinearConv": 3}  # elsewhere the second input
_CONV = {"Conv", "FusedConv", "ConvInteger", "QLinearConv", "NhwcFusedConv", "DeformConv"}
_MATMUL = {"MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul"}


def count(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> Counter[str]:
    """Return the MACs of every node of the main graph that has some, by its first output, at the shapes of one feed."""
    model = onnx.inliner.inline_local_functions(model) if len(model.functions) else model
    counted: Counter[str] = Counter()
    _Run(model).graph(model.graph, dict(feed), counted)
    return +counted


class _Run:
    """Runs graphs of one model and counts as it goes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    def graph(self, graph: onnx.GraphProto, given: Values, counted: Counter[str]) -> Values:
        """Return every value of a graph, given its inputs and what it takes from outside; count its nodes."""
        values = dict(given)
        pending: list[onnx.NodeProto] = []
        constants = {t.name: t for t in graph.initializer}
        for tensor in constants.values():
            values.setdefault(tensor.name, onnx.numpy_helper.to_array(tensor))
        for node in sorted_nodes(graph, set(values) | {s.values.name for s in graph.sparse_initializer}):
            if node.op_type in ("If", "Loop", "Scan") and not node.domain:
                values.update(self.plain(graph, pending, values, given))
                pending = []
                made, inner = self.control(node, values)
                counted[node.output[0]] += sum(inner.values())
                values.update(made)
            else:
                pending.append(node)
        values.update(self.plain(graph, pending, values, given))
        for node in graph.node:
            n = _macs(node, values, {s.values.name: tuple(s.dims) for s in graph.sparse_initializer})
            if n:
                counted[next(filter(None, node.output))] += n
        return values

    def control(self, node: onnx.NodeProto, values: Values) -> tuple[Values, Counter[str]]:
        """Run an If, Loop or Scan; return its outputs, and what its graphs counted."""
        body = {a.name: a.g for a in node.attribute if a.HasField("g")}
        inner: Counter[str] = Counter()
        used = [values[name] if name else None for name in node.input]
        if node.op_type == "If":
            taken = body["then_branch" if bool(np.asarray(used[0]).ravel()[0]) else "else_branch"]
            found = self.graph(taken, values, inner)
            return {name: found[o.name] for name, o in zip(node.output, taken.output, strict=True)}, inner
        graph = body["body"]
        names = [i.name for i in graph.input]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.HasField("g")}
        n_scans = attributes.get("num_scan_inputs", 0)
        n_states = len(node.input) - 2 if node.op_type == "Loop" else len(node.input) - n_scans
        states = used[2:] if node.op_type == "Loop" else used[:n_states]
        trips = len(used[-1]) if node.op_type == "Scan" else (1 << 31 if used[0] is None else int(used[0]))
        going, rows, step = used[1] is None or bool(used[1]) if node.op_type == "Loop" else True, [], 0
        while going and step < trips:
            if node.op_type == "Loop":
                fed = [np.array(step, np.int64), np.array(True), *states]
            else:
                fed = [*states, *(x[step] for x in used[n_states:])]
            found = self.graph(graph, values | dict(zip(names, fed, strict=True)), inner)
            outs = [found[o.name] for o in graph.output]
            if node.op_type == "Loop":
                going, outs = bool(outs[0]), outs[1:]
            states, step = outs[:n_states], step + 1
            rows.append(outs[n_states:])
        stacked = [np.stack(parts) for parts in zip(*rows, strict=True)]
        return dict(zip(node.output, [*states, *stacked], strict=False)), inner

    def plain(self, graph: onnx.GraphProto, nodes: list[onnx.NodeProto], values: Values, given: Values) -> Values:
        """Run nodes without bodies, all their values outputs of one session."""
        if not nodes:
            return {}
        made = {name for node in nodes for name in node.output if name}
        sparse = {s.values.name for s in graph.sparse_initializer}
        needed = list(dict.fromkeys(n for node in nodes for n in node.input if n and n not in made and n not in sparse))
        inputs, weights, feed = [], [], {}
        types = {i.name: i for i in (*self.model.graph.input, *graph.input)}
        for name in needed:
            value = values[name]
            tensor = next((t for t in graph.initializer if t.name == name), None)
            if tensor is not None and name not in given:
                weights.append(tensor)
            elif isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind not in "OU":
                weights.append(onnx.numpy_helper.from_array(np.asarray(value), name))
            else:
                inputs.append(types[name])
                feed[name] = value
        part = onnx.helper.make_graph(
            nodes, "part", inputs, [onnx.ValueInfoProto(name=name) for name in sorted(made)], weights,
            sparse_initializer=list(graph.sparse_initializer),
        )  # fmt: skip
        for node in nodes:
            node.ClearField("name")  # two of one name are refused
        opsets, ir_version = self.model.opset_import, max(self.model.ir_version, 4)
        model = onnx.helper.make_model(part, opset_imports=opsets, ir_version=ir_version)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))


def sorted_nodes(graph: onnx.GraphProto, known: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes such that each comes after those that it reads from."""
    made = {name for node in graph.node for name in node.output if name}
    left, found, known = list(graph.node), [], set(known)
    while left:
        ready = [n for n in left if all(u in known or u not in made for u in _reads(n))]
        assert ready, "the graph has a cycle"
        for node in ready:
            known.update(node.output)
        found += ready
        left = [n for n in left if not any(n is r for r in ready)]
    return found


def _reads(node: onnx.NodeProto) -> set[str]:
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found |= {name for inner in attribute.g.node for name in _reads(inner)}
            found |= {output.name for output in attribute.g.output}
    return found


def _macs(node: onnx.NodeProto, values: Values, sparse: dict[str, tuple[int, ...]]) -> int:
    """Return the MACs of one node that has no body, by the definition of its op."""
    kind = node.op_type
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def dims(name: str) -> tuple[int, ...]:
        return sparse[name] if name in sparse else np.shape(values[name])

    outs = [name for name in node.output if name]
    if kind in _CONV:
        return math.prod(dims(outs[0])) * math.prod(dims(node.input[_WEIGHT_AT.get(kind, 1)])[1:])
    if kind == "ConvTranspose":  # every input entry meets the kernel once
        return math.prod(dims(node.input[0])) * math.prod(dims(node.input[1])[1:])
    if kind in ("Gemm", "FusedGemm"):
        return math.prod(dims(outs[0])) * dims(node.input[0])[0 if attributes.get("transA") else 1]
    if kind in _MATMUL:
        inner = dims(node.input[0])[-2 if attributes.get("transA") else -1]
        return math.prod(dims(outs[0])) * inner
    if kind == "MatMulNBits":
        return math.prod(dims(node.input[0])[:-1]) * attributes["K"] * attributes["N"]
    if kind == "Einsum":
        letters = {}
        for name, term in zip(node.input, attributes["equation"].decode().split("->")[0].split(","), strict=True):
            term, shape = term.strip().replace(" ", ""), dims(name)
            tail = len(term.partition("...")[2])
            free = len(shape) - len(term.replace("...", ""))
            keys = [*term.partition("...")[0], *(f".{free - i}" for i in range(free)), *term[len(term) - tail :]]
            for key, size in zip(keys if "..." in term else term, shape, strict=True):
                letters[key] = max(size, letters.get(key, 1))
        return math.prod(letters.values())
    if kind in _GATES:
        steps, batch, width = dims(node.input[0])
        if attributes.get("layout"):
            steps, batch = batch, steps
        directions, gates_hidden, _ = dims(node.input[1])
        return steps * batch * directions * gates_hidden * (width + attributes["hidden_size"])
    return 0
