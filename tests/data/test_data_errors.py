"""Data that cannot be used: what `open_data` says of it."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agmc_onnx.data.samples import InputSpec, load_card, open_data
from agmc_onnx.errors import DataError, UsageError
from tests.data.test_samples import FLOAT, NCHW, fails, save, write_card


def opened(path: Path, inputs: list[InputSpec] | None = None, **overrides: object) -> None:
    dataset = open_data(load_card(path, **overrides), NCHW if inputs is None else inputs)
    for role in dataset.roles:
        dataset.role(role).feeds(2)


def test_missing_images(folder: Path) -> None:
    path = write_card(folder, "images = 'no.npz'")
    with fails(
        f"card.toml: images missing, got {folder / 'no.npz'}; expected an .npz file or a folder. Correct `images`."
    ):
        opened(path)


def test_role_outside_of_the_data(folder: Path) -> None:
    with fails("x.npz: role test outside of the data, got 5:11; expected a slice of 0:10. End it at 10 or before."):
        opened(folder / "x.npz", roles={"test": "5:11"})


def test_role_that_is_not_there(folder: Path) -> None:
    dataset = open_data(load_card(folder / "x.npz", roles={"test": "5:9"}), NCHW)
    with fails("x.npz: no such role, got 'reward'; expected one of test. Add it under [roles]."):
        dataset.role("reward")
    with fails("x.npz: no training images, got no [train]; expected one. Add [train] with images."):
        dataset.role("train")


@pytest.mark.parametrize(
    "shape, overrides, text",
    [
        ((None, 3, 8, 8), {}, "got [N, 3, 4, 4]; expected [N, 3, 8, 8]. Write resize = 8 and crop = 8 in a card."),
        ((None, 4, 4, 3), {}, 'got [N, 3, 4, 4]; expected [N, 4, 4, 3]. Set layout = "NHWC".'),
        ((None, 3, 4, 4), {"layout": "NHWC"}, 'got [N, 4, 4, 3]; expected [N, 3, 4, 4]. Set layout = "NCHW".'),
        (
            (None, 1, 4, 4),
            {},
            'got [N, 3, 4, 4]; expected [N, 1, 4, 4]. Set color = "L" for one channel, "RGB" for three; ',
        ),
    ],
)
def test_images_of_the_wrong_size(folder: Path, shape: tuple[int | None, ...], overrides: dict, text: str) -> None:
    message = "x.npz: images of the wrong size for input 'input', " + text
    with pytest.raises(DataError, match="^" + re.escape(message)):
        opened(folder / "x.npz", [InputSpec("input", FLOAT, shape)], **overrides)


def test_a_crop_larger_than_the_image(folder: Path) -> None:
    with fails(
        "x.npz: image smaller than its crop, got [4, 4]; expected at least [5, 5]. Set resize, or a smaller crop."
    ):
        opened(folder / "x.npz", crop=5)


def test_wrong_inputs(folder: Path) -> None:
    two = [*NCHW, InputSpec("mask", FLOAT, (None, 4))]
    with fails("x.npz: no such graph input, got 'i'; expected one of input. Correct `input`."):
        opened(folder / "x.npz", input="i")
    with fails(
        "x.npz: images for a model of several inputs, got inputs input, mask; expected one input. "
        "Give an .npz whose arrays carry these names."
    ):
        opened(folder / "x.npz", two)
    with fails("x.npz: images for a model that takes none, got []; expected [N, ...]. Give an .npz with an array 'a'."):
        opened(folder / "x.npz", [InputSpec("a", FLOAT, ())])


def test_mean_of_the_wrong_length(folder: Path) -> None:
    with fails("x.npz: bad mean, got 2 numbers; expected 1 or 3, one for each channel. Correct mean or color."):
        opened(folder / "x.npz", mean=[0.0, 0.0])


def test_labels_that_do_not_fit(folder: Path, images: np.ndarray) -> None:
    np.savez(folder / "a.npz", x=images, y=np.arange(9))
    with fails(
        "a.npz: labels do not match the images, got 9 labels; expected 10 images. Give one label for each image."
    ):
        opened(folder / "a.npz")
    whole = 'Number the classes from 0, or use metric = "module:function".'
    for y, got in [(np.full(10, 0.5), "0.5"), (np.full(10, -1), "-1"), (np.full(10, np.nan), "nan")]:
        np.savez(folder / "a.npz", x=images, y=y)
        with fails(f"a.npz: labels are not whole numbers, got {got}; expected a class number. {whole}"):
            opened(folder / "a.npz")
    np.savez(folder / "a.npz", x=images, y=np.eye(10))
    with fails(
        "a.npz: labels of the wrong shape, got [10, 10]; expected [10]. "
        'Store class numbers, or use metric = "module:function".'
    ):
        opened(folder / "a.npz")


def test_labels_of_a_csv_that_do_not_fit(tmp_path: Path, images: np.ndarray) -> None:
    for name, image in zip(["a.png", "b.png"], images, strict=False):
        save(tmp_path / "i" / name, image)
    card = "images = 'i'\nlabels = 'l.csv'\n[roles]\ntest = '0:2'"
    path = write_card(tmp_path, card)
    with fails(f"card.toml: labels missing, got {tmp_path / 'l.csv'}; expected a .csv file. Correct `labels`."):
        opened(path)
    cases = [
        (
            "file,class\na.png,1\n",
            "card.toml l.csv: no column 'label', got file, class; expected columns file,label. Name the ",
        ),
        (
            "",
            "card.toml l.csv: no column 'file', got nothing; expected columns file,label. Name the columns in ",
        ),
        (
            "file,label\na.png,1\nz.png,2\n",
            "card.toml l.csv: no such image, got 'z.png'; expected a file in i. Correct the row.",
        ),
        (
            "file,label\na.png,1\n",
            "card.toml: labels do not match the images, got 1 labels; expected 2 images. Write one row ",
        ),
        (
            "file,label\na.png,1\nb.png,cat\n",
            "card.toml: labels are not whole numbers, got 'cat'; expected a class number. ",
        ),
        ("file,label\na.png,1\nb.png\n", "card.toml: labels are not whole numbers, got ''; expected a class number. "),
    ]
    for text, message in cases:
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(DataError, match="^" + re.escape(message)):
            opened(path)


def test_a_metric_that_needs_labels(folder: Path, images: np.ndarray) -> None:
    np.savez(folder / "u.npz", x=images)
    with fails(
        "u.npz: metric top1 needs labels, got images without labels; expected labels. "
        'Add labels, or set metric = "agreement".'
    ):
        opened(folder / "u.npz", metric="top1")


def test_folders_that_cannot_be_used(tmp_path: Path, images: np.ndarray) -> None:
    place = tmp_path / "i"
    place.mkdir()
    with pytest.raises(DataError, match=r"^i: no images in i, got 0 files; expected files \.jpg .* Check `images`\.$"):
        opened(place)
    save(place / "a.png", images[0])
    save(place / "cat" / "b.png", images[0])
    with fails(
        "i: i is of two kinds, got 1 images in folders and 1 beside them; "
        "expected one folder per class, or files only. Move the files."
    ):
        opened(place)
    (place / "cat" / "b.png").unlink()
    with fails("i: too few samples for three roles, got 1; expected at least 3. Add images."):
        opened(place)
    roles = {"test": "0:2"}
    save(place / "b.png", images[0, :3])
    with fails(
        "i b.png: images of different size, got [3, 4, 3] after [4, 4, 3]; expected one size. "
        "Set resize and crop in the card."
    ):
        opened(place, [InputSpec("i", FLOAT, (None, 3, None, None))], roles=roles)
    (place / "b.png").write_bytes(b"no image")
    kinds = "BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"
    with pytest.raises(
        DataError,
        match=rf"^i b\.png: cannot decode, got .*; expected an image, one of {kinds}\. Replace or remove the file\.$",
    ):
        opened(place, roles=roles)
    save(place / "b.png", np.zeros((4, 4), np.uint16))
    with fails("i b.png: more than 8 bits, got mode I;16; expected 8 bits. Store such images in an .npz as float."):
        opened(place, roles=roles)


def test_npz_that_cannot_be_used(folder: Path, images: np.ndarray) -> None:
    path = folder / "b.npz"
    path.write_bytes(b"no npz")
    with pytest.raises(
        DataError, match=r"^b\.npz: cannot read b\.npz, got .*; expected an \.npz of arrays\. Write it with"
    ):
        opened(path)
    np.savez(path, images=images)
    with fails(
        "b.npz: no samples in b.npz, got images; expected an array x (and y), or arrays input. Rename the arrays."
    ):
        opened(path)
    np.savez(path, x=np.zeros((10, 3, 5, 5), np.uint8))
    with fails(
        "b.npz: not images, got x [10, 3, 5, 5]; expected [N, H, W, 1, 3 or 4] or [N, H, W]. "
        "Transpose them, or name the array 'input' to feed it as it is."
    ):
        opened(path)
    np.savez(path, x=images.astype(np.int64))
    with fails("b.npz: not images, got x of int64; expected uint8 or float. Change its type."):
        opened(path)


def test_named_arrays_that_cannot_be_fed(tmp_path: Path) -> None:
    path = tmp_path / "n.npz"
    two = [InputSpec("a", FLOAT, (None, 3)), InputSpec("b", np.dtype(np.int64), (None,))]
    np.savez(path, a=np.ones((4, 3)), b=np.ones(5, int))
    with fails(
        "n.npz: arrays of different length, got a 4, b 5; expected one sample per row in each. Repeat or cut them."
    ):
        opened(path, two)
    np.savez(path, a=np.ones((4, 2)), b=np.ones(4, int))
    with fails(
        "n.npz: array 'a' of the wrong shape, got [4, 2]; expected [?, 3], first axis = sample. "
        "Store it as the model wants it."
    ):
        opened(path, two)
    np.savez(path, a=np.ones((4, 3)), b=np.ones(4))
    with fails("n.npz: array 'b' of the wrong type, got float64; expected int64. Store it in that type."):
        opened(path, two)
    np.savez(path, a=np.ones((4, 3)), b=np.ones(4, int))
    with fails(
        "n.npz: scale is for images, got arrays that are fed as they are; expected no scale. "
        "Remove it, and store the arrays as the model wants them."
    ):
        opened(path, two, scale=2.0)
    fixed = [InputSpec("a", FLOAT, (2, 3)), InputSpec("b", np.dtype(np.int64), (4,))]
    with fails(
        "n.npz: inputs of different fixed batch, got a [2, 3], b [4]; expected one batch size. "
        "Give such inputs arrays of one dim more than the input."
    ):
        opened(path, fixed)


def test_batch_size_and_take_are_positive(folder: Path) -> None:
    samples = open_data(load_card(folder / "x.npz"), NCHW).role("test")
    with fails("batch size: too small, got 0; expected at least 1. Use for example 100.", UsageError):
        samples.feeds(0)
    with fails("x.npz test: cannot take samples, got 0; expected at least 1. Ask for more.", UsageError):
        samples.take(0)


def test_no_other_program_is_started_for_an_image(
    tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands an EPS to Ghostscript, whatever the file is called."""
    bin_folder, trace = tmp_path / "bin", tmp_path / "started"
    bin_folder.mkdir()
    (bin_folder / "gs").write_text(f"#!/bin/sh\ntouch {trace}\n")
    (bin_folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    (tmp_path / "i").mkdir()
    for name in "abc":
        Image.fromarray(images[0]).save(tmp_path / "i" / f"{name}.png", "EPS")
    with pytest.raises(DataError, match=r"^i a\.png: cannot decode, got cannot identify image file"):
        opened(tmp_path / "i")
    assert not trace.exists()


def archive(path: Path, shape: tuple[int, ...], data: bytes, descr: str = "|u1") -> Path:
    """Write an .npz whose x claims a shape, whatever data it has."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", header.getvalue() + data)
    return path


def test_npz_that_claims_more_than_it_holds(folder: Path) -> None:
    path = archive(folder / "b.npz", (12, 2**15, 2**15, 3), b"\0" * 100)
    with fails(
        "b.npz: b.npz: x.npy claims more than it holds, got 38,654,705,664 bytes of [12, 32768, 32768, 3];"
        " expected at most 228. Write it again."
    ):
        opened(path)
    with (folder / "y.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (10**9,)})
    with fails(
        "x.npz: y.npy claims more than it holds, got 8,000,000,000 bytes of [1000000000]; expected at most 128. Write it again."
    ):
        opened(folder / "x.npz", labels=str(folder / "y.npy"))


def test_npz_that_unpacks_to_too_much(folder: Path) -> None:
    """3 MB of zeros packed a thousandfold."""
    path = folder / "b.npz"
    block = bytes(2**26)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("x.npy", "w", force_zip64=True) as x,
    ):
        np.lib.format.write_array_header_1_0(x, {"descr": "|u1", "fortran_order": False, "shape": (33, 2**26)})
        for _ in range(33):
            x.write(block)
    with pytest.raises(
        DataError,
        match=r"^b\.npz: b\.npz unpacks to too much, got 2\.1 GiB out of \d+\.\d MiB; expected 2 GiB, or twenty times the"
        r" file's size\. Write it with numpy\.savez\.$",
    ):
        opened(path)


def test_an_image_that_would_be_too_large(folder: Path) -> None:
    with fails(
        "resize: an image of no usable size, got [100000, 100000]; expected 1 to 67,108,864 pixels. Make it smaller."
    ):
        opened(folder / "x.npz", resize=100_000)


def test_labels_that_are_dates(folder: Path, images: np.ndarray) -> None:
    np.savez(folder / "d.npz", x=images, y=np.arange(10).astype("M8[D]"))
    with fails(
        "d.npz: labels are not whole numbers, got datetime64[D]; expected class numbers. Number the classes from 0."
    ):
        opened(folder / "d.npz")


def test_an_array_without_names_is_no_npz(folder: Path, images: np.ndarray) -> None:
    np.save(folder / "x.npy", images)
    card = write_card(folder, "images = 'x.npy'")
    with fails(
        "card.toml: cannot read x.npy, got File is not a zip file; expected an .npz of arrays."
        " Write it with numpy.savez(path, x=..., y=...)."
    ):
        opened(card)
