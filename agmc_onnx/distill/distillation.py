"""Distillation: the pruned network learns from the original's answers to unlabelled samples (Hinton et al. 2015)."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import hashlib
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from agmc_onnx.data.samples import Samples
from agmc_onnx.distill.folding import Folded
from agmc_onnx.distill.hints import Hint, hints_of
from agmc_onnx.distill.inserted import Normalised
from agmc_onnx.distill.losses import loss_of, relative_error
from agmc_onnx.distill.sizes import by_size, filter_sizes
from agmc_onnx.errors import ModelError, Notice, UsageError
from agmc_onnx.graph.edit import with_outputs
from agmc_onnx.graph.files import write_atomically
from agmc_onnx.graph.view import Graph, graph_of
from agmc_onnx.measuring.outputs import Answer
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.refit.goals import Goal, output_goals
from agmc_onnx.refit.options import RecoverOptions, rows_of_a_step
from agmc_onnx.refit.sites import find_sites
from agmc_onnx.torch_view.batches import takes_batches, with_open_batch
from agmc_onnx.torch_view.module import TorchGraph, to_model, to_tensor

Progress = Callable[[int, int, Mapping[str, float]], None]
Reward = Callable[[onnx.ModelProto], float]
Loss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Tensor | None], Tensor]
CHECKPOINT = "distill.pt"
LEAST_BATCH = 16  # samples of a step, below which statistics of a batch say too little
HOLD_EVERY = 10  # steps, after which a network that answers worse than before goes back, and learns half as fast
OWN_SHARE = 0.3  # of the learning rate, for these: it is a share of a filter's size (`distill.sizes`)
SLACK = 1.1  # of the least loss on the samples that say so
BLOCK_SHARE = 1 / 3  # of the steps, in which blocks learn by themselves where samples are few
N_STATISTICS = 256  # samples that they start from
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt
_LOSSES, _OPTIMISERS = ("kl", "mse"), ("adamw", "sgd")


def distill(
    student: onnx.ModelProto,
    teacher: onnx.ModelProto,
    samples: Samples,
    options: RecoverOptions | None = None,
    progress: Progress | None = None,
    *,
    augment: Sequence[str] = (),
    reward: Reward | None = None,
    folder: Path | None = None,
    thinned: Sequence[str] = (),
    answers: Sequence[Answer] | None = None,
    cut: Mapping[str, Mapping[str, Any]] | None = None,
    loss: Loss | None = None,
) -> onnx.ModelProto:
    """Return the student, trained to answer as the teacher does.

    Args:
        student: The pruned model, best refitted; not changed.
        teacher: The original; its outputs have the same names.
        samples: Any number; labels are only looked at where `options.label_weight` is not 0.
        options: Those of distillation.
        progress: Called with (step, steps, {"loss": ..., and "reward" where it was measured}).
        augment: Of "flip" (left to right) and "crop" (shift by up to an eighth, mirrored at the border); images only.
        reward: Scores a model, higher is better: the best scored model is returned, and training stops early when
            `options.patience` scores in a row were no better. Without it the last model is returned, or the student
            itself if the loss on the first batch has not become smaller.
        folder: For a checkpoint now and then, made when there is one; a checkpoint of the same student, teacher and options
            is taken up again. Removed at the end, the folder too if nothing else is in it.
        thinned: Tensors of the student whose zeros stay zero.
        answers: What the outputs say; None: what the teacher's graph tells.
        cut: The plan's tensors, which say what of every weight is kept: answers that are no class scores are learned with what
            is inside of the teacher as well (`distill.hints`).
        loss: Of the user's, instead of what the kinds of outputs say: takes the student's outputs and the teacher's by name, and
            the labels or None; gives a number to make small.

    Raises:
        ModelError: If an op has no counterpart in torch, or the loss becomes infinite.
        UsageError: If an option is unknown.
    """
    options = options or RecoverOptions()
    for kind, given, known in (("loss", options.loss, _LOSSES), ("optimiser", options.optimiser, _OPTIMISERS)):
        if given not in known:
            raise UsageError(f"distill: unknown {kind}, got {given!r}; expected one of {', '.join(known)}. Choose one.")
    unknown = set(augment) - {"flip", "crop"}
    if unknown:
        raise UsageError(
            f"distill: unknown augmentation, got {sorted(unknown)}; expected flip or crop. Correct augment."
        )
    run = _Distillation(student, teacher, samples, options, tuple(augment), folder, thinned, answers, cut, loss)
    return run.run(progress, reward)


class _Distillation:
    """One run: networks, optimiser, order of the samples, and the best state so far."""

    def __init__(
        self,
        student: onnx.ModelProto,
        teacher: onnx.ModelProto,
        samples: Samples,
        options: RecoverOptions,
        augment: tuple[str, ...],
        folder: Path | None,
        thinned: Sequence[str] = (),
        answers: Sequence[Answer] | None = None,
        cut: Mapping[str, Mapping[str, Any]] | None = None,
        loss: Loss | None = None,
    ) -> None:
        self.loss = loss
        self.proto, self.samples, self.options, self.augment = student, samples, options, augment
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        keep_freed_memory()
        self.folded = Folded(student)
        self.normalised: Normalised | None = None
        self.trained = self.folded.model
        self._most_rows = max(1, options.train_memory_bytes // _bytes_of_a_sample(graph_of(self.trained)))
        goals = output_goals(graph_of(teacher), answers)
        self.own = [goal.answer.kind for goal in goals if goal.answer is not None]
        self.is_open = self._takes_batches(self.trained)
        teacher_graph = graph_of(with_open_batch(teacher) if self.is_open else teacher)
        self.teacher = _Teacher(teacher_graph, self.device)
        self.goals = self._settled(goals)
        if options.train_statistics and not self.own and self._batch_rows() >= LEAST_BATCH:
            self.normalised = Normalised(self.trained, self._statistics_batches())
            self.trained = self.normalised.model
        student_graph = graph_of(with_open_batch(self.trained) if self.is_open else self.trained)
        self.hints: list[Hint] = []
        if self.own and cut is not None:
            self.hints = hints_of(student_graph, teacher_graph, cut, self.device)
        n_block_steps = 0 if self.own or loss is not None else self._block_steps()
        self.blocks = _block_goals(student_graph, teacher_graph) if n_block_steps else []
        self.n_block_steps = n_block_steps if self.blocks else 0
        self.student = _prepare(student_graph, self.device)
        self._train_mode()
        self.learned = list(self.student.parameters())
        self.sizes = filter_sizes(self.learned) if self.own else []
        named, values = dict(self.student.named_parameters()), self.student.names
        sparse = [named[key] for key, value in values.items() if value in set(thinned) and key in named]
        self.masks = [(parameter, (parameter != 0).to(parameter.dtype)) for parameter in sparse]
        decayed = [p for p in self.learned if p.dim() > 1]
        plain = [p for p in self.learned if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser: torch.optim.Optimizer
        if options.optimiser == "sgd":
            self.optimiser = torch.optim.SGD(groups, lr=0.0, momentum=options.momentum, nesterov=options.momentum > 0)
        else:
            self.optimiser = torch.optim.AdamW(groups, lr=0.0)
        self.step = 0
        self.best, self.best_reward, self.without_gain = self._state(), -math.inf, 0
        self.held, self.held_loss, self.share_of_rate = self.best, math.inf, OWN_SHARE if self.own else 1.0
        self.checkpoint = None if folder is None else folder / CHECKPOINT
        digest = hashlib.sha256(repr((options, augment, samples.n)).encode())
        for proto in (student, teacher):
            digest.update(proto.SerializeToString(deterministic=True))
        self.fingerprint = digest.hexdigest()

    def run(self, progress: Progress | None, reward: Reward | None) -> onnx.ModelProto:
        options = self.options
        probe = self._batch(0, still=True)
        before = self._probe_loss(probe)  # of the student as given: an interrupted run compares with it too
        self._resume()
        if reward is not None and self.step == 0:
            self.best_reward = reward(self.proto)
        while self.step < options.n_steps and self.without_gain < options.patience:
            told = {"loss": self._train_step()}
            if self.own and self.step % HOLD_EVERY == 0:
                self._hold(probe, before)
            if reward is not None and (self.step % options.evaluate_every == 0 or self.step == options.n_steps):
                told["reward"] = self._judge(reward)
            if self.checkpoint is not None and self.step % options.save_every == 0:
                self._save()
            if progress is not None:
                progress(self.step, options.n_steps, told)
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not there, or a search's journal lies in it
                self.checkpoint.parent.rmdir()
        if reward is not None:
            self._load(self.best)
        elif self._probe_loss(probe) >= before:
            return self.proto
        return self._model()

    # -- one step -----------------------------------------------------------------------------------------------------

    def _train_step(self) -> float:
        loss = self._loss(*self._batch(self.step), self.blocks if self.step < self.n_block_steps else ())
        if not torch.isfinite(loss):
            raise ModelError(
                f"distill: the loss is {loss.item()} at step {self.step}; expected a number. Use a smaller learning rate."
            )
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learned, self.options.max_gradient)
        before = [parameter.detach().clone() for parameter in self.learned] if self.sizes else []
        self.optimiser.step()
        if self.sizes:
            by_size(self.learned, before, self.sizes)
        with torch.no_grad():
            for parameter, mask in self.masks:
                parameter.mul_(mask)
        self.step += 1
        return float(loss.detach())

    def _block_steps(self) -> int:
        """Return the number of steps that blocks learn by themselves in, if there are any."""
        options, share = self.options, self.options.block_share
        if share is None:
            n_seen = options.n_steps * self._batch_rows()
            share = BLOCK_SHARE if n_seen >= options.many_epochs * self.samples.n else 0.0
        return round(share * options.n_steps)

    def _hold(self, probe: tuple[dict[str, Tensor], Tensor | None], before: float) -> None:
        """Keep what was learned so far, or go back to what was kept where the answers to the first samples became worse.

        Nothing that a refit gave is lost to the first steps, whatever rate suits a network.
        """
        loss = self._probe_loss(probe)
        if loss <= SLACK * min(self.held_loss, before):
            if loss < self.held_loss:
                self.held, self.held_loss = self._state(), loss
        else:
            self._load(self.held)
            self.optimiser.state.clear()
            self.share_of_rate /= 2

    def _learning_rate(self) -> float:
        """Return the rate of the next step: a linear rise, then half a cosine."""
        options = self.options
        rise, rate = max(1, round(options.warmup_share * options.n_steps)), options.learning_rate * self.share_of_rate
        if self.step < rise:
            return rate * (self.step + 1) / rise
        share = (self.step - rise) / max(1, options.n_steps - rise)
        return rate * 0.5 * (1 + math.cos(math.pi * share))

    def _loss(self, feed: Mapping[str, Tensor], labels: Tensor | None, blocks: Sequence[Goal] = ()) -> Tensor:
        """Return the loss of a batch; with blocks, every one of them learns by itself, and what is behind the last too."""
        if self.loss is not None:
            names = self.teacher.graph.outputs
            found, told = self.student.run(feed, names), self.teacher(feed, names)
            return self._users_loss({name: found[name] for name in names}, {name: told[name] for name in names}, labels)
        sums = [goal.value for goal in blocks]
        wanted = [*(value for goal in self.goals for value in goal.values), *(hint.value for hint in self.hints), *sums]
        found, told = self.student.run(feed, wanted, cut=sums), self.teacher(feed, wanted)
        total = torch.zeros((), device=self.device)
        for goal in self.goals:
            ours, theirs = ([values[name] for name in goal.values] for values in (found, told))
            total = total + loss_of(goal, ours, theirs, self.options.temperature, self.options.loss)
            if goal.is_scores and labels is not None:
                total = total + self.options.label_weight * F.cross_entropy(ours[0], labels)
        for value in sums:
            total = total + relative_error(found[value], told[value]) / len(sums)
        for hint in self.hints:
            error = relative_error(found[hint.value], hint.of(told[hint.value]))
            total = total + self.options.hint_weight * error / len(self.hints)
        return total

    def _users_loss(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        assert self.loss is not None
        try:
            value = self.loss(ours, theirs, labels)
        except Exception as error:  # the user's code may do anything
            raise UsageError(
                f"--loss: the function failed, got {type(error).__name__}: {error}; expected a number. Correct the function."
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UsageError(
                f"--loss: the function gave {type(value).__name__}; expected a tensor of one number. Correct it."
            )
        return value.reshape(())

    def _probe_loss(self, feed_and_labels: tuple[dict[str, Tensor], Tensor | None]) -> float:
        self.student.eval()
        with torch.no_grad():
            loss = float(self._loss(*feed_and_labels))
        self._train_mode()
        return loss

    def _train_mode(self) -> None:
        self.student.train()
        if self.normalised is None:
            self.student.freeze_statistics()
        else:
            self.normalised.learn_statistics(self.student)

    # -- samples ------------------------------------------------------------------------------------------------------

    def _batch(self, step: int, still: bool = False) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the samples of a step: each epoch is a new order; the same step always gets the same."""
        n, size = self.samples.n, self._batch_rows()
        per_epoch = max(1, n // size)
        epoch, at = divmod(step, per_epoch)
        order = np.random.default_rng([self.options.seed, epoch]).permutation(n)
        rows = np.resize(order[at * size : (at + 1) * size], size)
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        feed = {}
        for name, array in self.samples.read(rows).items():
            value = to_tensor(array)
            if self.augment and not still and value.dim() == 4 and value.is_floating_point():
                value = _augmented(value, self.augment, generator)
            if value.dim() == 4 and value.is_floating_point():
                value = value.contiguous(memory_format=torch.channels_last)
            feed[name] = value.to(self.device) if value.is_floating_point() else value
        labels = None
        if (self.options.label_weight or self.loss is not None) and self.samples.labels is not None:
            own = np.asarray(self.samples.labels[rows])
            labels = torch.from_numpy(own if self.loss is not None else own.astype(np.int64)).to(self.device)
        return feed, labels

    def _batch_rows(self) -> int:
        """Return the number of samples of a step: fewer than asked for where their activations would not fit."""
        if self.samples.fixed_batch is not None and not self.is_open:
            return self.samples.batch_size(1)
        wanted = rows_of_a_step(self.own, self.options.train_batch_size)
        return min(wanted, self._most_rows, self.samples.n)

    def _statistics_batches(self) -> list[dict[str, Tensor]]:
        """Return what the statistics of the student's values are taken over, a few samples at a time."""
        rows = np.random.default_rng(self.options.seed).permutation(self.samples.n)[:N_STATISTICS]
        size = self.samples.batch_size(LEAST_BATCH)
        parts = [rows[at : at + size] for at in range(0, len(rows) - size + 1, size)]
        read = [self.samples.read(np.sort(part)) for part in parts]
        return [{name: to_tensor(array) for name, array in feed.items()} for feed in read]

    def _takes_batches(self, model: onnx.ModelProto) -> bool:
        """Return whether a model of a fixed batch of one can learn from several samples at a time."""
        if self.samples.fixed_batch != 1 or self.samples.unbatched or self.samples.n < 2:
            return False
        feed = {name: to_tensor(array) for name, array in self.samples.read(np.arange(2)).items()}
        return takes_batches(TorchGraph(graph_of(with_open_batch(model))), feed)

    def _settled(self, goals: Sequence[Goal]) -> list[Goal]:
        """Return goals whose answers know their form, by what the teacher says to the first samples."""
        if all(goal.answer is None for goal in goals):
            return list(goals)
        told = self.teacher(self._batch(0, still=True)[0], self.teacher.graph.outputs)
        outputs = [told[name].cpu().numpy() for name in self.teacher.graph.outputs]
        return [
            goal if goal.answer is None else dataclasses.replace(goal, answer=goal.answer.settled(outputs))
            for goal in goals
        ]

    # -- states -------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Tensor]:
        return {key: value.detach().clone() for key, value in self.student.state_dict().items()}

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self.student.load_state_dict(state)

    def _model(self) -> onnx.ModelProto:
        model = to_model(self.student, self.trained)
        return self.folded.unfold(model if self.normalised is None else self.normalised.fold(model))

    def _judge(self, reward: Reward) -> float:
        score = reward(self._model())
        if score > self.best_reward:
            self.best, self.best_reward, self.without_gain = self._state(), score, 0
        else:
            self.without_gain += 1
        return score

    def _save(self) -> None:
        assert self.checkpoint is not None
        buffer = io.BytesIO()
        state: dict[str, Any] = {
            "fingerprint": self.fingerprint, "step": self.step, "student": self._state(), "best": self.best,
            "best_reward": self.best_reward, "without_gain": self.without_gain, "optimiser": self.optimiser.state_dict(),
            "held": self.held, "held_loss": self.held_loss, "share_of_rate": self.share_of_rate,
        }  # fmt: skip
        torch.save(state, buffer)
        self.checkpoint.parent.mkdir(exist_ok=True)
        write_atomically(self.checkpoint, buffer.getvalue())

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.is_file() or self.checkpoint.is_symlink():
            return  # a link is not followed: the next save replaces it
        before = self._state(), copy.deepcopy(self.optimiser.state_dict())
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            if state["fingerprint"] != self.fingerprint:
                return  # of another run: it is replaced by the next save
            self._load(state["student"])
            self.optimiser.load_state_dict(state["optimiser"])
            found = (int(state["step"]), state["best"], float(state["best_reward"]), int(state["without_gain"]))
            held = (state["held"], float(state["held_loss"]), float(state["share_of_rate"]))
        except Exception as error:  # torch raises anything: it is written whole, so it was damaged later
            self._load(before[0])
            self.optimiser.load_state_dict(before[1])
            aside = self.checkpoint.with_name(f"{self.checkpoint.name}.damaged")
            self.checkpoint.replace(aside)
            warnings.warn(
                f"{aside}: the checkpoint cannot be read ({type(error).__name__}) and was set aside; the run begins anew.",
                Notice,
                stacklevel=2,
            )
            return
        self.step, self.best, self.best_reward, self.without_gain = found
        self.held, self.held_loss, self.share_of_rate = held


class _Teacher:
    """The original's answers: from onnxruntime, which is faster than torch without gradients, or on a GPU from torch."""

    def __init__(self, graph: Graph, device: torch.device) -> None:
        self.graph = graph
        self.module = None if device.type == "cpu" else _prepare(graph, device).eval().requires_grad_(False)
        self.wanted: list[str] = []  # outputs of the session
        self.session: Any = None

    def __call__(self, feed: Mapping[str, Tensor], wanted: Sequence[str]) -> Mapping[str, Tensor]:
        """Return the wanted values; asking for others than the last time makes a new session."""
        names = list(dict.fromkeys(wanted))
        if self.module is not None:
            with torch.no_grad():
                return self.module.run(feed, names)
        if self.session is None or names != self.wanted:
            session = make_session(with_outputs(self.graph.model, names), torch.get_num_threads())
            self.session, self.wanted = session, names
        arrays = {name: value.contiguous().numpy() for name, value in feed.items()}
        return dict(zip(names, map(torch.from_numpy, run_model(self.session, arrays)), strict=True))


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step, where it is glibc: fetching it anew costs a fifth of a step."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 1 << 25)
        library.mallopt(_TRIM_THRESHOLD, -1)


def _prepare(graph: Graph, device: torch.device) -> TorchGraph:
    module = TorchGraph(graph).to(device)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return module


def _bytes_of_a_sample(graph: Graph) -> int:
    """Return what a step keeps of one sample, roughly: all values, normalised ones too."""
    shapes = [graph.shape(name) for node in graph.nodes for name in node.outputs if name and name not in graph.weights]
    return max(1, 2 * 4 * sum(math.prod(shape.dims) for shape in shapes if shape is not None))


def _block_goals(student: Graph, teacher: Graph) -> list[Goal]:
    """Return the residual sums that both networks have in the same shape."""
    sums = {site.target for site in find_sites(student) if site.others}
    both = [v for v in student.producer if v in sums and v in teacher.producer]
    return [Goal(v, False) for v in both if student.shape(v) == teacher.shape(v)]


def _augmented(images: Tensor, kinds: Sequence[str], generator: torch.Generator) -> Tensor:
    """Return images flipped and shifted at random, one by one; the layout is told by where 1, 3 or 4 channels are.

    Args:
        images: (samples, channels, height, width) or (samples, height, width, channels).
        kinds: Of "flip" and "crop".
        generator: Chooses.
    """
    is_last = images.shape[1] not in (1, 3, 4) and images.shape[3] in (1, 3, 4)
    x = images.permute(0, 3, 1, 2) if is_last else images
    n, _, h, w = x.shape
    if "flip" in kinds:
        turned = torch.rand(n, generator=generator) < 0.5
        x = torch.where(turned[:, None, None, None], x.flip(3), x)
    if "crop" in kinds:
        reach = max(1, min(h, w) // 8)
        padded = F.pad(x, [reach] * 4, mode="reflect")
        top, left = torch.randint(0, 2 * reach + 1, (2, n), generator=generator)
        rows, columns = top[:, None] + torch.arange(h), left[:, None] + torch.arange(w)
        x = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return x.permute(0, 2, 3, 1) if is_last else x
