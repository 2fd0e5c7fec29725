"""Images as a model wants them: decoded, resized, cropped, coloured, normalised, laid out and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from agmc_onnx.data.card import DataCard, InputSpec, Size, bad_data, shape_text
from agmc_onnx.errors import DataError

BGR = np.array([2, 1, 0])
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of no other: an EPS would start Ghostscript
MOST_PIXELS = 2**26  # of one image, also after resizing
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as PIL's convert("L")


def decode_all(where: str, card: DataCard, files: Sequence[Path]) -> np.ndarray:
    """Return the decoded, resized, cropped and coloured images, uint8 of shape (k, H, W, C).

    Raises:
        DataError: If a file is no 8-bit image, is too small for the crop, or the images end up of different size.
    """
    images: list[np.ndarray] = []
    for path in files:
        try:
            with Image.open(path, formats=FORMATS) as image:
                _check_size(f"{where} {path.name}", image.height, image.width)
                if image.mode[0] in "IF":
                    todo = "Store such images in an .npz as float."
                    raise bad_data(f"{where} {path.name}", "more than 8 bits", f"mode {image.mode}", "8 bits", todo)
                pixels = np.asarray(image.convert("L" if card.color == "L" else "RGB"))
        except DataError:
            raise
        except Exception as error:  # Pillow's decoders raise whatever a broken file makes them
            todo, expected = "Replace or remove the file.", "an image, one of " + ", ".join(FORMATS)
            raise bad_data(f"{where} {path.name}", "cannot decode", f"{error}"[:120], expected, todo) from None
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if card.resize:
            pixels = resize(pixels, card.resize, card.pad)
        pixels = crop(f"{where} {path.name}", pixels[None], card.crop)[0]
        if images and pixels.shape != images[0].shape:
            got = f"{shape_text(pixels.shape)} after {shape_text(images[0].shape)}"
            todo = "Set resize and crop in the card."
            raise bad_data(f"{where} {path.name}", "images of different size", got, "one size", todo)
        images.append(pixels)
    return convert(np.stack(images), card.color)


def resize(image: np.ndarray, size: int | Size, pad: float | None = None) -> np.ndarray:
    """Return one (H, W, C) image in the new size; an int is the shorter side, the other follows, rounded down.

    With `pad` an image of other proportions keeps them: it lies in the upper left corner, and the rest is of that value.
    """
    height, width = image.shape[:2]
    if pad is not None and not isinstance(size, int) and height * size[1] != width * size[0]:
        share = min(size[0] / height, size[1] / width)
        inside = resize(image, (max(1, round(height * share)), max(1, round(width * share))))
        found = np.full((*size, image.shape[2]), pad, image.dtype)
        found[: inside.shape[0], : inside.shape[1]] = inside
        return found
    if isinstance(size, int):
        shorter = min(height, width)
        size = (size * height // shorter, size * width // shorter)
    _check_size("resize", *size)
    as_float = image.dtype != np.uint8
    image = image.astype(np.float32) if as_float else image
    planes = [Image.fromarray(image[..., c]) for c in range(image.shape[2])]
    return np.stack([np.asarray(p.resize(size[::-1], Image.Resampling.BILINEAR)) for p in planes], axis=-1)


def _check_size(where: str, height: int, width: int) -> None:
    if not 0 < height * width <= MOST_PIXELS:
        expected = f"1 to {MOST_PIXELS:,} pixels"
        raise bad_data(where, "an image of no usable size", shape_text((height, width)), expected, "Make it smaller.")


def crop(where: str, pixels: np.ndarray, size: Size | None) -> np.ndarray:
    """Return the centre of (k, H, W, C) images; where the margin is odd, the larger part is cut from the far side."""
    if size is None:
        return pixels
    height, width = pixels.shape[1:3]
    if height < size[0] or width < size[1]:
        todo = "Set resize, or a smaller crop."
        expected = f"at least {shape_text(size)}"
        raise bad_data(where, "image smaller than its crop", shape_text((height, width)), expected, todo)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return pixels[:, top : top + size[0], left : left + size[1]]


def convert(pixels: np.ndarray, color: str) -> np.ndarray:
    """Return (k, H, W, C) with the channels of `color`; one channel is repeated for three, a fourth (alpha) dropped."""
    if color == "L":
        return pixels if pixels.shape[3] == 1 else _luma(pixels)
    pixels = np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels[..., :3]
    return pixels[..., BGR] if color == "BGR" else pixels


def _luma(pixels: np.ndarray) -> np.ndarray:
    gray = pixels[..., :3].astype(np.float32) @ LUMA
    return (np.rint(gray).astype(np.uint8) if pixels.dtype == np.uint8 else gray)[..., None]


def normalise(card: DataCard, where: str, pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Return (k, H, W, C) pixels as the model wants them: scaled, normalised, laid out, shaped and typed.

    Raises:
        DataError: If mean or std do not fit the channels, or the images the input.
    """
    channels = pixels.shape[3]
    is_float = np.issubdtype(spec.dtype, np.floating)
    scale = card.scale or (255.0 if pixels.dtype == np.uint8 and is_float else 1.0)
    for key in ("mean", "std"):
        if len(getattr(card, key)) not in (1, channels):
            got, expected = f"{len(getattr(card, key))} numbers", f"1 or {channels}, one for each channel"
            raise bad_data(where, f"bad {key}", got, expected, f"Correct {key} or color.")
    out = pixels.astype(np.float32)
    out /= np.float32(scale)
    out -= np.array(card.mean, np.float32)
    out /= np.array(card.std, np.float32)
    if card.layout == "NCHW":
        out = out.transpose(0, 3, 1, 2)
    out = _fit(card, where, out, spec)
    return np.ascontiguousarray(out if is_float else np.rint(out), dtype=spec.dtype)


def _fit(card: DataCard, where: str, batch: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Return the batch in the input's shape; models of other rank get one channel dropped, or flat images."""
    wanted, got = spec.shape[1:], batch.shape[1:]
    channel = 1 if card.layout == "NCHW" else 3
    if len(wanted) == 2 and batch.shape[channel] == 1:
        batch = batch.squeeze(channel)
    elif len(wanted) == 1:
        batch = batch.reshape(len(batch), -1)
    if fits(batch.shape[1:], wanted):
        return batch
    swapped = got[1:] + got[:1] if channel == 1 else got[2:] + got[:2]
    if fits(swapped, wanted):
        todo = f'Set layout = "{"NHWC" if channel == 1 else "NCHW"}".'
    elif len(wanted) == 3 and wanted[channel - 1] not in (None, got[channel - 1]):
        todo = 'Set color = "L" for one channel, "RGB" for three; and check layout.'
    else:
        height, width = (wanted[1:] if channel == 1 else wanted[:2]) if len(wanted) == 3 else (None, None)
        known = bool(height and width)
        crop_to = height if height == width else [height, width]
        resize_to = min(height, width) if height and width else None
        todo = (
            f"Write resize = {resize_to} and crop = {crop_to} in a card."
            if known
            else "Set resize and crop in the card."
        )
    wrong = f"images of the wrong size for input {spec.name!r}"
    raise bad_data(where, wrong, shape_text(("N", *got)), shape_text(("N", *wanted)), todo)


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Return whether sizes are those that are wanted; None is any."""
    return len(shape) == len(wanted) and all(b in (None, a) for a, b in zip(shape, wanted, strict=True))
