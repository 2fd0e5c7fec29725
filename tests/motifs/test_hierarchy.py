import time
from pathlib import Path

import networkx as nx
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from agmc_onnx import hierarchy
from agmc_onnx.arrays import GraphArrays
from agmc_onnx.graph.view import Graph, graph_of
from agmc_onnx.motifs import EDGE_TYPES, SINK, SOURCE, Hierarchy, canonical_key
from agmc_onnx.motifs.regions import decompose, immediate_dominators

DATA = Path(__file__).parents[3] / "shared" / "data"


class Net:
    """A network written op by op; weights hold nothing, shapes are all that matters."""

    def __init__(self, n_channels: int = 3, size: int = 32) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, n_channels, size, size])]
        self.n_channels = {"x": n_channels}

    def op(self, op_type: str, *inputs: str, n_outputs: int = 1, **attributes: object) -> str:
        outputs = [f"v{len(self.nodes)}_{i}" for i in range(n_outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, **attributes))
        for output in outputs:
            self.n_channels[output] = self.n_channels.get(inputs[0], 4) if inputs else 4
        return outputs[0]

    def conv(self, x: str, n: int, kernel: int = 3, stride: int = 1, group: int = 1) -> str:
        shape = [n, self.n_channels[x] // group, kernel, kernel]
        name = f"w{'x'.join(map(str, shape))}"
        weight = self.weights.setdefault(name, onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape))
        if not weight.raw_data:
            weight.raw_data = bytes(4 * int(np.prod(shape)))
        out = self.op("Conv", x, name, strides=[stride] * 2, pads=[kernel // 2] * 4, group=group)
        self.n_channels[out] = n
        return out

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def graph(self, *outputs: str) -> Graph:
        infos = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, infos, list(self.weights.values()))
        return graph_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def residual(net: Net, x: str, n: int, swap: bool = False) -> str:
    y = net.conv(net.relu(net.conv(x, n)), n)
    return net.relu(net.op("Add", *((x, y) if swap else (y, x))))


def bottleneck(net: Net, x: str, n: int, stride: int) -> str:
    y = net.relu(net.conv(x, n, 1))
    y = net.conv(net.relu(net.conv(y, n, 3, stride)), 4 * n, 1)
    shortcut = x if net.n_channels[x] == 4 * n and stride == 1 else net.conv(x, 4 * n, 1, stride)
    return net.relu(net.op("Add", y, shortcut))


def bottleneck_net(blocks: tuple[int, ...]) -> Graph:
    net = Net(size=64)
    x = net.op("MaxPool", net.relu(net.conv("x", 64, 7, 2)), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, n_blocks in enumerate(blocks):
        for block in range(n_blocks):
            x = bottleneck(net, x, 64 << stage, 2 if stage and not block else 1)
    return net.graph(net.op("Flatten", net.op("GlobalAveragePool", x)))


def contents(graph: nx.MultiDiGraph) -> tuple[dict, dict]:
    return dict(graph.nodes(data=True)), {(u, v, k): d for u, v, k, d in graph.edges(keys=True, data=True)}


def check(found: Hierarchy) -> None:
    """All that must hold for every network."""
    assert contents(hierarchy.flatten(found)) == contents(found.level1)
    ends = set(found.graph.outputs)
    counts = [0] * len(found.motifs)
    for source, target, data in found.level2.edges(data=True):
        if "motif" not in data:
            continue
        counts[data["motif"]] += 1
        template = found.motifs[data["motif"]].graph
        own = {edge[0] for edge in data["edges"]}
        assert (data["values"][0], data["values"][1]) == (source, target)
        assert template.number_of_edges() == len(own) > 1
        for value in data["values"][2:]:  # single entry, single exit
            assert value not in ends
            assert {k for _, _, k in found.level1.in_edges(value, keys=True)} <= own
            assert {k for _, _, k in found.level1.out_edges(value, keys=True)} <= own
        assert {k for _, _, k in found.level1.in_edges(target, keys=True)} <= own
        ops = {edge[1] for edge in data["edges"]}
        assert {k for _, _, k, d in found.level1.edges(keys=True, data=True) if d["op"] in ops} <= own  # no op is torn
    assert counts == [motif.count for motif in found.motifs]
    assert all(motif.count > 1 for motif in found.motifs)
    assert len({motif.key for motif in found.motifs}) == len(found.motifs)


OPS = ("Relu", "Conv", "Add", "Sub", "Concat", "Split", "Sum", "Block", "Shape", "Conv")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_flatten_gives_level_1_back(data: st.DataObject) -> None:
    net = Net(4, 8)
    values = ["x"]
    if data.draw(st.booleans()):
        net.inputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4, 8, 8]))
        values.append("z")
        net.n_channels["z"] = 4
    reach = data.draw(st.sampled_from([2, 4, 30]))
    for op in data.draw(st.lists(st.sampled_from(OPS), max_size=30)):
        picks = [
            values[-1 - i % len(values)] for i in data.draw(st.lists(st.integers(0, reach - 1), min_size=3, max_size=3))
        ]
        if op == "Conv":
            values.append(net.conv(picks[0], 4))
        elif op == "Block":
            values.append(residual(net, picks[0], 4, swap=data.draw(st.booleans())))
        elif op == "Split":
            first = net.op(op, picks[0], n_outputs=2, axis=1)
            values += [first, first[:-1] + "1"]
        elif op == "Concat":
            values.append(net.op(op, *picks[:2], axis=1))
        elif op == "Shape":
            net.op(op, picks[0])
        else:
            values.append(net.op(op, *picks[: {"Relu": 1, "Sum": 3}.get(op, 2)]))
    outputs = dict.fromkeys([values[-1], *data.draw(st.lists(st.sampled_from(values), max_size=2))])
    check(hierarchy.build(net.graph(*outputs)))


