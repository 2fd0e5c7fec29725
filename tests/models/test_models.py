import logging
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from models.counting import count_macs, count_params
from models.digits.train import IMAGES, MODEL, REWARD, TEST, TRAIN, measure_accuracy, read_images, shift_images
from models.export import to_onnx
from models.layers import scale_channels
from models.resnet import PaddedSubsample
from models.shufflenet import shuffle_channels
from models.weights import randomise
from models.zoo import BUILDERS, build

torch.set_num_threads(1)

# name -> (options, image size) of a variant that runs and exports in well under a second
SMALL = {
    "resnet20": ({}, 32),
    "resnet32": ({"width": 0.5}, 32),
    "resnet44": ({"shortcut": "B"}, 32),
    "resnet56": ({}, 32),
    "resnet110": ({}, 32),
    "resnet50": ({"width": 0.125}, 64),
    "resnet_3466": ({"width": 0.125}, 64),
    "vgg16": ({"width": 0.125, "size": 64, "n_classes": 50}, 64),
    "vgg16_bn": ({"width": 0.125, "size": 32}, 32),
    "vgg16_cifar": ({"width": 0.25}, 32),
    "vgg16_bn_cifar": ({"width": 0.25}, 32),
    "mobilenet_v1": ({"width": 0.25}, 64),
    "mobilenet_v2": ({"width": 0.25}, 64),
    "shufflenet_v1": ({"width": 0.25, "groups": 3}, 64),
    "shufflenet_v2": ({"width": 0.25}, 64),
}


