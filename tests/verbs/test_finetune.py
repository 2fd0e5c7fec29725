"""The verb `finetune`."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from agmc_onnx.cli import main
from agmc_onnx.graph.outputs import output_files
from agmc_onnx.verbs.compress import compress
from agmc_onnx.verbs.finetune import finetune

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "cut.onnx"
    compress(DIGITS, data="digits", flops=0.3, policy="uniform", recover="none", latency_seconds=0.1, output=path)
    return path


def test_a_cut_network_learns_from_its_original_without_labels(cut, tmp_path, capsys):
    output = tmp_path / "tuned.onnx"
    assert (
        main(["finetune", str(cut), "--teacher", str(DIGITS), "--data", "digits", "--steps", "60", "-o", str(output)])
        == 0
    )
    printed = capsys.readouterr().out
    assert "60 steps on 997 samples without labels" in printed
    assert main(["verify", str(DIGITS), str(output)]) == 0  # the plan went along
    tuned = finetune(cut, teacher=DIGITS, data="digits", steps=60)
    assert tuned.report["after"]["value"] > tuned.report["before"]["value"] + 30
    assert onnx.load(output).SerializeToString() == tuned.model.SerializeToString()  # the same seed, the same result
    assert not output_files(output)["report"].exists()


def test_models_that_do_not_belong_together_are_refused(cut, tmp_path, capsys):
    model = onnx.load(DIGITS)
    model.graph.input[0].name = "pixels"
    model.graph.node[0].input[0] = "pixels"
    onnx.save(model, tmp_path / "other.onnx")
    code = main(
        [
            "finetune",
            str(cut),
            "--teacher",
            str(tmp_path / "other.onnx"),
            "--data",
            "digits",
            "-o",
            str(tmp_path / "x.onnx"),
        ]
    )
    assert code == 2
    assert "its inputs and outputs are not those of" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def test_no_steps_is_refused(cut, capsys):
    assert main(["finetune", str(cut), "--teacher", str(DIGITS), "--data", "digits", "--steps", "0"]) == 2
    assert "--steps: too small, got 0; expected at least 1." in capsys.readouterr().err


def test_a_loss_of_ones_own(cut, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my_losses.py").write_text(
        "import torch.nn.functional as F\n"
        "def nearer(ours, theirs, labels):\n"
        "    (name,) = ours\n"
        "    return F.mse_loss(ours[name], theirs[name]) + F.cross_entropy(ours[name], labels.long())\n"
    )
    common = ["finetune", str(cut), "--teacher", str(DIGITS), "--data", "digits", "--steps", "20"]
    assert main([*common, "--loss", "my_losses:nearer", "-o", "tuned.onnx"]) == 0
    assert "Nothing was gained" not in capsys.readouterr().out
    assert main([*common, "--loss", "my_losses:farther", "-o", "other.onnx"]) == 2
    assert "--loss: no function 'farther' in my_losses" in capsys.readouterr().err


def test_it_says_when_nothing_was_gained(tmp_path, capsys):
    output = tmp_path / "same.onnx"
    common = ["finetune", str(DIGITS), "--teacher", str(DIGITS), "--data", "digits", "--steps", "2"]
    assert main([*common, "-o", str(output)]) == 0
    assert "Nothing was gained" in capsys.readouterr().out