@st.composite
def two_terminal(draw: st.DrawFn) -> nx.MultiDiGraph:
    """A graph with nodes 0..n-1 in topological order, all of them between 0 and n-1."""
    n = draw(st.integers(2, 6))
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    edges = draw(st.lists(st.tuples(st.sampled_from(pairs), st.sampled_from("pq")), min_size=1, max_size=9))
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(range(n))
    for (a, b), label in edges:
        graph.add_edge(a, b, label=label)
    for node in range(n):
        if node and not graph.in_edges(node):
            graph.add_edge(draw(st.integers(0, node - 1)), node, label="p")
        if node < n - 1 and not graph.out_edges(node):
            graph.add_edge(node, draw(st.integers(node + 1, n - 1)), label="p")
    return graph


def same(one: nx.MultiDiGraph, other: nx.MultiDiGraph) -> bool:
    def labels(edges: dict) -> list[str]:  # networkx's own categorical_multiedge_match takes ppq and pqq for the same
        return sorted(data["label"] for data in edges.values())

    return nx.is_isomorphic(one, other, edge_match=lambda a, b: labels(a) == labels(b))


@settings(max_examples=150, deadline=None)
@given(two_terminal(), two_terminal(), st.randoms(use_true_random=False))
def test_keys_are_equal_exactly_for_isomorphic_graphs(one, other, random) -> None:
    last = len(one) - 1
    names = list(range(100, 100 + len(one)))
    random.shuffle(names)
    renamed = nx.MultiDiGraph()
    edges = [(names[a], names[b], label) for a, b, label in one.edges(data="label")]
    random.shuffle(edges)
    for a, b, label in edges:
        renamed.add_edge(a, b, label=label)
    assert canonical_key(renamed, names[0], names[last]) == canonical_key(one, 0, last)
    assert (canonical_key(one, 0, last) == canonical_key(other, 0, len(other) - 1)) == same(one, other)


@settings(max_examples=60, deadline=None)
@given(two_terminal())
def test_dominators_are_networkx_dominators(graph: nx.MultiDiGraph) -> None:
    expected = nx.immediate_dominators(graph, 0)
    found = immediate_dominators([list(graph.pred[node]) for node in range(len(graph))])
    assert found[1:] == [expected[node] for node in range(1, len(graph))]


def test_a_turned_edge_changes_the_key() -> None:
    # weisfeiler_lehman_graph_hash(edge_attr="label") of networkx 3.6 is the same for both.
    keys = []
    for turned, entry in (((0, 1), 0), ((1, 0), 1)):
        graph = nx.MultiDiGraph()
        graph.add_edges_from([(0, 3), (1, 2), (2, 3), (3, 4)], label="p")
        graph.add_edge(*turned, label="q")
        keys.append(canonical_key(graph, entry, 4))
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("edges", "others"),
    [
        ([(0, 1, "p"), (0, 1, "p")], [(0, 1, "p")]),  # parallel edges
        ([(0, 2, "p"), (2, 1, "q")], [(0, 2, "q"), (2, 1, "p")]),  # types in another order
        ([(0, 2, "p"), (2, 1, "p"), (0, 1, "p")], [(0, 2, "p"), (2, 1, "p"), (0, 1, "q")]),  # another type
    ],
)
def test_keys_differ(edges: list, others: list) -> None:
    keys = []
    for listed in (edges, others):
        graph = nx.MultiDiGraph()
        for a, b, label in listed:
            graph.add_edge(a, b, label=label)
        keys.append(canonical_key(graph, 0, 1))
    assert keys[0] != keys[1]


