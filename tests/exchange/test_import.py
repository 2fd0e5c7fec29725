import json
import sys
import zipfile

import numpy as np
import onnx
import pytest
import torch

import agmc_onnx
from agmc_onnx.cli import main
from agmc_onnx.errors import UsageError, VerificationError
from agmc_onnx.exchange.importers import IMPORTERS, importer_of, is_onnx
from agmc_onnx.exchange.importers.agreement import _judge
from agmc_onnx.exchange.importers.plain_shapes import with_plain_shapes
from agmc_onnx.exchange.importers.source import ImportOptions, InputShape, Source, need
from agmc_onnx.exchange.importers.torch_weights import read_weights
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.verbs.import_ import METADATA
from agmc_onnx.verbs.import_ import import_ as import_model
from tests.sources import SHAPE, Net, Runs, net

needs_onnxscript = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('onnxscript')")
FACTORY = "tests.sources:net"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One network in every form that PyTorch writes."""
    folder = tmp_path_factory.mktemp("sources")
    module, x = net(), torch.randn(2, 1, 8, 8)
    torch.save(module.state_dict(), folder / "state.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, folder / "wrapped.pth")
    torch.save(module, folder / "whole.pt")
    torch.jit.trace(module, x).save(folder / "script.pt")
    batch = torch.export.Dim("n")
    torch.export.save(torch.export.export(module, (x,), dynamic_shapes=({0: batch},)), folder / "program.pt2")
    return folder


@pytest.fixture
def older_exporter(monkeypatch):
    """What a base install has: torch.onnx without onnxscript; it takes a tenth of the time."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def answers(path, x):
    model = onnx.load(path)
    return run_model(make_session(model), {model.graph.input[0].name: x})[0]


def check_same_as_the_network(found, path):
    """The imported file answers as the network does, for any batch, and the report says so."""
    x = np.random.default_rng(1).standard_normal((3, 1, 8, 8), np.float32)
    with torch.no_grad():
        wanted = net()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answers(path, x), wanted, atol=1e-5)
    assert found.agreement.holds and found.agreement.worst.max_rel < 1e-5
    assert found.agreement.batches == (1, 2, 5)


@needs_onnxscript
def test_exported_program(files, tmp_path):
    found = import_model(files / "program.pt2", tmp_path / "m.onnx")
    check_same_as_the_network(found, tmp_path / "m.onnx")
    assert found.report["inputs"] == ["x float32 [batch, 1, 8, 8]"]


@needs_onnxscript
def test_factory_by_torch_export(tmp_path):
    found = import_model(FACTORY, tmp_path / "m.onnx", input_shape=SHAPE)
    assert found.report["converter"] == "torch.onnx (torch.export)"
    assert found.report["inputs"] == ["input float32 [batch, 1, 8, 8]"]
    assert found.report["outputs"] == ["output float32 [batch, 10]"]
    check_same_as_the_network(found, tmp_path / "m.onnx")


@pytest.mark.parametrize("weights", ["state.pt", "wrapped.pth"])
def test_factory_with_a_state_dict(files, tmp_path, weights, older_exporter):
    path = tmp_path / "m.onnx"
    found = import_model("tests.sources:Net", path, weights=files / weights, input_shape=SHAPE)
    check_same_as_the_network(found, path)
    assert found.report["notes"] == []


def test_factory_without_weights_says_so(tmp_path, older_exporter):
    found = import_model(FACTORY, tmp_path / "m.onnx", input_shape=SHAPE)
    assert found.report["converter"] == "torch.onnx (TorchScript)"
    assert found.report["notes"] == [f"no --weights given: the weights are those that {FACTORY} makes"]


def test_factory_with_safetensors(tmp_path, older_exporter):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(net().state_dict(), tmp_path / "w.safetensors")
    found = import_model(
        "tests.sources:Net", tmp_path / "m.onnx", weights=tmp_path / "w.safetensors", input_shape=(1, 1, 8, 8)
    )
    check_same_as_the_network(found, tmp_path / "m.onnx")


def test_torchscript(files, tmp_path):
    found = import_model(files / "script.pt", tmp_path / "m.onnx", input_shape=SHAPE, allow_pickle=True)
    check_same_as_the_network(found, tmp_path / "m.onnx")


def test_torchscript_is_not_run_unasked(files, tmp_path):
    with pytest.raises(UsageError) as error:
        import_model(files / "script.pt", tmp_path / "m.onnx", input_shape=SHAPE)
    assert str(error.value) == (
        f"{files / 'script.pt'}: TorchScript, a program that runs here when it is imported and may write any file; expected"
        " --allow-pickle, given only to files you trust. Or export the network with torch.export.save."
    )


