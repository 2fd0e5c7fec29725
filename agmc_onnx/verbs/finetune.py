"""The verb `finetune`: a compressed model learns from its original, without labels unless they are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from agmc_onnx.data.samples import load_card, open_data
from agmc_onnx.errors import ModelError, UsageError
from agmc_onnx.graph.commit import settle
from agmc_onnx.graph.files import read_model
from agmc_onnx.graph.outputs import check_output, check_set, output_files, stamped, twin_of, write_files
from agmc_onnx.measuring.accuracy import Evaluator, needs_original, user_function
from agmc_onnx.measuring.outputs import answers_of
from agmc_onnx.measuring.session import model_inputs, processors
from agmc_onnx.pruning.plan import read_plan
from agmc_onnx.pruning.sparsity import dense
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.reporting.record import metric_facts
from agmc_onnx.reporting.schema import Metric
from agmc_onnx.run.inputs import inputs_of
from agmc_onnx.schema import Record
from agmc_onnx.verbs.given import Given, on_files, path_of

Progress = Callable[[int, int, Mapping[str, float]], None]
REWARD_SAMPLES = 4000  # of the reward role, that decide when to stop


@dataclass(frozen=True, eq=False)
class TunedReport(Record):
    """Metric of the original, and of the model before and after, on the test role; and what that took."""

    teacher: Metric
    before: Metric
    after: Metric
    steps: int
    samples: int
    labels: bool
    seed: int
    wall_s: float


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning gave.

    Attributes:
        model: The fine-tuned model.
        report: How it did.
    """

    model: onnx.ModelProto
    report: TunedReport


@on_files
def finetune(
    model: Given,
    *,
    teacher: Given,
    data: str | Path,
    output: str | Path | None = None,
    steps: int = 1000,
    label_weight: float = 0.0,
    learning_rate: float = RecoverOptions.learning_rate,
    seed: int = 0,
    threads: int | None = None,
    loss: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Tuned:
    """Distil a compressed model from its original.

    It learns from the card's [train] images where it has them, else from the calibration role; the reward role decides when
    to stop, and which state is kept; the test role is measured before and after. Killed, the same call goes on from its
    last checkpoint, which lies in the folder X.run beside the output.

    Args:
        model: What `compress` wrote; of a quantised X.onnx its twin X.float.onnx learns, and the result is float.
        teacher: The original.
        data: A data card, an .npz, a folder, or "digits".
        output: Where to write it; the plan beside `model` goes along. None writes nothing.
        steps: Optimiser steps, at least 1.
        label_weight: Weight of the cross entropy with labels, at least 0; 0 learns without labels.
        learning_rate: Highest one of AdamW, above 0; it warms up and falls as a cosine to nothing.
        seed: Of the order of the samples and their augmentation.
        threads: Of onnxruntime and torch; None: all processors.
        loss: "module:function" of a function(ours, theirs, labels) -> torch tensor of one number, made small: outputs of both
            models by name, and labels (of [train]) or None. None: what the kinds of outputs say.
        force: Write over files at the output that are not ours; inputs are never written over.
        progress: Called with (step, steps, {"loss": ..., and "reward" where it was measured}).

    Raises:
        UsageError: If an option is out of range or the output cannot be written.
        ModelError: If the two models do not belong together, or an op cannot be trained.
        DataError: If the data cannot be used.
    """
    start = time.perf_counter()
    model, teacher = path_of(model), path_of(teacher)
    threads = processors() if threads is None else threads
    if not 0 < learning_rate < 1:
        raise UsageError(
            f"finetune: learning rate is out of range, got {learning_rate}; expected 0 < R < 1, such as 5e-4."
        )
    for name, value, low in (("steps", steps, 1), ("label weight", label_weight, 0), ("threads", threads, 1)):
        if value < low:
            raise UsageError(f"finetune: {name} is too small, got {value}; expected at least {low}. Give more.")
    beside = output_files(model)["plan"]
    if beside.is_file() and read_plan(beside).precision and twin_of(model).is_file():
        check_set(Path(model), twin_of(model))
        model = twin_of(model)  # what learns is float; quantise what comes of it
    if output is not None:
        settle(output)
        inputs = inputs_of(model, data, the_teacher_itself=teacher, the_plan_of_the_model=beside)
        check_output(output, inputs, force)
    own_loss = None if loss is None else user_function(loss, "--loss")
    settle(model)
    check_set(Path(model), beside)
    student, original = dense(read_model(model).proto), read_model(teacher).proto
    _belong_together(student, original, model, teacher)
    plan = read_plan(beside) if beside.is_file() else None
    card = load_card(data)
    dataset = open_data(card, model_inputs(original))
    samples = dataset.role("train" if card.train is not None else "calibration")
    reference = original if needs_original(dataset.metric) else None
    kinds: dict[str, Any] = {"answers": answers_of(original, card.outputs), "threads": threads}
    scored = {
        name: Evaluator(dataset.role(name).take(n), dataset.metric, reference=reference, **kinds)
        for name, n in (("reward", REWARD_SAMPLES), ("test", dataset.role("test").n))
    }
    from agmc_onnx.distill.distillation import distill
    from agmc_onnx.refit.scores import rescored
    from agmc_onnx.search.journal import run_folder
    from agmc_onnx.torch_view.threads import torch_threads

    options = RecoverOptions(
        n_steps=steps, learning_rate=learning_rate, label_weight=label_weight, seed=seed,
        evaluate_every=max(1, min(200, steps // 5)),
    )  # fmt: skip
    with torch_threads(threads):
        tuned = distill(
            student, original, samples, options, progress,
            augment=() if card.train is None else card.train.augment,
            reward=lambda candidate: scored["reward"](candidate).score.value,
            folder=None if output is None else run_folder(output),
            thinned=[] if plan is None else list(plan.sparsity),
            answers=kinds["answers"],
            cut=None if plan is None else plan.tensors,
            loss=own_loss,
        )  # fmt: skip
    tuned = rescored(tuned, original, dataset.role("reward").take(REWARD_SAMPLES), kinds["answers"])
    bare = None if plan is None else replace(plan, set_id=None, precision={})
    tuned, set_id = stamped(tuned, "" if bare is None else bare.to_json())
    teacher_score, before, after = (metric_facts(scored["test"](one).score) for one in (original, student, tuned))
    wall_s = round(time.perf_counter() - start, 3)
    report = TunedReport(teacher_score, before, after, steps, samples.n, label_weight > 0, seed, wall_s)
    if output is not None:
        write_files(tuned, {} if bare is None else {"plan": replace(bare, set_id=set_id).to_json()}, output)
    return Tuned(tuned, report)


def _belong_together(
    student: onnx.ModelProto, original: onnx.ModelProto, model: str | Path, teacher: str | Path
) -> None:
    def names(proto: onnx.ModelProto) -> tuple[list[str], list[str]]:
        return [spec.name for spec in model_inputs(proto)], [value.name for value in proto.graph.output]

    if names(student) != names(original):
        raise ModelError(
            f"{model}: its inputs and outputs are not those of {teacher}, got {names(student)}; expected"
            f" {names(original)}. Give the original that it was compressed from as --teacher."
        )
