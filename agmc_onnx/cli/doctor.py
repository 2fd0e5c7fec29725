"""doctor: whether this installation is sound, and what it can use."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from agmc_onnx.cli.parsing import Said, verb

UNSOUND = 2


@verb("doctor", "agmc-onnx doctor")
def command() -> Said:
    """Print what was found; 2 where something must be mended."""
    from agmc_onnx.verbs.doctor import doctor

    found = doctor()
    return Said(found, lines(found), UNSOUND if found["problems"] else 0)


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return what is said of an installation."""
    from agmc_onnx.reporting.tables import WIDTH

    runtime, cpu, memory, torch = (found[name] for name in ("onnxruntime", "cpu", "memory", "torch"))
    cores = f"{cpu['usable_cores']} of {cpu['cores']} cores usable"
    if cpu["quota_cores"]:
        cores += f", limited to {cpu['quota_cores']:g} by the container"
    said = [
        f"agmc-onnx    {found['agmc_onnx'] or 'not installed'}, Python {found['python']['version']}, {found['platform']}",
        f"processor    {cpu['name']}, {cores}; {' '.join(cpu['flags']) or 'flags unknown'}",
    ]
    if memory["bytes"]:
        said.append(f"memory       {memory['available'] / 2**30:.1f} GiB free of {memory['bytes'] / 2**30:.1f}")
    for name, place in found["folders"].items():
        state = "" if place["writable"] else ", cannot be written"
        said.append(f"{name:<12} {place['path']}: {place['free'] / 2**30:.1f} GiB free{state}")
    wheels = ", ".join(f"{name} {version}" for name, version in runtime["wheels"].items()) or "none"
    said.append(f"onnxruntime  {wheels}")
    said += [f"  {name:<10} {state}" for name, state in runtime["providers"].items()]
    if torch["version"]:
        cuda = ", CUDA starts" if torch["cuda_starts"] else ", CUDA does not start" if "cuda" in torch["build"] else ""
        said.append(
            f"torch        {torch['version']} ({torch['build']} build{cuda}), {torch['threads']} threads unless --threads"
        )
    packages = [f"{name} {facts['version'] or 'MISSING'}" for name, facts in found["packages"].items()]
    said.append(f"packages     {', '.join(packages) or 'unknown'}")
    for name, missing in found["extras"].items():
        state = "there" if not missing else f"not installed: {', '.join(missing)}"
        said.append(f"extra        {name}: {state}")
    said += [f"variable     {name}={value}" for name, value in found["variables"].items()]
    said = [part for line in said for part in _wrapped(line, WIDTH)]
    problems = found["problems"]
    said += ["", *(f"PROBLEM: {line}." for line in problems)] if problems else ["", "no problem found"]
    return said


def _wrapped(line: str, width: int) -> list[str]:
    """Return a row as lines of its second column; names and paths are not broken."""
    return textwrap.wrap(line, width, subsequent_indent=" " * 13, break_long_words=False, break_on_hyphens=False)
