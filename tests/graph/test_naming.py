import nets
import pytest

from agmc_onnx.graph.naming import is_numbered, layer_name
from agmc_onnx.graph.view import graph_of


@pytest.mark.parametrize(
    ("name", "numbered"),
    [
        ("onnx::Conv_127", True),
        ("const_fold_opt__422", True),
        ("218", True),
        ("val_12", True),
        ("node_conv2d_3", True),
        ("Conv_5", True),
        ("", True),
        ("layer1.0.conv1.weight", False),
        ("/stages/stages.0/conv1/Conv", False),
        ("features_0", False),
    ],
)
def test_numbered_names_are_told_from_an_authors(name, numbered):
    assert is_numbered(name) is numbered


@pytest.mark.parametrize(
    ("weight", "node", "wanted"),
    [
        ("layer1.0.conv1.weight", "/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("onnx::Conv_1", "/layer1/layer1.0/conv1/Conv", "layer1.0/conv1"),
        ("const_fold_opt__2", "StatefulPartitionedCall/model_4/conv2d_36/BiasAdd;model_4/conv2d_36/Conv2D1", "model_4/conv2d_36"),
        ("const_fold_opt__2", "model_4/conv2d_38/Conv2D;model_4/conv2d_36/Conv2D1", "Conv 1 of 2"),
        ("model/dense/MatMul/ReadVariableOp:0", "MatMul__7", "model/dense"),
        ("onnx::Conv_1", "Conv_0", "Conv 1 of 2"),
        ("onnx::Conv_1#2", "stem", "stem (2)"),
    ],
)  # fmt: skip
def test_layers_are_called_as_their_author_did_or_by_their_place(weight, node, wanted):
    text = "agraph (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] z) { y = Conv(x, w) z = Conv(y, v) }"
    model = nets.model(text, {"w": (4, 3, 1, 1), "v": (2, 4, 1, 1)})
    graph = model.graph
    name = weight.partition("#")[0]
    graph.initializer[0].name = graph.node[0].input[1] = name
    graph.node[0].name = node
    assert layer_name(graph_of(model), weight) == wanted