def test_regions_nest_as_intervals() -> None:
    #   0 -> 1 -> 2 -> 3, 1 -> 3, 3 -> 4
    found = decompose(5, [(0, 1), (1, 2), (2, 3), (1, 3), (3, 4)], ["", "p", "q", "r", ""], [-1, 0, 1, 2, -1])
    assert found.entry == [-1, 0, 1, 1, -1]
    assert found.chains == [[1, 3], [2]]
    assert sorted(found.order[slice(*found.span[3])]) == [1, 2, 3]
    nodes, edges = found.expand([3])
    assert nodes == [1, 3, 2]
    assert {(nodes[a], nodes[b], k) for a, b, k in edges} == {(1, 2, 1), (2, 3, 2), (1, 3, 3)}


def test_inputs_of_a_sum_may_be_swapped_but_not_those_of_a_difference() -> None:
    def motifs(op: str) -> list[int]:
        net, x = Net(4), "x"
        for swap in (False, True, False, True):
            y = net.conv(x, 4)
            x = net.op("MaxPool", net.op(op, *((x, y) if swap else (y, x))), kernel_shape=[1, 1])
        return [motif.count for motif in hierarchy.build(net.graph(x)).motifs]

    assert motifs("Add") == [4]
    assert motifs("Sub") == [2, 2]


def test_widths_do_not_split_motifs_but_strides_do() -> None:
    net = Net(4)
    x = residual(net, residual(net, net.conv("x", 8), 8), 8)
    x = residual(net, residual(net, net.conv(x, 16, 1), 16), 16)
    found = hierarchy.build(net.graph(x))
    assert [motif.count for motif in found.motifs] == [4]
    net = Net(4)
    x = net.relu(net.conv(net.relu(net.conv("x", 4)), 4, stride=2))
    x = net.relu(net.conv(net.relu(net.conv(x, 4)), 4, stride=2))
    found = hierarchy.build(net.graph(x))
    assert [motif.count for motif in found.motifs] == [2]  # both together; each stride alone would be two motifs
    assert hierarchy.describe(found)[0].startswith("M1: 2 times, 100.0% of MACs: conv3 relu conv3/2 relu")


def test_keys_do_not_depend_on_names_or_other_motifs() -> None:
    keys = []
    for start in (3, 7):
        net = Net()
        x = net.conv("x", start, 5) if start == 7 else "x"
        x = net.conv(x, 8, 1)
        for _ in range(3):
            x = residual(net, x, 8)
        keys.append({motif.key for motif in hierarchy.build(net.graph(x)).motifs})
    assert keys[0] == keys[1]


def test_blocks_inside_a_tangle_are_found() -> None:
    net = Net(4)
    a = net.conv("x", 4)
    b = residual(net, a, 4)
    c = residual(net, net.op("Concat", a, b, axis=1), 4)
    d = net.op("Concat", a, b, c, axis=1)  # neither concatenation ends a region
    found = hierarchy.build(net.graph(d))
    check(found)
    assert [motif.count for motif in found.motifs] == [2]


def test_several_ends_dead_ends_and_loose_parts() -> None:
    net = Net(4)
    net.inputs.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))
    net.op("Relu", "x")  # a dead end
    a = residual(net, "x", 4)
    b = residual(net, a, 4)
    net.op("Shape", a)
    found = hierarchy.build(net.graph(a, b))
    check(found)
    assert set(found.level1.succ[SOURCE]) == {"x", "unused"}
    assert len(found.level1.pred[SINK]) == 4
    assert [motif.count for motif in found.motifs] == [2]
    assert hierarchy.arrays(found, found.graph).edge_type.max() == EDGE_TYPES["virtual"]


