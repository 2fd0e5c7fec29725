import shutil
from pathlib import Path

import onnx
import pytest

import agmc_onnx
from agmc_onnx.errors import ModelError, UsageError
from agmc_onnx.graph.outputs import output_files, set_of

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
QUICK = {"flops": 0.5, "policy": "uniform", "recover": "none", "latency_seconds": 0.05}


@pytest.fixture(scope="module")
def results():
    return [agmc_onnx.compress(one, **QUICK) for one in (DIGITS, DIGITS.read_bytes(), onnx.load(DIGITS))]


def test_models_are_paths_bytes_or_protos(results):
    path, raw, proto = results
    assert path.model.graph == raw.model.graph == proto.model.graph
    assert raw.report.model.path == proto.report.model.path == "model.onnx"
    assert path.plan.sha256 == raw.plan.sha256
    for one in (DIGITS.read_bytes(), onnx.load(DIGITS)):
        assert agmc_onnx.inspect(one)["macs"] == agmc_onnx.inspect(DIGITS)["macs"]
    sizes = [one["params"] for one in agmc_onnx.measure(DIGITS, onnx.load(DIGITS), seconds=0.01)["models"]]
    assert sizes[0] == sizes[1]


def test_a_result_is_short_in_print_and_a_few_cards_in_a_notebook(results):
    result = results[0]
    assert repr(result).startswith("<Result: 3,614,336 -> ") and len(repr(result)) < 200
    html = result._repr_html_()
    assert "verified: " in html and "<script" not in html and len(html) < 5000
    assert html.count("display:inline-block") >= 4


def test_a_result_is_saved_as_a_set(results, tmp_path):
    path = results[0].save(tmp_path / "x.onnx")
    ids = {set_of(one) for one in output_files(path).values()}
    assert len(ids) == 1 and None not in ids
    assert agmc_onnx.verify(DIGITS, path).masked_equivalence
    results[0].save(path)
    path.write_bytes(DIGITS.read_bytes())
    with pytest.raises(UsageError, match="is there already and is no file that agmc-onnx wrote"):
        results[0].save(path)
    results[0].save(path, force=True)
    made = agmc_onnx.apply(DIGITS.read_bytes(), tmp_path / "x.plan.json")
    assert repr(made).startswith("<Applied: ") and "verified: " in made._repr_html_()
    assert onnx.load(made.save(tmp_path / "y.onnx")) == made.model


def test_bytes_that_are_no_model_are_said():
    with pytest.raises(ModelError, match=r"model.onnx: not a complete ONNX model"):
        agmc_onnx.inspect(b"\xff\xff")


def test_export_of_a_model_in_memory_wants_an_output(tmp_path):
    with pytest.raises(UsageError, match="got a model in memory and no output"):
        agmc_onnx.export(DIGITS.read_bytes(), to="fp16")


@pytest.mark.parametrize("what", ["card", "images", "table", "model"])
def test_no_input_of_compress_is_ever_its_output(tmp_path, what):
    """With force, too: the file that a command reads is still there, byte for byte."""
    folder = tmp_path / "data"
    shutil.copytree(DIGITS.parent, folder)
    model, card = folder / "digits_resnet.onnx", folder / "digits.toml"
    images = next(folder.glob("*.npz"))
    table = folder / "table.json"
    table.write_text("{}")
    given = {"card": card, "images": images, "table": table, "model": model}[what]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    more = {"latency": 0.5, "latency_table": table} if what == "table" else {"flops": 0.5}
    with pytest.raises(UsageError, match=r"expected another file\. Choose another output with -o"):
        agmc_onnx.compress(model, data=card, output=given, force=True, **more)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