def test_fixed_batch_stays(files, tmp_path):
    found = import_model(files / "script.pt", input_shape="3,1,8,8", fixed_batch=True, allow_pickle=True)
    assert found.report["inputs"] == ["input float32 [3, 1, 8, 8]"]
    assert set(found.agreement.batches) == {3}


def test_the_model_says_where_it_came_from_and_tells_nothing_of_this_machine(files, tmp_path):
    import_model(files / "script.pt", tmp_path / "m.onnx", input_shape=SHAPE, allow_pickle=True)
    model = onnx.load(tmp_path / "m.onnx")
    origin = json.loads({entry.key: entry.value for entry in model.metadata_props}[METADATA])
    assert (origin["source"], origin["kind"]) == ("script.pt", "torchscript")
    assert origin["framework"].startswith("torch ")
    assert str(files).encode() not in model.SerializeToString()
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_scikit_learn_estimator(tmp_path):
    pytest.importorskip("skl2onnx", reason="skl2onnx is not installed: pip install 'agmc-onnx[import-sklearn]'")
    joblib = pytest.importorskip("joblib")
    from sklearn.neural_network import MLPClassifier

    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((64, 8)), generator.integers(0, 3, 64)
    joblib.dump(MLPClassifier((16,), max_iter=2).fit(x, y), tmp_path / "mlp.joblib")
    with pytest.raises(UsageError, match=r"a pickle, which can run any code .* --allow-pickle"):
        import_model(tmp_path / "mlp.joblib")
    found = import_model(tmp_path / "mlp.joblib", tmp_path / "m.onnx", allow_pickle=True)
    assert [text.split()[0] for text in found.report["outputs"]] == ["probabilities", "label"]
    assert found.agreement.worst.max_rel < 1e-5


# what a pickle holds is never run without permission


@pytest.fixture
def trap(tmp_path):
    """A file that the trap of a pickle writes."""
    return tmp_path / "ran"


def test_a_pickled_network_is_refused(trap, tmp_path):
    torch.save({"state_dict": Runs(trap)}, tmp_path / "bad.pt")
    with pytest.raises(UsageError, match=r"holds Python objects, .* opening it can run any code"):
        read_weights(tmp_path / "bad.pt")
    with pytest.raises(UsageError, match="holds Python objects"):
        import_model(tmp_path / "bad.pt", input_shape=SHAPE)
    assert not trap.exists()


@needs_onnxscript
def test_a_pickle_inside_of_an_exported_program_is_refused(files, trap, tmp_path):
    torch.save((Runs(trap), {}), tmp_path / "inputs.pt")
    rewritten(
        files / "program.pt2", tmp_path / "bad.pt2", "sample_inputs/model.pt", (tmp_path / "inputs.pt").read_bytes()
    )
    with pytest.raises(agmc_onnx.AgmcError):
        import_model(tmp_path / "bad.pt2")
    assert not trap.exists()


@needs_onnxscript
def test_a_size_that_is_code_is_refused(files, trap, tmp_path):
    with zipfile.ZipFile(files / "program.pt2") as archive:
        name = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        program = archive.read(name).decode()
    code = f"open({str(trap)!r}, 'w').write('x')"
    text = program.replace("Symbol('", f"{code} or Symbol('").encode()
    assert text != program.encode()
    rewritten(files / "program.pt2", tmp_path / "bad.pt2", "models/model.json", text)
    with pytest.raises(UsageError, match="a size that is no arithmetic"):
        import_model(tmp_path / "bad.pt2")
    assert not trap.exists()


@needs_onnxscript
def test_parts_that_are_code_are_refused(files, tmp_path):
    with zipfile.ZipFile(files / "program.pt2") as old, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("program/data/constants/opaque_obj_0", b"anything")
    with pytest.raises(UsageError, match="opaque_obj_0, which runs code when it is opened"):
        import_model(tmp_path / "bad.pt2")


def test_a_whole_network_is_read_with_permission(files, tmp_path, older_exporter):
    with pytest.raises(UsageError, match=r"--allow-pickle"):
        import_model(files / "whole.pt", input_shape=SHAPE)
    found = import_model(files / "whole.pt", tmp_path / "m.onnx", input_shape=SHAPE, allow_pickle=True)
    check_same_as_the_network(found, tmp_path / "m.onnx")