def test_a_network_without_feature_maps() -> None:
    net = Net(4)
    net.inputs.clear()
    shape = onnx.numpy_helper.from_array(np.array([2]), "shape")
    net.weights["shape"] = shape
    found = hierarchy.build(net.graph(net.op("ConstantOfShape", "shape")))
    check(found)
    assert len(found.level1) == 0
    assert hierarchy.describe(found) == ["no motif: 0 ops, 0.0% of MACs"]
    assert hierarchy.arrays(found, found.graph).edge_index.shape == (2, 0)
    assert hierarchy.channel_view(found.graph).n_nodes == 1


def test_values_that_a_subgraph_uses_are_inputs_of_its_node() -> None:
    net = Net(4)
    a = net.relu("x")
    branch = helper.make_graph(
        [helper.make_node("Neg", [a], ["inside"])], "branch", [], [helper.make_tensor_value_info("inside", 1, None)]
    )
    net.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    out = net.op("If", "flag", then_branch=branch, else_branch=branch)
    found = hierarchy.build(net.graph(out))
    assert {(u, d["type"], d["input"]) for u, _, d in found.level1.in_edges(out, data=True)} == {
        ("flag", "unknown", 0),
        (a, "unknown", 1),
    }


def test_deeply_nested_blocks() -> None:
    net, opened = Net(4), ["x"]
    for _ in range(1500):
        opened.append(net.relu(opened[-1]))
    x = opened.pop()
    while opened:
        x = net.op("Add", x, opened.pop())
    check(hierarchy.build(net.graph(x)))


@pytest.mark.parametrize(("n_blocks", "limit_s"), [(60, 1.0), (1000, 10.0)])  # ten times what it takes on an idle core
def test_speed(n_blocks: int, limit_s: float) -> None:
    net, x = Net(4), "x"
    for _ in range(n_blocks):
        x = residual(net, x, 4)
    graph = net.graph(x)
    start = time.perf_counter()
    found = hierarchy.build(graph)
    assert time.perf_counter() - start < limit_s
    assert [motif.count for motif in found.motifs] == [n_blocks]
    assert len(found.level2) == n_blocks + 1


@pytest.mark.parametrize(
    ("blocks", "n_nodes", "n_edges"), [((3, 4, 6, 6), 31_997, 63_893), ((3, 4, 6, 3), 22_772, 45_458)]
)
def test_channel_view_has_the_papers_size(blocks: tuple[int, ...], n_nodes: int, n_edges: int) -> None:
    graph = bottleneck_net(blocks)
    found = hierarchy.channel_view(graph)
    assert (found.n_nodes, found.n_edges) == (n_nodes, n_edges)
    assert found.edge_index.shape == (2, n_edges) and found.layer.shape == (n_nodes,)
    assert (found.edge_index[0] < found.edge_index[1]).all()
    assert np.bincount(found.edge_index[1], minlength=n_nodes)[1:].min() > 0  # all but the source are reached
    assert found.is_filter.sum() == (n_edges - 2 - sum(blocks)) // 2
    counts = [motif.count for motif in hierarchy.build(graph).motifs]
    assert sorted(counts) == [3, sum(blocks) - 4]  # strided and plain bottlenecks; the first projection is unique


