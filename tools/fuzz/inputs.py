"""What is mutated, and the verbs that it goes through."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tools.fuzz.models import mutate_model
from tools.fuzz.nets import NETS, net
from tools.fuzz.server import silent
from tools.fuzz.texts import WORDS, mutate_json, mutate_text, to_toml

KINDS = ("model", "model", "model", "model", "plan", "card", "journal", "table")
CUT = ("--flops", "0.7", "--policy", "uniform", "--episodes", "1", "--latency-seconds", "0", "--recover", "none")


CARD: dict[str, Any] = {
    "images": "d.npz", "layout": "NCHW", "color": "RGB", "scale": 255.0, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
    "metric": "top1", "resize": 8, "crop": 8, "input": "x", "labels": "labels.csv",
    "roles": {"calibration": "0:4", "reward": "4:8", "test": "8:12"},
    "train": {"images": "d.npz", "augment": ["flip"], "slice": "0:4"},
}  # fmt: skip


def write_data(folder: Path, rng: random.Random) -> str:
    """Write samples, now and then strange ones, and return what is strange."""
    x: Any = (np.random.default_rng(0).random((12, 8, 8, 3)) * 255).astype(np.uint8)
    y: Any = np.arange(12) % 5
    what = rng.choice(
        ("plain",) * 5 + ("rank", "type", "labels", "pickle", "bytes", "bomb", "names", "short", "files", "nan")
    )
    (folder / "labels.csv").write_text("label\n" + "\n".join(map(str, y)) + "\n")
    if what == "rank":
        x = x[rng.choice((np.s_[0], np.s_[:, :, :, 0], np.s_[:, 0, 0, 0], np.s_[..., None], np.s_[:0]))]
    elif what == "type":
        x = x.astype(rng.choice(("U4", "M8[D]", "c8", "b1", "f2", "i8", "u8", "f8", "S3", "V4")))
    elif what == "labels":
        y = rng.choice(
            (y[:5], y.astype("M8[D]"), y.astype(str), y * 1.5, y - 3, y * 10**9, y[:, None], np.array(3), y == 1)
        )
        (folder / "labels.csv").write_bytes(
            mutate_text("file,label\n" + "\n".join(f"{i}.png,{n}" for i, n in enumerate(np.ravel(y))), rng)
        )
    elif what == "pickle":
        y = np.array([{"a": 1}] * 12, object)
    elif what == "nan":
        x = np.full((12, 8, 8, 3), rng.choice((np.nan, np.inf, 1e38)), np.float32)
    names = {"x": x, "y": y} if what != "names" else {rng.choice(WORDS) or "q": x, "z": y}
    stream = io.BytesIO()
    np.savez(stream, **names)
    raw = stream.getvalue()
    if what == "bomb":  # a small file that claims, or unpacks to, far more
        import zipfile

        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            shape = rng.choice(((2**33,), (12, 2**15, 2**15, 3), (2**40,)))
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
            archive.writestr("x.npy", header.getvalue() + b"\0" * rng.choice((10, 10**6)))
        raw = stream.getvalue()
    elif what in ("bytes", "short"):
        raw = mutate_text(raw.decode("latin1"), rng) if what == "bytes" else raw[: rng.randrange(len(raw))]
    if what == "files":
        from PIL import Image

        (folder / "d.npz").mkdir()
        for i in range(12):
            file = folder / "d.npz" / f"{i}.png"
            Image.fromarray(x[i] if isinstance(x, np.ndarray) else x).save(
                file, rng.choice(("png", "bmp", "eps", "gif"))
            )
        bad = bytearray(file.read_bytes())
        bad[rng.randrange(len(bad))] ^= 255
        file.write_bytes(bad)
    else:
        (folder / "d.npz").write_bytes(raw)
    return what


def model_input(folder: Path, rng: random.Random, made: Path) -> tuple[str, list[list[str]]]:
    """A mutated model through inspect, compress and verify."""
    name = rng.choice(list(NETS))
    raw, done = mutate_model(net(name), rng)
    (folder / "m.onnx").write_bytes(raw)
    (folder / "w.bin").write_bytes(bytes(4096))
    recover = ("--recover", "compensate") if rng.random() < 0.1 else ()
    cut = ["compress", "m.onnx", *CUT, *recover, "-o", "out.onnx"]
    return f"{name}: {', '.join(done)}", [["inspect", "m.onnx"], cut, ["verify", "m.onnx", "out.onnx"]]


def plan_input(folder: Path, rng: random.Random, made: Path) -> tuple[str, list[list[str]]]:
    """A mutated plan or report of a right result."""
    for file in made.glob("c.*"):
        shutil.copy(file, folder)
    which = rng.choice(("plan", "plan", "plan", "report"))
    path = folder / f"c.{which}.json"
    text = path.read_text()
    if rng.random() < 0.15:
        path.write_bytes(mutate_text(text, rng))
    else:
        path.write_text(json.dumps(mutate_json(json.loads(text), rng)))
    if which == "report":
        return "report", [["report", "c.report.json", "-o", "r.html"]]
    rebuild = ["apply", "m.onnx", "c.plan.json", "-o", "out.onnx"]
    shutil.copy(made / "m.onnx", folder)
    return "plan", [["verify", "m.onnx", "c.onnx"], rebuild]


def card_input(folder: Path, rng: random.Random, made: Path) -> tuple[str, list[list[str]]]:
    """A mutated data card, with data that may be strange."""
    shutil.copy(made / "m.onnx", folder)
    table = {key: value for key, value in CARD.items() if key not in ("train", "labels") or rng.random() < 0.3}
    what = write_data(folder, rng)
    if what == "plain" or rng.random() < 0.2:
        for _ in range(rng.choice((1, 1, 2))):
            table = mutate_json(table, rng)
            what += ", card"
    raw = to_toml(table).encode()
    (folder / "card.toml").write_bytes(mutate_text(raw.decode(), rng) if rng.random() < 0.1 else raw)
    measure = ["measure", "m.onnx", "--data", "card.toml", "--seconds", "0"]
    cut = ["compress", "m.onnx", *CUT, "--data", "card.toml", "-o", "out.onnx"]
    return what, [measure, cut] if rng.random() < 0.5 else [cut]


def journal_input(folder: Path, rng: random.Random, made: Path) -> tuple[str, list[list[str]]]:
    """A mutated journal that a run resumes, or a config file."""
    shutil.copy(made / "m.onnx", folder)
    (folder / "out.run").mkdir()
    rows = [json.loads(line) for line in (made / "journal.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row) + "\n" for row in (mutate_json(rows, rng) if rng.random() < 0.8 else rows))
    (folder / "out.run" / "journal.jsonl").write_bytes(mutate_text(text, rng) if rng.random() < 0.3 else text.encode())
    return "journal", [
        ["compress", "m.onnx", *CUT, "--resume", "-o", "out.onnx"],
        ["report", "out.run", "-o", "r.html"],
    ]


def table_input(folder: Path, rng: random.Random, made: Path) -> tuple[str, list[list[str]]]:
    """A mutated table of op times, or a config file."""
    shutil.copy(made / "m.onnx", folder)
    if rng.random() < 0.3:
        asked = {"flops": 0.7, "policy": "uniform", "seed": 1, "round-to": 4, "recover": "none"}
        changed = mutate_json({"compress": asked}, rng)
        if isinstance(changed.get("compress"), dict):  # how long a run may take is no mutation
            changed["compress"] |= {"episodes": 1, "latency-seconds": 0}
        (folder / "c.toml").write_text(to_toml(changed))
        return "config", [["compress", "m.onnx", "--config", "c.toml", "-o", "out.onnx"]]
    text = (made / "table.json").read_text()
    raw = mutate_text(text, rng) if rng.random() < 0.15 else json.dumps(mutate_json(json.loads(text), rng)).encode()
    (folder / "t.json").write_bytes(raw)
    budget = ["--latency", "0.8", "--latency-table", "t.json", *CUT[2:]]
    return "table", [["compress", "m.onnx", *budget, "-o", "out.onnx"]]


INPUTS = {"model": model_input, "plan": plan_input, "card": card_input, "journal": journal_input, "table": table_input}


def prepare(made: Path) -> None:
    """Write what plans, journals and tables are mutations of, made by the program itself."""
    from agmc_onnx.cli import main
    from agmc_onnx.graph.files import read_model, write_model
    from agmc_onnx.latency import op_times
    from agmc_onnx.latency.tables import LatencyTable, time_sample
    from agmc_onnx.search import journal

    os.chdir(made)
    write_model(net("conv"), "m.onnx")
    rows: list[dict[str, Any]] = []
    append = journal.Journal._append
    journal.Journal._append = lambda self, row: (rows.append(dict(row)), append(self, row))[1]  # type: ignore[assignment,func-returns-value,method-assign]
    with silent(made):
        code = main(["compress", "m.onnx", *CUT, "-o", "c.onnx"])
    journal.Journal._append = append  # type: ignore[method-assign]
    if code:
        raise SystemExit(f"the unchanged model cannot be compressed: {(made / 'stderr').read_text()}")
    (made / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = read_model("m.onnx")
    feed = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    sample = {"kept": [8], **time_sample(file.proto, feed, 1, "cpu", 1.0)}
    table = LatencyTable(op_times.device(), 1, "cpu", 1).with_model(file.sha256, [sample])
    (made / "table.json").write_text(table.to_json())
