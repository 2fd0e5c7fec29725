"""Draw lines of text with their labels, or tokenise the sentences of the standard library's documentation.

    python -m tools.text_data lines OUT.npz [--n 300] [--seed 0]
    python -m tools.text_data sentences OUT.npz --tokenizer tokenizer.json [--n 900]

Lines are dark letters and digits on a light ground, 48 x 320 pixels, slightly turned and noisy, in whatever DejaVu and
Liberation fonts the system has, with y, the texts. Sentences are unlike each other, 32 tokens each, under the names of a
BERT's inputs.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import string
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = Path("/usr/share/fonts")
SIZE = 320, 48
LENGTH = 32  # tokens of a sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["lines", "sentences"])
    parser.add_argument("output", type=Path)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "lines":
        arrays = lines(arguments.n, arguments.seed)
    elif arguments.tokenizer is None:
        parser.error("sentences: no tokenizer, got none; expected a tokenizer.json. Give --tokenizer.")
    else:
        arrays = tokens(sentences(arguments.n, arguments.seed), arguments.tokenizer)
    np.savez(arguments.output, **arrays)


def lines(n: int, seed: int) -> dict[str, np.ndarray]:
    """Return x uint8 (n, 48, 320, 3), and y, the texts drawn on them.

    Args:
        n: Lines.
        seed: Of texts, fonts, colours and noise.
    """
    rng = np.random.default_rng(seed)
    fonts = sorted([*FONTS.rglob("DejaVu*.ttf"), *FONTS.rglob("Liberation*.ttf")])
    fonts = [path for path in fonts if "Math" not in path.name]
    letters = np.array(list(string.ascii_letters + string.digits))
    drawn, texts = [], []
    for _ in range(n):
        words = ["".join(rng.choice(letters, rng.integers(3, 8))) for _ in range(rng.integers(1, 3))]
        text, ground, ink = " ".join(words), int(rng.integers(160, 250)), int(rng.integers(0, 80))
        font = ImageFont.truetype(fonts[rng.integers(len(fonts))], 30) if fonts else ImageFont.load_default(30)
        image = Image.new("RGB", SIZE, (ground, ground, ground - 10))
        ImageDraw.Draw(image).text((8, 5), text, fill=(ink, ink, ink), font=font)
        image = image.rotate(float(rng.uniform(-1, 1)), fillcolor=(ground, ground, ground - 10))
        drawn.append((np.asarray(image) + rng.normal(0, 5, (SIZE[1], SIZE[0], 3))).clip(0, 255).astype(np.uint8))
        texts.append(text)
    return {"x": np.stack(drawn), "y": np.array(texts)}


def sentences(n: int, seed: int) -> list[str]:
    """Return first sentences of docstrings of the standard library, each once, in a drawn order.

    Args:
        n: At most so many.
        seed: Of the order.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    found = {text for path in sorted(folder.glob("*.py")) for text in _documented(path) if 20 <= len(text) <= 150}
    order = np.random.default_rng(seed).permutation(len(found))[:n]
    every = sorted(found)
    return [every[i] for i in order]


def _documented(path: Path) -> Iterator[str]:
    kinds = ast.FunctionDef, ast.ClassDef, ast.Module
    for node in ast.walk(ast.parse(path.read_bytes())):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        if text:
            yield " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


def tokens(texts: list[str], tokenizer: Path) -> dict[str, np.ndarray]:
    """Return input_ids, attention_mask and token_type_ids int64 (n, 32) of sentences.

    Args:
        texts: The sentences.
        tokenizer: A tokenizer.json of the package tokenizers.
    """
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(tokenizer))
    own.enable_truncation(LENGTH)
    own.enable_padding(length=LENGTH)
    read = own.encode_batch(texts)
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: np.array([getattr(one, key) for one in read], np.int64) for name, key in columns.items()}


if __name__ == "__main__":
    main()