@pytest.mark.parametrize(("depth", "n_nodes", "n_edges"), [(20, 710, 1387), (56, 2090, 4093), (110, 4160, 8152)])
@pytest.mark.parametrize("option", ["A", "B"])
def test_channel_view_of_cifar_resnets(depth: int, n_nodes: int, n_edges: int, option: str) -> None:
    net = Net()
    x = net.relu(net.conv("x", 16))
    for n in (16, 32, 64):
        for block in range((depth - 2) // 6):
            stride = 2 if n > 16 and block == 0 else 1
            y = net.conv(net.relu(net.conv(x, n, 3, stride)), n)
            if stride == 2:
                x = net.conv(x, n, 1, 2) if option == "B" else net.op("Identity", net.op("Identity", x))
            x = net.relu(net.op("Add", y, x))
    found = hierarchy.channel_view(net.graph(net.op("GlobalAveragePool", x)))
    assert (found.n_nodes, found.n_edges) == (n_nodes - 1, n_edges - 1)  # the papers' code adds a pool after the stem


def test_channel_view_of_vgg16() -> None:
    net, x = Net(), "x"
    for widths in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for n in widths:
            x = net.relu(net.conv(x, n))
        x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    graph = net.graph(x)
    found = hierarchy.channel_view(graph)
    assert (found.n_nodes, found.n_edges) == (4243, 8453)
    assert [motif.count for motif in hierarchy.build(graph).motifs] == [13]
    drawn = found.to_networkx()
    assert (len(drawn), drawn.number_of_edges()) == (4243, 8453)
    assert drawn.nodes[0] == {"layer": -1, "is_filter": False}


def test_channel_view_joins_branches() -> None:
    net = Net()
    a = net.conv("x", 2)
    out = net.op("Concat", net.conv(a, 3), net.conv(a, 4, 1), axis=1)  # a 1x1 branch that is no shortcut
    found = hierarchy.channel_view(net.graph(out))
    assert found.n_nodes == 1 + 3 + 4 + 5
    assert found.n_edges == 2 * (2 + 3 + 4) + 1
    assert found.edge_index[:, -1].tolist() == [7, 12]


def test_arrays() -> None:
    net = Net(3, 16)
    x = net.conv("x", 8)
    for _ in range(2):
        x = residual(net, x, 8)
    x = net.op("GlobalAveragePool", net.conv(x, 8, group=8))
    graph = net.graph(x)
    found = hierarchy.build(graph)
    values = list(found.level1)
    arrays = hierarchy.arrays(found, graph, [frozenset({values[1], "w8x3x3x3"}), frozenset()])
    assert isinstance(arrays, GraphArrays)
    assert arrays.x.dtype == np.float32 and arrays.x.shape[0] == len(values) == 14
    assert np.isfinite(arrays.x).all() and arrays.x.min() >= 0 and arrays.x.max() <= 1
    assert arrays.edge_index.shape == (2, 15) and arrays.edge_index.dtype == np.int64
    assert [list(EDGE_TYPES)[i] for i in arrays.edge_type[[0, -2, -1]]] == ["conv3", "conv3-depthwise", "global-pool"]
    assert arrays.n_edge_types == len(EDGE_TYPES)
    assert [nodes.tolist() for nodes in arrays.group_nodes] == [[1], []]
    assert arrays.motif_of_node.tolist() == [-1, -1] + [0] * 10 + [-1, -1]
    assert arrays.edge_index2.shape == (2, 5)
    assert arrays.edge_type2[arrays.edge2_of_edge[1]] == arrays.n_edge_types == arrays.n_edge_types2 - 1
    assert (arrays.x2 == arrays.x[arrays.node_of_node2]).all()
    again = hierarchy.arrays(hierarchy.build(graph), graph)
    assert (again.x == arrays.x).all() and (again.edge_index == arrays.edge_index).all()
    assert arrays.x[1, 0] == np.float32(3 / 12) and arrays.x[1, 1] == np.float32(8 / 16)  # 8 channels of 16 x 16


def load(name: str) -> Graph:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not there")
    return graph_of(onnx.load(DATA / name))


# File: occurrences of the motifs with the most MACs, and the size of the channel view.
REAL = {
    "cifar10_resnet20_bn.onnx": ([7, 2], 709, 1386),
    "cifar10_resnet20_folded.onnx": ([7, 2], 709, 1386),
    "cifar10_resnet56_bn.onnx": ([25, 2], 2089, 4092),  # 27 blocks, two of them with a strided shortcut
    "cifar10_resnet56_folded.onnx": ([25, 2], 2089, 4092),
    "cifar10_tinyresnet_tf2onnx.onnx": ([2, 2], 609, 1204),  # widths 40, 80, 160
    "imagenet_mobilenetv2.onnx": ([10, 4], 17_110, 34_123),
    "face_rfb320.onnx": ([4, 3], None, None),
    "silero_vad_16k.onnx": ([2, 2], None, None),
}


@pytest.mark.parametrize("name", REAL)
def test_real_networks(name: str) -> None:
    counts, n_nodes, n_edges = REAL[name]
    graph = load(name)
    found = hierarchy.build(graph)
    check(found)
    lines = hierarchy.describe(found)
    assert [int(line.split(" times")[0].split(": ")[1]) for line in lines[:2]] == counts
    assert len(lines) == len(found.motifs) + 1
    arrays = hierarchy.arrays(found, graph)
    assert np.isfinite(arrays.x).all()
    channels = hierarchy.channel_view(graph)
    if n_nodes is not None:
        assert (channels.n_nodes, channels.n_edges) == (n_nodes, n_edges)
