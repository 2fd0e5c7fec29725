"""Every option through Python, command line and config file, from what its field says."""

import inspect
import json
from typing import Any, get_type_hints

import pytest

import agmc_onnx
from agmc_onnx import UsageError
from agmc_onnx.cli import main
from agmc_onnx.options import PARTS, CompressOptions, Known, flag, known_options

KNOWN = known_options()
WRONG = {bool: "maybe", int: "1e3", float: "abc", str: None, tuple: None}


def good_value(one: Known) -> Any:
    """Return a value that is not the default."""
    says = one.says
    if says.choices:
        return next(name for name in says.names() if name != one.default)
    special = {"sparse_pattern": "2:4", "latency_table": "t.json", "exclude": "residual", "ray": "local"}
    if one.kind is bool:
        return True
    if one.kind is tuple:
        return ("x=1,3,8,8", "y=1,4")
    if one.kind is float:
        return 0.25 if says.high is not None else 3.5
    return 7 if one.kind is int else special.get(one.name, "text")


def beside(name: str, value: Any) -> dict[str, Any]:
    """Return an option with what it cannot be without."""
    needs = {
        "latency_table": {"latency": 0.5},
        "sparse_decide": {"sparsity": 0.5},
        "minimise": {"max_drop": 1.0},
    }.get(name, {} if name in ("flops", "params", "latency", "max_drop") else {"flops": 0.5})
    if name in ("sparse_decide",):
        needs = {**needs, "flops": 0.5}
    return {**needs, name: value}


@pytest.fixture
def called(monkeypatch):
    """Collect the options that reach `compress`, which then does nothing more."""
    got: dict[str, Any] = {}

    class Stop(UsageError):
        pass

    def compress(model, **given):
        got.update(given)
        raise Stop("stopped")

    monkeypatch.setattr("agmc_onnx.verbs.compress.compress", compress)
    return got


@pytest.mark.parametrize("name", KNOWN)
def test_an_option_arrives_by_python_flag_and_config(name, called, tmp_path):
    value = good_value(KNOWN[name])
    given = beside(name, value)
    made = CompressOptions.of(**given)
    assert made.flat()[name] == value
    assert getattr(getattr(made, KNOWN[name].part), name) == value
    each = [(key, item) for key, one in given.items() for item in (one if isinstance(one, tuple) else [one])]
    words = [word for key, one in each for word in ([flag(key)] if one is True else [flag(key), str(one)])]
    assert main(["compress", "m.onnx", *words]) == 2
    assert {key: called[key] for key in given} == given
    called.clear()
    path = tmp_path / "c.toml"
    path.write_text("[compress]\n" + "".join(f"{key} = {json.dumps(one)}\n" for key, one in given.items()))
    assert main(["compress", "m.onnx", "--config", str(path)]) == 2
    assert {key: called[key] for key in given} == given


def bad_values() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, one in KNOWN.items():
        bad = [WRONG[one.kind]] if WRONG[one.kind] else []
        if one.says.choices:
            bad = ["nonsense"]
        if one.says.low is not None:
            bad += [one.says.low - 1, *([one.says.low] if one.says.is_open else [])]
        if one.says.high is not None:
            bad += [one.says.high, float("nan")]
        found += [(name, value) for value in bad]
    return found


@pytest.mark.parametrize(("name", "value"), bad_values())
def test_a_bad_value_is_one_line_and_exit_2(name, value, tmp_path, capsys):
    one = KNOWN[name]
    as_kind = one.kind(value) if one.kind is int and isinstance(value, int | float) else value
    with pytest.raises(UsageError, match=f"^{flag(name)}: .*, got .*; expected .*"):
        CompressOptions.of(**beside(name, as_kind))
    given = beside(name, as_kind)
    path = tmp_path / "c.toml"
    path.write_text("[compress]\n" + "".join(f"{key} = {json.dumps(v).lower()}\n" for key, v in given.items()))
    ways = [["--config", str(path)]]
    if one.kind is not bool:
        ways.append([word for key, v in given.items() for word in (f"{flag(key)}={v}",)])
    for way in ways:
        capsys.readouterr()
        assert main(["compress", "m.onnx", *way]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("agmc-onnx: error: ")
        assert name.replace("_", "-") in lines[0] or name in lines[0]


@pytest.mark.parametrize("verb", ["compress", "batch"])
def test_the_signatures_are_those_of_the_dataclasses(verb):
    function = getattr(agmc_onnx, verb)
    found = inspect.signature(function).parameters
    types = get_type_hints(inspect.unwrap(function))
    asked = [name for name in found if name in KNOWN]
    assert asked == list(KNOWN), f"write the options in the order of agmc_onnx.options into the arguments of {verb}"
    for name, one in KNOWN.items():
        kinds = get_type_hints(PARTS[one.part])
        line = f"{name}: {kinds[name]} = {PARTS[one.part].__name__}.{name}"
        assert (types[name], found[name].default) == (kinds[name], one.default), f"{verb} should have {line}"
        assert one.says.help[0].upper() + one.says.help[1:] in function.__doc__


def test_help_and_ranges_are_said_of_every_option():
    for name, one in KNOWN.items():
        assert one.says.help, name
        assert one.kind is bool or one.says.metavar, name
        assert one.kind not in (int, float) or one.says.low is not None, f"{name}: no range"