def rewritten(source, target, ending, data):
    """Copy an archive with one member replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        names = [name for name in old.namelist() if name.endswith(ending)]
        assert len(names) == 1, old.namelist()
        for name in old.namelist():
            new.writestr(name, data if name in names else old.read(name))


# what cannot be imported


def test_a_model_that_does_not_agree_is_not_written(tmp_path, older_exporter):
    path = tmp_path / "m.onnx"
    with pytest.raises(VerificationError, match=r"does not answer as its source .* Nothing was written"):
        import_model("tests.sources:Biased", path, input_shape=SHAPE)
    assert not path.exists()
    found = import_model("tests.sources:Biased", path, input_shape=SHAPE, force=True)
    assert found.report["forced"] and path.exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nothing.pt2", "no such file, folder or module:name; expected one of PyTorch exported program"),
        ("no_such_module:net", "No module named 'no_such_module'"),
        ("tests.sources:nte", "no attribute 'nte'"),
        ("tests.sources:broken", "ValueError: no such dataset"),
        ("tests.sources:SHAPE", "not understood|no such file"),
    ],
)
def test_unknown_sources_are_named_in_one_line(source, said):
    with pytest.raises(UsageError, match=said) as raised:
        import_model(source)
    assert "\n" not in str(raised.value)


def test_a_typo_gets_a_suggestion(files):
    with pytest.raises(UsageError, match=r"Did you mean .*program\.pt2\?"):
        import_model(files / "progam.pt2")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("w.safetensors", "holds weights without a network"),
        ("m.mlmodel", "Import the model that it was converted from"),
        ("m.onnx", "ONNX already"),
        ("m.xyz", "got a .xyz; expected one of"),
    ],
)
def test_files_of_other_kinds_say_what_to_do(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"0")
    with pytest.raises(UsageError, match=said):
        import_model(tmp_path / name)


def test_weights_alone_ask_for_the_network(files):
    with pytest.raises(UsageError, match=r"weights without a network, .* package.module:factory"):
        import_model(files / "state.pt", input_shape=SHAPE)


def test_weights_that_do_not_fit_are_named(files, tmp_path):
    torch.save(Net(16).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(UsageError, match=r"has other shapes, got conv1\.weight"):
        import_model(FACTORY, weights=tmp_path / "wide.pt", input_shape=SHAPE)
    torch.save({"conv1.weight": torch.zeros(8, 1, 3, 3)}, tmp_path / "few.pt")
    with pytest.raises(UsageError, match=r"lacks, got .* and \d+ more; expected exactly the \d+ tensors"):
        import_model(FACTORY, weights=tmp_path / "few.pt", input_shape=SHAPE)


def test_a_source_that_does_not_know_its_shape_asks_for_it(files):
    with pytest.raises(UsageError, match=r"Give --input-shape"):
        import_model(files / "script.pt", allow_pickle=True)


@pytest.mark.parametrize("text", ["", "0,3", "1,3,-4", "1,3:flat", "a b"])
def test_bad_shapes_are_refused(text):
    with pytest.raises(UsageError, match=r"--input-shape: not a shape"):
        InputShape.of(text)


def test_shapes_are_read():
    assert InputShape.of("1,3,224,224") == InputShape((1, 3, 224, 224))
    assert InputShape.of("1x3x8x8") == InputShape((1, 3, 8, 8))
    assert InputShape.of("ids=N,T:int64") == InputShape(("N", "T"), "int64", "ids")
    assert InputShape.of("N,3,H").open_dims == {0: "N", 2: "H"}


def test_a_missing_package_names_the_extra():
    with pytest.raises(
        UsageError, match=r"needs no_such_package, which is not installed. Run pip install 'agmc-onnx\[import-x\]'"
    ):
        need(Source("model.x"), "import-x", "no_such_package")


@pytest.mark.parametrize(
    ("name", "extra"),
    [("m.keras", "import-keras"), ("m.tflite", "import-tensorflow"), ("m.skops", "import-sklearn")],
)
def test_every_framework_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, name, extra):
    def missing(name, package=None):
        if name.startswith("agmc_onnx"):
            return real(name, package)
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    import importlib

    (tmp_path / name).write_bytes(b"0")
    real = importlib.import_module
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(UsageError, match=rf"which is not installed. Run pip install .*{extra}"):
        import_model(tmp_path / name)


def test_frameworks_can_be_named(files):
    assert importer_of(Source("x.bin"), ImportOptions(framework="jax"))[0] == "jax"
    with pytest.raises(UsageError, match=r"Did you mean torchscript?"):
        importer_of(Source("x.bin"), ImportOptions(framework="torchscrip"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("net.pt2", "torch-export"),
        ("net.keras", "keras"),
        ("net.tflite", "tflite"),
        ("net.pdmodel", "paddle"),
        ("net.joblib", "sklearn"),
        ("tests.sources:net", "torch"),
        ("tests.sources:Net", "torch"),
        ("numpy:tanh", "jax"),
    ],
)
def test_sources_are_recognised_by_name_or_kind(tmp_path, monkeypatch, name, kind):
    if ":" not in name:
        monkeypatch.chdir(tmp_path)
        (tmp_path / name).write_bytes(b"0")
    assert importer_of(Source(name), ImportOptions())[0] == kind


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["saved_model.pb"], "tensorflow"),
        (["config.json"], "huggingface"),
        (["inference.json", "inference.pdiparams"], "paddle"),
    ],
)
def test_folders_are_recognised_by_what_they_hold(tmp_path, files, kind):
    for name in files:
        (tmp_path / name).write_bytes(b"0")
    assert importer_of(Source(tmp_path), ImportOptions())[0] == kind
    assert kind in IMPORTERS


def test_compress_leaves_alone_what_may_be_onnx(tmp_path):
    assert is_onnx("m.onnx") and is_onnx("m.pb") and is_onnx("m")
    assert not is_onnx("m.pt2") and not is_onnx("a.b:c")
    assert is_onnx(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_onnx(tmp_path)


# what the converter computes from open dims


def attention_like():
    """Heads cut out of the last dim by a target made of Shape nodes, as exporters write it where tokens stay open."""
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N, T, 8] x) => (float[N, T, 8] y)
        <int64[2] tail = {2, 4}, int64[1] last = {-1}, int64[1] zero = {0}, int64[1] two = {2}>
        {
            dims = Shape(x)
            lead = Slice(dims, zero, two)
            split = Concat<axis = 0>(lead, tail)
            heads = Reshape(x, split)
            turned = Transpose<perm = [0, 2, 1, 3]>(heads)
            back = Transpose<perm = [0, 2, 1, 3]>(turned)
            joined = Concat<axis = 0>(lead, last)
            y = Reshape(back, joined)
        }
    """
    return onnx.parser.parse_model(text)


