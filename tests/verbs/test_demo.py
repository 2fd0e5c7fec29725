import re

import pytest

from agmc_onnx import UsageError
from agmc_onnx.cli import main
from agmc_onnx.verbs.demo import NETWORK, demo


def test_demo_says_its_command_and_writes_both_models(tmp_path, capsys):
    assert main(["demo", str(tmp_path), "--episodes", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"the same as: agmc-onnx compress \S+digits.onnx --flops 0.3 --data digits -o", said)
    assert (tmp_path / "digits.onnx").read_bytes() == NETWORK.read_bytes()
    assert (tmp_path / "digits_small.onnx").stat().st_size < NETWORK.stat().st_size / 2


def test_demo_leaves_another_file_of_its_name_alone(tmp_path):
    (tmp_path / "digits.onnx").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"digits.onnx: there is another file of this name"):
        demo(tmp_path)
    assert (tmp_path / "digits.onnx").read_bytes() == b"mine"
    with pytest.raises(UsageError, match="no such folder"):
        demo(tmp_path / "none")
