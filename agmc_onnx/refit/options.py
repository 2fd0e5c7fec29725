"""Every option of the recovery and its default value, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


class Each(Protocol):
    """Hands on the items of a loop one by one, so that somebody may say how far it is; `iter` says nothing."""

    def __call__(self, items: Sequence[T], /) -> Iterable[T]: ...  # noqa: D102


Counting = Callable[[str], Each]  # of what a loop measures


# Samples of a step of distillation, of kinds of outputs that say much of each.
FEW_ROWS = {"detections": 8, "embedding": 32, "mask": 8, "positions": 32}


@dataclass(frozen=True)
class RecoverOptions:
    """Options of the closed-form refit, the error curves and the distillation.

    Attributes:
        n_samples: Calibration samples read, at most.
        n_positions: Output positions sampled per refitted node.
        n_curve_positions: Output positions sampled per node for error curves.
        ridges: Pull towards the old weights, as a share of the mean diagonal of the second moments; of several, the one
            that predicts one half of the samples best from the other, node by node.
        n_rounds: Solutions after the first one, each towards what an activation behind the node lets through of the
            target; 0: every value counts.
        quick_ridge: Least ridge of the quick refit, as a share of the mean diagonal of the covariance.
        thin_ridge: Where samples are few it is this many times the width over the number of positions.
        max_width: Nodes whose weight is wider (kernel places times input channels) are left out of the quick refit.
        batch_size: Samples run at a time; a model of a fixed batch dictates its own.
        memory_bytes: Activations of one network kept at a time; beyond it they are computed again from earlier ones.
        n_dream_steps: Steps that made-up images take towards the statistics stored in the network.
        dream_rate: Learning rate of these, in units of the images' deviation.
        seed: Of sampled positions, of made-up images, and of the order and augmentation of distillation.
        n_steps: Steps of distillation.
        train_batch_size: Images per step of distillation.
        train_memory_bytes: What activations of a step may take, roughly; large images come in smaller steps.
        optimiser: "adamw" or "sgd".
        learning_rate: Highest one; it warms up over `warmup_share` of the steps and falls as a cosine to nothing.
        warmup_share: Share of the steps in 0..1.
        weight_decay: Of kernels and matrices; biases and BatchNormalization have none.
        momentum: Of SGD.
        temperature: Logits of both networks are divided by it before the softmax.
        loss: "kl" of softened class probabilities, or "mse" between outputs (the only one for outputs that are no classes).
        block_share: Share of the steps, the first ones, in which every block up to a residual sum learns by itself, from
            the squared error of that sum over its variance; 0..1. None: a third where each sample comes up
            `many_epochs` times or more, so that few samples teach more than their answers; else 0.
        many_epochs: See `block_share`.
        hint_weight: Weight of what is learned from inside of the teacher (`distill.hints`), beside the answers.
        label_weight: Weight of the cross entropy with labels, where the samples have any; 0 learns without labels.
        train_statistics: Put normalisation with the statistics of the batch behind the convolutions while training
            (`distill.inserted`), where a step has samples enough.
        max_gradient: Largest norm of the gradient.
        evaluate_every: Steps between two evaluations of the reward, where one is given.
        patience: Evaluations without a better reward before it stops.
        save_every: Steps between two checkpoints, where a folder is given.
    """

    n_samples: int = 1000
    n_positions: int = 40_000
    n_curve_positions: int = 20_000
    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    n_rounds: int = 3
    quick_ridge: float = 1e-3
    thin_ridge: float = 0.02
    max_width: int = 8192
    batch_size: int = 100
    memory_bytes: int = 1 << 30
    n_dream_steps: int = 40
    dream_rate: float = 0.05
    seed: int = 0
    n_steps: int = 1000
    train_batch_size: int = 128
    train_memory_bytes: int = 4 << 30
    optimiser: str = "adamw"
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    weight_decay: float = 1e-4
    momentum: float = 0.9
    temperature: float = 4.0
    loss: str = "kl"
    block_share: float | None = None
    many_epochs: int = 10
    hint_weight: float = 1.0
    label_weight: float = 0.0
    train_statistics: bool = True
    max_gradient: float = 5.0
    evaluate_every: int = 200
    patience: int = 5
    save_every: int = 200


def rows_of_a_step(kinds: Iterable[str], most: int = RecoverOptions.train_batch_size) -> int:
    """Return the samples of a step of distillation.

    Args:
        kinds: Of outputs (`measuring.outputs.KINDS`).
        most: Samples of a step of class scores.
    """
    return min([most, *(FEW_ROWS[kind] for kind in kinds if kind in FEW_ROWS)])