def build_small(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a small variant and a batch of three inputs for it."""
    options, size = SMALL[name]
    return build(name, **options), torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def run_torch(module: nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return module(x).numpy()


def run_onnx(model: onnx.ModelProto, x: torch.Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Assert equality up to float32 rounding: up to 110 layers, each of relative error about 1e-6."""
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def count_ops(model: onnx.ModelProto, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph.node)


# Numbers of millions. CIFAR: seed-systems.md 4.2. The others: the papers' and torchvision's published counts.
@pytest.mark.parametrize(
    ("name", "options", "macs", "params"),
    [
        ("resnet20", {}, 40.55, 0.270),
        ("resnet32", {}, 68.86, 0.464),
        ("resnet44", {}, 97.17, 0.659),
        ("resnet56", {}, 125.49, 0.853),
        ("resnet110", {}, 252.89, 1.728),
        ("resnet50", {}, 4089.18, 25.557),
        ("vgg16", {}, 15470.26, 138.358),
        ("vgg16_bn", {}, 15470.26, 138.366),
        ("vgg16_cifar", {}, 313.20, 14.720),
        ("mobilenet_v1", {}, 568.74, 4.232),
        ("mobilenet_v2", {}, 300.77, 3.505),
        ("shufflenet_v2", {"width": 0.5}, 40.48, 1.367),
        ("shufflenet_v2", {}, 144.91, 2.279),
    ],
)
def test_cost_is_the_published_one(name: str, options: dict[str, float], macs: float, params: float) -> None:
    with torch.device("meta"):
        module = BUILDERS[name].make(**options)
    assert round(count_macs(module, BUILDERS[name].input_shape) / 1e6, 2) == macs
    assert round(count_params(module) / 1e6, 3) == params


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
def test_shufflenet_v1_costs_about_the_same_for_all_groups(groups: int) -> None:
    with torch.device("meta"):
        module = BUILDERS["shufflenet_v1"].make(groups=groups)
    macs = count_macs(module, BUILDERS["shufflenet_v1"].input_shape)
    assert 125e6 < macs < 147e6  # arXiv:1707.01083 table 2: 133 to 143 million, without the linear layer's 1 million


def test_macs_of_a_grouped_strided_convolution() -> None:
    module = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)
    assert count_macs(module, (5, 8, 10, 10)) == 5 * 5 * 12 * (8 // 4) * 9


def test_all_networks_have_a_small_variant() -> None:
    assert SMALL.keys() == BUILDERS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_torchscript_export_equals_torch(name: str) -> None:
    module, x = build_small(name)
    expected = run_torch(module, x)
    assert expected.shape == (3, SMALL[name][0].get("n_classes", 10 if BUILDERS[name].input_shape[2] == 32 else 1000))
    assert 0.1 < expected.std() < 100.0
    assert np.abs(expected - expected.mean(axis=0)).max() > 1e-3  # it depends on the input
    model = to_onnx(module, (1, *x.shape[1:]))
    assert_same(run_onnx(model, x), expected)
    assert count_ops(model, "BatchNormalization") == 0
    assert model.opset_import[0].version == 17
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_shufflenet_v1_takes_any_number_of_groups() -> None:
    module = build("shufflenet_v1", groups=5, width=0.25, n_classes=10)
    x = torch.ones(2, 3, 64, 64)
    assert_same(run_onnx(to_onnx(module, (1, 3, 64, 64)), x), run_torch(module, x))


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("keep_batchnorm", [False, True])
def test_exporters_keep_or_fold_batchnorm(exporter: str, keep_batchnorm: bool) -> None:
    module = build("resnet20", depth=8)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model = to_onnx(module, (1, *x.shape[1:]), exporter=exporter, keep_batchnorm=keep_batchnorm)
    assert_same(run_onnx(model, x), run_torch(module, x))
    n_norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    assert count_ops(model, "BatchNormalization") == (n_norms if keep_batchnorm else 0)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_export_writes_a_file_prints_nothing_and_leaves_the_mode(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = build("vgg16_cifar", width=0.125).train()
    model = to_onnx(module, (1, 3, 32, 32), tmp_path / "vgg.onnx")
    assert onnx.load(tmp_path / "vgg.onnx") == model
    assert capfd.readouterr() == ("", "")
    assert module.training
    assert logging.root.manager.disable == logging.NOTSET


def test_same_seed_gives_the_same_weights_and_leaves_the_global_generator() -> None:
    state = torch.get_rng_state()
    first, again, other = (build("resnet20", seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_randomise_leaves_nothing_at_its_default() -> None:
    for name in ("resnet44", "vgg16_bn_cifar", "shufflenet_v1"):
        for key, tensor in build_small(name)[0].state_dict().items():
            if not key.endswith("num_batches_tracked"):
                assert tensor.std() > 0, key
                assert torch.count_nonzero(tensor) == tensor.numel(), key


def test_padded_subsample_moves_channels_to_the_middle() -> None:
    x = torch.randn(1, 2, 4, 4)
    y = PaddedSubsample(2, 6, 2)(x)
    assert torch.equal(y[:, 2:4], x[:, :, ::2, ::2])
    assert torch.count_nonzero(y) == 8


def test_shuffle_channels_interleaves_the_groups() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle_channels(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_scale_channels_rounds_up_where_rounding_down_loses_a_tenth() -> None:
    assert [scale_channels(n, 0.7, 8) for n in (16, 32, 64, 100)] == [16, 24, 48, 72]
    assert [scale_channels(n, 0.707) for n in (16, 32, 64)] == [11, 23, 45]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("resnet21"), r"build: unknown network, got 'resnet21'; expected one of resnet20, "),
        (lambda: BUILDERS["resnet20"].make(depth=21), r"no such depth, got 21; expected 6n \+ 2"),
        (lambda: build("resnet20", shortcut="C"), r"unknown option, got 'C'; expected one of A, B"),
        (lambda: build("vgg16", size=50), r"size, got 50; expected a positive multiple of 32"),
        (lambda: build("vgg16", head="x", width=0.1), r"unknown head, got 'x'; expected imagenet or cifar"),
        (lambda: to_onnx(nn.ReLU(), (1, 3), exporter="x"), r"got 'x'; expected one of torchscript, dynamo"),
        (lambda: randomise(nn.PReLU(), torch.Generator()), r"got PReLU; expected Conv2d, Linear or BatchNorm2d"),
    ],
)
def test_errors_list_the_choices(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_digits_are_scikit_learns_each_once() -> None:
    from sklearn.datasets import load_digits

    with np.load(IMAGES) as arrays:
        x, y = arrays["x"], arrays["y"]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1797, 8, 8, 1), np.uint8, (1797,), np.uint8)
    digits = load_digits()
    expected = sorted((*image.ravel(), label) for image, label in zip(digits.images, digits.target, strict=True))
    assert sorted((*image.ravel(), label) for image, label in zip(x, y, strict=True)) == expected
    assert IMAGES.stat().st_size < 60_000


def test_digits_roles_do_not_overlap() -> None:
    assert 150 == REWARD.start < REWARD.stop == TEST.start < TEST.stop == TRAIN.start < TRAIN.stop == 1797


def test_digits_card_names_the_slices_of_the_training_script() -> None:
    card = IMAGES.with_name("digits.toml").read_text()
    for key, rows in {"reward": REWARD, "test": TEST, "slice": TRAIN}.items():
        assert re.search(rf'^{key} = "{rows.start}:{rows.stop}"$', card, re.MULTILINE)


def test_shift_images_moves_by_at_most_one_pixel() -> None:
    images = torch.zeros(200, 1, 8, 8)
    images[:, :, 4, 4] = 1.0
    shifted = shift_images(images, torch.Generator().manual_seed(0))
    assert shifted.shape == images.shape
    assert (shifted.sum((1, 2, 3)) == 1).all()
    assert (shifted.sum(0)[0] > 0).nonzero().tolist() == [[row, column] for row in (3, 4, 5) for column in (3, 4, 5)]


def test_digits_network_is_what_its_readme_says() -> None:
    readme = (Path(__file__).parents[2] / "models" / "digits" / "README.md").read_text()

    def read(pattern: str) -> str:
        match = re.search(pattern, readme)
        assert match is not None, pattern
        return match[1].replace(",", "")

    model = onnx.load(MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert MODEL.stat().st_size == int(read(r"\| file size \| ([\d,]+) bytes")) < 600_000
    assert count_ops(model, "Conv") == int(read(r"\| convolutions \| (\d+)"))
    for role, rows in {"reward": REWARD, "test": TEST}.items():
        accuracy = measure_accuracy(MODEL, *read_images(IMAGES, rows))
        # one image may flip between processors: 0.34 points of 300 images
        assert abs(100 * accuracy - float(read(rf"\| top-1, \d+ {role} images \| ([\d.]+) %"))) < 0.34
