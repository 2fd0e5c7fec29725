"""Data cards and samples: parsing, preprocessing, order, roles, fixed batches, and synthetic samples."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from PIL import Image

from agmc_onnx.data.card import NEEDS_LABELS, default_roles
from agmc_onnx.data.samples import InputSpec, Samples, load_card, open_data, synthetic
from agmc_onnx.errors import AgmcError, DataError, ModelError, UsageError
from agmc_onnx.measuring.session import model_inputs

FLOAT = np.dtype(np.float32)
NCHW = [InputSpec("input", FLOAT, (None, 3, 4, 4))]
ROLES = '[roles]\ncalibration = "0:2"\nreward = "2:6"\ntest = "6:10"\n'


def write_card(folder: Path, text: str) -> Path:
    path = folder / "card.toml"
    path.write_text(text)
    return path


def only(samples: Samples, batch_size: int = 100) -> np.ndarray:
    """The whole input of samples of one input that fit one batch."""
    (feed,) = samples.feeds(batch_size)
    (value,) = feed.values()
    return value


def fails(text: str, error: type[AgmcError] = DataError):
    return pytest.raises(error, match="^" + re.escape(text) + "$")


# --- cards


def test_card_reads_every_key(folder: Path) -> None:
    text = (
        'images = "x.npz"\nlabels = "y.npy"\ninput = "i"\nlayout = "NHWC"\ncolor = "BGR"\nresize = [8, 6]\ncrop = 4\n'
        f'scale = 255\nmean = [0.5, 0.4, 0.3]\nstd = 2\nmetric = "top5"\n{ROLES}'
        '[train]\nimages = "t.npz"\nslice = "3:9"\naugment = ["flip"]\n'
    )
    card = load_card(write_card(folder, text))
    assert card.images == folder / "x.npz" and card.labels == folder / "y.npy"
    assert (card.input, card.layout, card.color, card.metric) == ("i", "NHWC", "BGR", "top5")
    assert (card.resize, card.crop, card.scale) == ((8, 6), (4, 4), 255.0)
    assert (card.mean, card.std) == ((0.5, 0.4, 0.3), (2.0,))
    assert card.roles == {"calibration": (0, 2), "reward": (2, 6), "test": (6, 10)}
    assert card.train is not None and card.train.images == folder / "t.npz"
    assert (card.train.labels, card.train.slice, card.train.augment) == (None, (3, 9), ("flip",))


def test_overrides_win_and_none_is_not_given(folder: Path) -> None:
    path = write_card(folder, 'images = "x.npz"\nscale = 2.0\ncolor = "L"\n' + ROLES)
    card = load_card(path, scale=4.0, color=None, roles={"test": "0:3"}, crop=[2, 3])
    assert (card.scale, card.color, card.crop, card.roles) == (4.0, "L", (2, 3), {"test": (0, 3)})


def test_data_given_directly(folder: Path) -> None:
    assert load_card(folder / "x.npz").images == folder / "x.npz"
    (folder / "labels.csv").write_text("file,label\n")
    assert load_card(str(folder)).labels == folder / "labels.csv"


@pytest.mark.parametrize(
    "n, roles",
    [
        (3, {"calibration": (0, 1), "reward": (1, 2), "test": (2, 3)}),
        (100, {"calibration": (0, 66), "reward": (66, 83), "test": (83, 100)}),
        (1000, {"calibration": (0, 500), "reward": (500, 750), "test": (750, 1000)}),
        (50000, {"calibration": (0, 1000), "reward": (1000, 25500), "test": (25500, 50000)}),
    ],
)
def test_default_roles(n: int, roles: dict[str, tuple[int, int]]) -> None:
    assert default_roles(n) == roles


BAD_CARDS = [
    ("images = ", "card.toml: malformed card, got Invalid value"),
    (
        'scale = 1.0\nimage = "x.npz"',
        "card.toml: unknown key, got 'image'; expected one of images, labels, input, layout, ",
    ),
    ("scale = 1.0", "card.toml: no images named, got no key 'images'; expected a path. Add images = \"...\"."),
    ("images = 3", "card.toml: not a data card, images: expected `str`, got `int`. Correct it; "),
    ("images = 'x.npz'\nlayout = 'CHW'", "card.toml: bad layout, got 'CHW'; expected one of NCHW, NHWC. Choose one."),
    ("images = 'x.npz'\ncolor = 'rgb'", "card.toml: bad color, got 'rgb'; expected one of RGB, BGR, L. Choose one."),
    ("images = 'x.npz'\ninput = 3", "card.toml: not a data card, input: expected `str | null`, got `int`. "),
    ("images = 'x.npz'\ncrop = -1", "card.toml: not a data card, crop: expected `int` >= 1. "),
    ("images = 'x.npz'\nscale = 0", "card.toml: bad scale, got 0; expected a number other than 0. "),
    ("images = 'x.npz'\nmean = ['a']", "card.toml: not a data card, mean[0]: expected `float`, got `str`. "),
    ("images = 'x.npz'\nstd = [1, 0, 1]", "card.toml: bad std, got [1.0, 0.0, 1.0]; expected numbers above 0. "),
    (
        "images = 'x.npz'\nmetric = 'top3'",
        f"card.toml: unknown metric, got 'top3'; expected {', '.join(NEEDS_LABELS)} or \"module:function\". Choose one.",
    ),
    ("images = 'x.npz'\nroles = 3", "card.toml: not a data card, roles: expected `object`, got `int`. "),
    (
        "images = 'x.npz'\n[roles]\nrewards = '0:3'",
        "card.toml: unknown role, got 'rewards'; expected one of calibration, reward, test. Did you mean 'reward'?",
    ),
    (
        "images = 'x.npz'\n[roles]\nreward = '0:6'\ntest = '5:9'",
        "card.toml: roles overlap, got reward = 0:6 and test = 5:9; expected slices that share no sample. "
        "Move one of them.",
    ),
    (
        "images = 'x.npz'\n[roles]\ntest = '5:5'",
        "card.toml [roles] test: empty role, got 5:5; expected at least one sample. Make stop larger than start.",
    ),
    ("images = 'x.npz'\n[roles]\ntest = '5'", "card.toml [roles] test: not a slice, got '5'; expected \"start:stop\""),
    ("images = 'x.npz'\ntrain = 3", "card.toml: not a data card, train: expected `object | null`, got `int`. "),
    (
        f"images = 'x.npz'\n{ROLES}[train]\nslices = '0:2'",
        "card.toml [train]: unknown key, got 'slices'; expected one of ",
    ),
    (
        f"images = 'x.npz'\n{ROLES}[train]\nslice = '0:3'",
        "card.toml: roles overlap, got train = 0:3 and reward = 2:6 of the same images; expected slices that ",
    ),
    (
        f"images = 'x.npz'\n{ROLES}[train]\n",
        "card.toml: roles overlap, got train on all images and reward = 2:6 of the same",
    ),
    (
        "images = 'x.npz'\n[train]\n",
        "card.toml: roles overlap, got [train] of the same images and no [roles]; expected both.",
    ),
    (
        "images = 'x.npz'\n[train]\nimages = 'y.npz'\naugment = 'flip'",
        "card.toml: not a data card, train.augment: expected `array`, got `str`. ",
    ),
    (
        "images = 'x.npz'\n[train]\nimages = 'y.npz'\naugment = ['blur']",
        "card.toml [train]: bad augment, got 'blur'; expected one of flip, crop. Choose one.",
    ),
]


@pytest.mark.parametrize("text, message", BAD_CARDS)
def test_bad_card(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match="^" + re.escape(message)) as caught:
        load_card(write_card(folder, text))
    assert "\n" not in str(caught.value)


def test_unknown_key_suggests_the_nearest(folder: Path) -> None:
    with pytest.raises(DataError, match=r"got 'colour'; .* Did you mean 'color'\?$"):
        load_card(folder / "x.npz", colour="RGB")


def test_missing_card_and_unknown_kind(folder: Path) -> None:
    with fails(
        "no.toml: no such data, got a path where nothing is; "
        "expected a .toml card, an .npz file, a folder or 'digits'. Check the path."
    ):
        load_card("no.toml")
    (folder / "x.csv").write_text("")
    with fails("x.csv: unknown kind of data, got '.csv'; expected a .toml card, an .npz or a folder. Write a card."):
        load_card(folder / "x.csv")


# --- images


def test_images_are_normalised_and_laid_out(folder: Path, images: np.ndarray) -> None:
    card = load_card(folder / "x.npz", scale=255.0, mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3], roles={"test": "6:10"})
    expected = (images[6:10] / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    value = only(open_data(card, NCHW).role("test"))
    assert value.dtype == np.float32 and value.flags.c_contiguous
    np.testing.assert_allclose(value, expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)  # 4 float32 operations
    nhwc = load_card(folder / "x.npz", layout="NHWC", color="BGR", scale=1.0, roles={"test": "6:10"})
    value = only(open_data(nhwc, [InputSpec("i", FLOAT, (None, 4, 4, 3))]).role("test"))
    np.testing.assert_array_equal(value, images[6:10, ..., ::-1])


def test_scale_defaults_to_255_only_for_8_bit_images_and_float_inputs(folder: Path, images: np.ndarray) -> None:
    card = load_card(folder / "x.npz", layout="NHWC", roles={"test": "0:10"})
    assert only(open_data(card, [InputSpec("i", FLOAT, (None, 4, 4, 3))]).role("test")).max() <= 1
    as_bytes = only(open_data(card, [InputSpec("i", np.dtype(np.uint8), (None, 4, 4, 3))]).role("test"))
    np.testing.assert_array_equal(as_bytes, images)
    np.savez(folder / "f.npz", x=images.astype(np.float32))
    card = load_card(folder / "f.npz", layout="NHWC", roles={"test": "0:10"})
    np.testing.assert_array_equal(only(open_data(card, [InputSpec("i", FLOAT, (None, 4, 4, 3))]).role("test")), images)


def test_gray_images_for_one_and_for_three_channels(folder: Path, images: np.ndarray) -> None:
    np.savez(folder / "g.npz", x=images[..., 0])
    one = load_card(folder / "g.npz", color="L", scale=1.0, roles={"test": "0:10"})
    value = only(open_data(one, [InputSpec("i", FLOAT, (None, 1, 4, 4))]).role("test"))
    np.testing.assert_array_equal(value[:, 0], images[..., 0])
    assert only(open_data(one, [InputSpec("i", FLOAT, (None, 16))]).role("test")).shape == (10, 16)
    assert only(open_data(one, [InputSpec("i", FLOAT, (None, 4, 4))]).role("test")).shape == (10, 4, 4)
    three = load_card(folder / "g.npz", scale=1.0, roles={"test": "0:10"})
    value = only(open_data(three, NCHW).role("test"))
    np.testing.assert_array_equal(value, np.repeat(images[..., :1], 3, axis=3).transpose(0, 3, 1, 2))
    luma = load_card(folder / "x.npz", color="L", scale=1.0, roles={"test": "0:10"})
    value = only(open_data(luma, [InputSpec("i", FLOAT, (None, 1, 4, 4))]).role("test"))
    pil = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    assert np.abs(value[:, 0] - pil).max() <= 1  # PIL computes in fixed point


def test_resize_and_crop(tmp_path: Path) -> None:
    x = np.zeros((3, 9, 6, 3), np.uint8)
    x[:, 4, 1:4] = 50  # with a margin of 9 - 4 and 6 - 3, rows 2..5 and columns 1..3 stay
    np.savez(tmp_path / "x.npz", x=x)
    card = load_card(tmp_path / "x.npz", layout="NHWC", scale=1.0, crop=[4, 3], roles={"test": "0:3"})
    value = only(open_data(card, [InputSpec("i", FLOAT, (None, 4, 3, 3))]).role("test"))
    np.testing.assert_array_equal(value, x[:, 2:6, 1:4])
    for size, shape in [(3, (4, 3)), ([5, 7], (5, 7))]:  # shorter side 3: 9 * 3 / 6 = 4.5, rounded down
        card = load_card(tmp_path / "x.npz", layout="NHWC", scale=1.0, resize=size, roles={"test": "0:3"})
        value = only(open_data(card, [InputSpec("i", FLOAT, (None, None, None, 3))]).role("test"))
        assert value.shape == (3, *shape, 3)
        pil = Image.fromarray(x[0]).resize(shape[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(value[0], np.asarray(pil))


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path)


def test_folder_of_classes_is_spread_so_that_every_slice_is_fair(tmp_path: Path, images: np.ndarray) -> None:
    for i in range(8):
        save(tmp_path / "cat" / f"{i}.png", np.full((4, 4, 3), i, np.uint8))
    for i in range(2):
        save(tmp_path / "dog" / f"{i}.png", np.full((4, 4, 3), 100 + i, np.uint8))
    card = load_card(tmp_path, scale=1.0)
    dataset = open_data(card, NCHW)
    assert (dataset.n, dataset.metric, dataset.roles["test"]) == (10, "top1", (5, 10))
    assert dataset.role("reward").labels.tolist() == [0, 1, 0, 0]
    assert dataset.role("test").labels.tolist() == [0, 0, 1, 0, 0]
    assert only(dataset.role("test"))[:, 0, 0, 0].tolist() == [4, 5, 101, 6, 7]


def test_folders_named_by_numbers_are_the_labels(tmp_path: Path, images: np.ndarray) -> None:
    for name in ("2", "10", "7"):
        save(tmp_path / name / "a.png", images[0])
    card = load_card(tmp_path, roles={"test": "0:3"})
    assert open_data(card, NCHW).role("test").labels.tolist() == [2, 7, 10]


def test_folder_with_labels_csv_is_in_order_of_names(tmp_path: Path, images: np.ndarray) -> None:
    for name, image in zip(["b.png", "a.png", "c.PNG"], images, strict=False):
        save(tmp_path / name, image)
    (tmp_path / "labels.csv").write_text("file,label\nc.PNG,5\nb.png,3\na.png,4\n")
    dataset = open_data(load_card(tmp_path, layout="NHWC", scale=1), [InputSpec("i", FLOAT, (None, 4, 4, 3))])
    assert [dataset.role(name).labels for name in ("reward", "test")] == [[3], [5]]
    np.testing.assert_array_equal(only(dataset.role("test"))[0], images[2])


def test_sorted_labels_are_spread_for_default_roles_only(folder: Path, images: np.ndarray) -> None:
    np.savez(folder / "s.npz", x=images, y=[0] * 5 + [1] * 5)
    assert open_data(load_card(folder / "s.npz"), NCHW).role("test").labels.tolist() == [1, 0, 1, 0, 1]
    given = load_card(folder / "s.npz", roles={"test": "5:10"})
    assert open_data(given, NCHW).role("test").labels.tolist() == [1] * 5


# --- roles, batches, training images


def test_calibration_never_has_labels(folder: Path) -> None:
    dataset = open_data(load_card(write_card(folder, 'images = "x.npz"\n' + ROLES)), NCHW)
    calibration, reward = dataset.role("calibration"), dataset.role("reward")
    assert calibration.labels is None and all(labels is None for _, labels in calibration.batches(1))
    assert reward.labels.dtype == np.int64 and reward.labels.tolist() == [2, 0, 1, 2]


def test_batches_take_and_cached_feeds(folder: Path) -> None:
    samples = open_data(load_card(folder / "x.npz", roles={"test": "0:7"}), NCHW).role("test")
    batches = list(samples.batches(3))
    assert [len(feed["input"]) for feed, _ in batches] == samples.valid_rows(3) == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), samples.labels)
    assert samples.feeds(3) is samples.feeds(3)
    assert (samples.take(2).n, samples.take(2).labels.tolist(), samples.take(99).n) == (2, [0, 1], 7)


def test_a_fixed_batch_is_filled_up(folder: Path, images: np.ndarray) -> None:
    spec = [InputSpec("input", FLOAT, (4, 4, 4, 3))]
    samples = open_data(load_card(folder / "x.npz", layout="NHWC", scale=1, roles={"test": "0:6"}), spec).role("test")
    (first, labels), (last, last_labels) = samples.batches(100)
    assert (samples.batch_size(100), samples.valid_rows(100)) == (4, [4, 2])
    assert (labels.tolist(), last_labels.tolist()) == ([0, 1, 2, 0], [1, 2])
    np.testing.assert_array_equal(first["input"], images[:4])
    np.testing.assert_array_equal(last["input"], images[[4, 5, 5, 5]])


def test_train_is_a_slice_of_the_same_images_or_others(folder: Path, images: np.ndarray) -> None:
    card = 'images = "x.npz"\n[roles]\ntest = "0:4"\n[train]\n'
    train = open_data(load_card(write_card(folder, card + 'slice = "6:10"')), NCHW).role("train")
    assert train.labels.tolist() == [0, 1, 2, 0]
    np.savez(folder / "t.npz", x=images[:5])
    np.save(folder / "t.npy", np.array([5, 4, 3, 2, 1], np.uint8))
    other = load_card(write_card(folder, card + 'images = "t.npz"\nlabels = "t.npy"'))
    assert open_data(other, NCHW).role("train").labels.tolist() == [5, 4, 3, 2, 1]


def test_without_labels_the_metric_is_agreement(folder: Path, images: np.ndarray) -> None:
    np.savez(folder / "u.npz", x=images)
    assert open_data(load_card(folder / "u.npz"), NCHW).metric == "agreement"
    assert open_data(load_card(folder / "u.npz", metric="m:f"), NCHW).metric == "m:f"


def test_a_user_metric_gets_labels_of_any_shape(folder: Path, images: np.ndarray) -> None:
    y = np.linspace(0, 1, 20, dtype=np.float32).reshape(10, 2)
    np.savez(folder / "r.npz", x=images, y=y)
    samples = open_data(load_card(folder / "r.npz", metric="m:f", roles={"test": "2:4"}), NCHW).role("test")
    np.testing.assert_array_equal(samples.labels, y[2:4])


# --- arrays that are fed as they are


def test_arrays_named_like_the_inputs(tmp_path: Path) -> None:
    tokens, mask = np.arange(30, dtype=np.int32).reshape(5, 6), np.ones((5, 6))
    np.savez(tmp_path / "t.npz", tokens=tokens, mask=mask, y=np.arange(5))
    inputs = [InputSpec("tokens", np.dtype(np.int64), (None, None)), InputSpec("mask", FLOAT, (None, 6))]
    ((batch, labels),) = open_data(load_card(tmp_path / "t.npz"), inputs).role("test").batches(2)
    assert batch["tokens"].dtype == np.int64 and batch["mask"].dtype == np.float32
    assert (batch["tokens"].tolist(), labels.tolist()) == (tokens[3:5].tolist(), [3, 4])


def test_arrays_for_inputs_without_a_batch_axis(tmp_path: Path) -> None:
    arrays = {"audio": np.ones((3, 8), np.float32), "state": np.ones((3, 2, 1, 4)), "rate": np.array([8, 8, 16])}
    np.savez(tmp_path / "a.npz", **arrays)
    inputs = [
        InputSpec("audio", FLOAT, (1, 8)),
        InputSpec("state", FLOAT, (2, 1, 4)),
        InputSpec("rate", np.dtype(np.int64), ()),
    ]
    feeds = open_data(load_card(tmp_path / "a.npz", roles={"test": "0:3"}), inputs).role("test").feeds(100)
    assert [{name: a.shape for name, a in feed.items()} for feed in feeds] == [
        {"audio": (1, 8), "state": (2, 1, 4), "rate": ()}
    ] * 3
    assert [int(feed["rate"]) for feed in feeds] == [8, 8, 16]


def test_x_is_a_table_for_a_model_of_rank_2_and_images_for_one_of_rank_4(folder: Path, images: np.ndarray) -> None:
    np.savez(folder / "t.npz", x=np.ones((10, 5)))
    assert only(open_data(load_card(folder / "t.npz"), [InputSpec("in", FLOAT, (None, 5))]).role("test")).shape == (
        5,
        5,
    )
    named_x = [InputSpec("x", FLOAT, (None, 3, 4, 4))]
    assert only(open_data(load_card(folder / "x.npz"), named_x).role("test")).shape == (5, 3, 4, 4)


# --- synthetic samples and model inputs


def test_synthetic_samples_fit_every_input() -> None:
    inputs = [
        InputSpec("x", FLOAT, (None, 3, None), ("N", None, "T")),
        InputSpec("m", np.dtype(np.int64), (None, None), ("N", "T")),
        InputSpec("b", np.dtype(bool), (None, None), ("N", None)),
    ]
    samples = synthetic(inputs, 5, seed=1, sizes={"T": 7})
    (feed,) = samples.feeds(10)
    assert {name: (a.shape, str(a.dtype)) for name, a in feed.items()} == {
        "x": ((5, 3, 7), "float32"),
        "m": ((5, 7), "int64"),
        "b": ((5, 16), "bool"),
    }
    assert set(np.unique(feed["m"])) == {0, 1} and samples.labels is None
    (again,) = synthetic(inputs, 5, seed=1, sizes={"T": 7}).feeds(10)
    np.testing.assert_array_equal(feed["x"], again["x"])


def test_synthetic_samples_for_inputs_without_a_batch_axis() -> None:
    inputs = [
        InputSpec("audio", FLOAT, (None, None), ("N", "T")),
        InputSpec("state", FLOAT, (2, None, 8), (None, "N", None)),
        InputSpec("rate", np.dtype(np.int64), ()),
    ]
    feeds = synthetic(inputs, 3, seed=0).feeds(100)
    assert [[a.shape for a in feed.values()] for feed in feeds] == [[(1, 16), (2, 1, 8), ()]] * 3
    assert all(isinstance(a, np.ndarray) for a in feeds[0].values())


def test_a_fixed_batch_counts_with_what_it_is_filled_up_to() -> None:
    with fails(
        "input 'x': random samples of over 1 GiB, got [2147483648, 3, 8, 8]; expected smaller ones. Give real data with --data."
    ):
        synthetic([InputSpec("x", FLOAT, (2**31, 3, 8, 8))], 3, seed=0)


def test_synthetic_errors() -> None:
    text = [InputSpec("s", np.dtype(object), (None,))]
    with fails("input 's': no synthetic samples, got object; expected numbers or bool. Give real data with --data."):
        synthetic(text, 1, seed=0)
    with fails("synthetic samples: too few, got 0; expected at least 1. Ask for more.", UsageError):
        synthetic(NCHW, 0, seed=0)


def test_model_inputs_leave_initializers_out() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (float[N, 3] x, int64[2] k, float[3] w) => (float[N, 3] y) <float[3] w = {1, 2, 3}> { y = Add(x, w) }"
    )
    assert model_inputs(model) == [
        InputSpec("x", FLOAT, (None, 3), ("N", None)),
        InputSpec("k", np.dtype(np.int64), (2,), (None,)),
    ]


def test_model_inputs_that_cannot_be_fed() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\ng (seq(float[3]) x) => (float[3] y) { y = SequenceAt(x, x) }'
    )
    with fails(
        "input 'x': not a tensor, got sequence_type; expected tensor_type. Feed it from Python instead.", ModelError
    ):
        model_inputs(model)
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None))
    with fails("input 'x': rank unknown, got no shape; expected a shape. Export it with input shapes.", ModelError):
        model_inputs(model)


def test_digits_card_fits_its_images() -> None:
    card = load_card("digits")
    dataset = open_data(card, [InputSpec(card.input or "input", FLOAT, (None, 1, 8, 8))])
    assert [dataset.role(name).n for name in ("calibration", "reward", "test", "train")] == [150, 300, 350, 997]
    value = only(dataset.role("test"), 350)
    assert value.min() >= 0 and value.max() <= 1 and len(set(dataset.role("test").labels.tolist())) == 10


def test_an_array_x_feeds_an_input_x_as_it_is(tmp_path: Path) -> None:
    """The usual name of an input, in the layout that the model wants: no colours are its last dim."""
    x = np.arange(4 * 3 * 8 * 8, dtype=np.float32).reshape(4, 3, 8, 8)
    np.savez(tmp_path / "d.npz", x=x)
    inputs = [InputSpec("x", np.dtype(np.float32), (None, 3, None, None))]
    roles = {"calibration": "0:1", "reward": "1:2", "test": "2:4"}
    samples = open_data(load_card(tmp_path / "d.npz", roles=roles), inputs).role("test")
    assert (samples.feeds(2)[0]["x"] == x[2:]).all()