def test_targets_of_reshapes_become_constants():
    made = with_plain_shapes(attention_like())
    shapes = {tensor.name: list(onnx.numpy_helper.to_array(tensor)) for tensor in made.graph.initializer}
    assert shapes == {"heads_shape": [0, 0, 2, 4], "y_shape": [0, 0, 8]}
    assert [node.op_type for node in made.graph.node] == ["Reshape", "Transpose", "Transpose", "Reshape"]
    for sizes in ((1, 3, 8), (4, 7, 8)):
        x = np.random.default_rng(0).standard_normal(sizes, np.float32)
        np.testing.assert_array_equal(*(run_model(make_session(m), {"x": x})[0] for m in (made, attention_like())))


def test_dense_layers_on_flattened_tokens_are_widened():
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N, T, 8] x) => (float[N, T, 5] y)
        <int64[2] flat = {-1, 8}, int64[1] last = {5}, int64[1] zero = {0}, int64[1] two = {2},
         float[5, 8] w = {%s}, float[5] b = {1, 2, 3, 4, 5}>
        {
            rows = Reshape(x, flat)
            out = Gemm<transB = 1>(rows, w, b)
            dims = Shape(x)
            lead = Slice(dims, zero, two)
            target = Concat<axis = 0>(lead, last)
            y = Reshape(out, target)
        }
    """
    model = onnx.parser.parse_model(text % ", ".join(f"{i / 40:.3f}" for i in range(40)))
    made = with_plain_shapes(model)
    assert [node.op_type for node in made.graph.node] == ["MatMul", "Add"]
    x = np.random.default_rng(0).standard_normal((3, 7, 8), np.float32)
    np.testing.assert_allclose(*(run_model(make_session(m), {"x": x})[0] for m in (made, model)), atol=1e-6)


def test_targets_that_no_constant_gives_stay_computed():
    model = attention_like()
    graph = model.graph
    del graph.node[2:], graph.initializer[0]  # y = Reshape(x, [tokens, batch, 8])
    nodes = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N, T, 8] x, int64[2] lead, int64[1] last, int64[1] zero, int64[1] one) => (float[T, N, 8] y) {
            first = Gather(lead, one)
            second = Gather(lead, zero)
            target = Concat<axis = 0>(first, second, last)
            y = Reshape(x, target)
        }
        """
    ).graph.node
    graph.node.extend(nodes)
    made = with_plain_shapes(model)
    assert [node.op_type for node in made.graph.node] == [node.op_type for node in graph.node]


