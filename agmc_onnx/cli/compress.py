"""compress: make a smaller model that keeps at most a share of the original's cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agmc_onnx.cli.import_ import as_onnx, import_options
from agmc_onnx.cli.parsing import Said, argument, beaten, option, options_of_compress, verb
from agmc_onnx.cli.stopping import INTERRUPTED
from agmc_onnx.cli.words import PROGRAM, no_card, noting, tell
from agmc_onnx.cli.words import say as say_error
from agmc_onnx.options import ONE_OF, CompressOptions, known_options

LONG = ("history", "network")  # parts of the report that --json leaves to the file
DATA = "a data card (.toml), an .npz, a folder of images, or 'digits'"


@verb("compress", "agmc-onnx compress model.onnx --flops 0.5 --data photos -o small.onnx")
@argument("model", "MODEL.onnx", "or anything that `import` understands")
@option("data", str, "CARD", f"{DATA}; without it accuracy is not measured", panel="Data")
@options_of_compress()
@import_options(of_compress=True)
@option("output", str, "OUT.onnx", "default: MODEL.agmc.onnx beside the model", short="-o", panel="Output")
def command(model: str, data: str | None, output: str | None, resume: bool, quiet: bool, **given: Any) -> Said:
    """Import the model where it is not ONNX, and compress it."""
    from agmc_onnx.reporting.text import budget_line

    options = settings_of(given | {"resume": resume})
    CompressOptions.of(**options)
    target = output or str(default_output(model))
    for name in ONE_OF:
        if name in options:
            tell(budget_line(name, options[name]))
    if not output:
        tell(f"no -o given: the result goes to {target}")
    for line in no_card(data):
        tell(line)
    path = as_onnx(model, target, bool(resume), given)
    if str(path) != model:
        options.pop("input_shape", None)  # the source was read at it, and its names may be other ones
    return compressed(path, data, target, quiet, options, given["force"])


def compressed(
    path: str | Path, data: str | None, target: str, quiet: bool, options: Mapping[str, Any], force: bool = False
) -> Said:
    """Compress an ONNX model and return what there is to say; 130 after an interruption that still gave a model."""
    from agmc_onnx.graph.outputs import output_files, twin_of
    from agmc_onnx.reporting.progress import Episodes
    from agmc_onnx.reporting.tables import summary
    from agmc_onnx.verbs.compress import compress

    with Episodes(quiet, noting()) as episodes:  # on stderr, beside --json too

        def progress(stage: str, facts: Mapping[str, Any]) -> None:
            if stage == "journal":
                for line in journal_lines(facts):
                    tell(line)
            else:
                episodes(stage, facts)

        result = compress(path, output=target, data=data, force=force, progress=progress, **options)
    report, files = result.report, {name: str(path) for name, path in output_files(target).items()}
    if result.twin is not None:
        files["float"] = str(twin_of(target))
    lines = [*summary(report), f"wrote {', '.join(files.values())}"]
    n_done, n_all = report["episodes"], episodes.n_episodes
    is_interrupted = report.get("interrupted")
    if n_done < n_all and not is_interrupted:
        lines.append(f"search: ended after {n_done} of {n_all} candidates by {ended_by(report)}")
    if is_interrupted:
        say_error(
            f"{PROGRAM}: interrupted after {n_done} of {n_all} episodes;"
            " the best model so far was verified and written. The same command with --resume goes on."
        )
    short = {name: fact for name, fact in report.items() if name not in LONG}
    return Said({**short, "files": files}, lines, INTERRUPTED if is_interrupted else 0)


def ended_by(report: Mapping[str, Any]) -> str:
    """Return which option ended a search before its last candidate."""
    settings, rewards = report["settings"], [record["reward"] for record in report["history"]]
    patience = settings["patience"]
    if len(rewards) - 1 - rewards.index(max(rewards)) >= patience or settings["minutes"] is None:
        return f"--patience {patience}"
    return f"--minutes {settings['minutes']:g}"


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `compress` that were given; a budget that was typed beats another one of the config file."""
    dropped = beaten(ONE_OF)
    return {
        name: value for name in known_options() if (value := given.get(name)) not in (None, ()) and name not in dropped
    }


def journal_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of the journal that a run begins with; of a new one nothing."""
    n = facts["resumed"] or facts["set_aside"]
    what = f"{n} evaluation{'s' if n > 1 else ''} of an interrupted run"
    if facts["resumed"]:
        return [f"resumed: {what}, from {facts['path']}"]
    return [f"starts anew: {what} set aside in {facts['old']}"] if n else []


def default_output(model: str | Path) -> Path:
    """Return where a compressed model goes when nothing was said: MODEL.agmc.onnx beside MODEL.onnx."""
    from agmc_onnx.exchange.importers import Source, is_onnx

    if Source(model).is_reference:
        return Path(f"{str(model).partition(':')[2]}.agmc.onnx")
    path = Path(model)
    is_stem = path.suffix == ".onnx" or not (path.is_dir() or is_onnx(path))
    return path.with_name(f"{path.stem if is_stem else path.name}.agmc.onnx")