# the comparison


def judged(found, wanted):
    return _judge("y", [(np.asarray(found), np.asarray(wanted))])


def test_differences_are_shares_of_the_largest_value():
    found = judged(np.float32([[1.0, 200.0], [3.0, 4.5]]), np.float32([[1.0, 200.0], [3.0, 4.0]]))
    assert (found.max_abs, found.max_rel, found.holds, found.varies) == (0.5, 0.0025, False, True)


def test_rounding_agrees_and_nan_does_not():
    assert judged(np.float32([1.00001, 2]), np.float32([1, 2])).holds
    assert not judged(np.float32([np.nan, 2]), np.float32([1, 2])).holds
    assert judged(np.float32([np.inf, 2]), np.float32([np.inf, 2])).holds


def test_labels_must_be_equal():
    assert judged(np.int64([1, 2]), np.int32([1, 2])).holds
    assert judged(np.array(["a", "b"], object), np.array(["a", "b"])).holds
    found = judged(np.int64([1, 3]), np.int64([1, 2]))
    assert (found.holds, found.max_abs) == (False, 0.5)


def test_an_output_that_never_changes_is_pointed_out():
    assert not judged(np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32)).varies


# the command line


def test_import_on_the_command_line(files, tmp_path, capsys):
    path = tmp_path / "m.onnx"
    assert main(["import", str(files / "script.pt"), "-o", str(path), "--input-shape", SHAPE, "--allow-pickle"]) == 0
    said = capsys.readouterr().out
    assert "TorchScript (.pt), torch" in said
    assert "8 synthetic samples, in batches of 1, 2, 5" in said
    assert "of the largest value (allowed 0.0001)" in said
    assert f"wrote {path}" in said


def test_import_as_json(files, tmp_path, capsys):
    argv = ["import", str(files / "script.pt"), "-o", str(tmp_path / "m.onnx"), "--input-shape", SHAPE, "--json"]
    argv += ["--allow-pickle"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "agmc-onnx/import@1"
    assert found["agreement"]["holds"] is True


def test_compress_takes_a_source_directly(files, tmp_path, capsys):
    output = tmp_path / "small.onnx"
    argv = ["compress", str(files / "script.pt"), "--input-shape", SHAPE, "--flops", "0.5", "-o", str(output)]
    argv += ["--policy", "uniform", "--latency-seconds", "0.1", "--allow-pickle"]
    assert main(argv) == 0
    assert f"wrote {tmp_path / 'small.imported.onnx'}" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "small.imported.onnx"), str(output)]) == 0
    before = (tmp_path / "small.imported.onnx").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*argv, "--resume"]) == 0
    assert "was imported already" in capsys.readouterr().out
    assert (tmp_path / "small.imported.onnx").stat().st_mtime_ns == before


def test_an_import_never_replaces_its_source(files):
    with pytest.raises(UsageError, match="is the source itself"):
        import_model(files / "script.pt", files / "script.pt", input_shape=SHAPE, allow_pickle=True)


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    """A user's own file, in the folder where the command runs, whose factory needs an argument."""
    (tmp_path / "mynets.py").write_text(
        "import torch\n\n\ndef make(width, kernel=3):\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(1, width, kernel), torch.nn.ReLU(), torch.nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    return tmp_path


def test_a_factory_takes_arguments(my_module, older_exporter, capsys):
    argv = ["import", "mynets:make", "--arg", "width=6", "--arg", "kernel=5", "--input-shape", SHAPE, "-o", "m.onnx"]
    assert main(argv) == 0, capsys.readouterr().err
    weights = {tuple(tensor.dims) for tensor in onnx.load(my_module / "m.onnx").graph.initializer}
    assert (6, 1, 5, 5) in weights


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        (
            "mynets:make",
            (),
            "needs width; expected a value for each argument without a default. Give --arg width=VALUE.",
        ),
        ("mynets.py:make", (), "is the name of a file; expected that of a module. Write mynets:make."),
        ("mynets:make", ("--arg", "depth=2"), "mynets:make"),
    ],
)
def test_a_factory_that_cannot_be_called_says_what_to_write(my_module, capsys, source, more, said):
    assert main(["import", source, *more, "--input-shape", SHAPE, "-o", "m.onnx"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("agmc-onnx: error: ") and said in line
    assert not (my_module / "m.onnx").exists()
