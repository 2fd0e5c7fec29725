"""The data of a run: calibration, reward and test, which never mix."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.data.samples import Dataset, Samples, load_card, open_data
from agmc_onnx.graph.sizes import InputSizes
from agmc_onnx.measuring.accuracy import BATCH, Evaluator, needs_original
from agmc_onnx.measuring.outputs import MAX_ENTRIES, answers_of
from agmc_onnx.measuring.random_inputs import runnable
from agmc_onnx.measuring.session import make_session, model_inputs, run_model
from agmc_onnx.options import Data, Execution

MOST_FACTOR = 8  # samples of the reward role that the best candidates are measured on, over those that every one is
MOST_BYTES = 1 << 30  # that these and what networks say of them may take, roughly; and random inputs, and one batch
COPIES = 6  # of an output: two networks', and both in double precision
N_LEAST = 2  # random inputs, however large


class Roles:
    """The three roles of the data, or their synthetic stand-ins.

    Attributes:
        real: Whether there is data.
        source: What the user named it, or None.
        metric: What is measured.
        augment: How the card augments what is learned from.
        answers: What the original's outputs are.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        source: str | Path | None,
        amounts: Data,
        execution: Execution,
        sizes: InputSizes | None = None,
        n_random: int = 64,
    ) -> None:
        """Open the data, and run the original once: it must run before anything else is done.

        Args:
            model: The original.
            source: A card, an .npz, a folder, "digits", or None.
            amounts: How much of every role is used, and what judges.
            execution: Threads, provider, and the seed of synthetic inputs.
            sizes: Of these; None: the first usual ones that the model runs on.
            n_random: How many of these every role has, or as many as fit.

        Raises:
            DataError: If the data cannot be used with this model.
            ModelError: If onnxruntime cannot run the model.
        """
        self.real = source is not None
        self._rewards: dict[int, Samples] = {}
        self.source = None if source is None else str(source)
        self._model = model
        inputs = model_inputs(self._model)
        if source is not None:
            dataset = open_data(load_card(source), inputs)
            self.metric = dataset.metric
            self.augment = () if dataset.card.train is None else dataset.card.train.augment
            said = dataset.card.outputs
            self._roles = {name: dataset.role(name) for name in ("calibration", "reward", "test")}
            self._dataset: Dataset | None = dataset if dataset.card.train is not None else None
            self._whole_reward = self._roles["reward"]
            self._roles["reward"] = self._whole_reward.take(amounts.reward_samples)
        else:
            self.metric, said = "agreement", {}
            self._roles = {
                name: runnable(self._model, n_random, execution.seed + i, sizes)
                for i, name in enumerate(("calibration", "reward", "test"))
            }
            self._whole_reward, self._dataset = self._roles["reward"], None
            self.augment = ()
        self.answers = answers_of(self._model, said)
        feed = self._roles["test"].take(1).feeds(1)[0]
        outputs = run_model(make_session(self._model, execution.threads), feed)
        arrays = [value for value in outputs if isinstance(value, np.ndarray)]
        rows = self._roles["test"].fixed_batch or 1
        n_fitting = MOST_BYTES // max(1, sum(array.nbytes for array in (*arrays, *feed.values())) * COPIES // rows)
        self._batch = max(1, min(BATCH, n_fitting))
        if not self.real and n_random > n_fitting:
            n_random = max(N_LEAST, n_fitting)
            self._roles = {name: samples.take(n_random) for name, samples in self._roles.items()}
            self._whole_reward = self._roles["reward"]
        of_outputs = sum(min(array.nbytes / rows, MAX_ENTRIES * array.itemsize) for array in arrays)
        of_inputs = sum(array.nbytes / rows for array in feed.values())
        self._sample_bytes = of_inputs + COPIES * of_outputs
        self._amounts, self._execution = amounts, execution

    @property
    def original(self) -> onnx.ModelProto:
        """The model that all others are compared with."""
        return self._model

    @property
    def absolute_source(self) -> str | None:
        """What the user named, such that another process finds it from wherever it runs."""
        if self.source is None or not Path(self.source).exists():
            return self.source
        return str(Path(self.source).absolute())

    def replace(self, name: str, samples: Samples) -> None:
        """Let a role have other samples; for synthetic ones only."""
        assert not self.real
        self._roles[name] = samples
        if name == "reward":
            self._whole_reward, self._rewards = samples, {}

    def role(self, name: str) -> Samples:
        """Return "calibration", "reward" or "test"."""
        return self._roles[name]

    @property
    def lessons(self) -> Samples:
        """The samples to learn from: the card's [train] images, else the calibration role."""
        return self._roles["calibration"] if self._dataset is None else self._dataset.role("train")

    def sizes(self) -> dict[str, int]:
        """Return the number of samples of every role."""
        return {name: samples.n for name, samples in self._roles.items()}

    @property
    def n_most(self) -> int:
        """Samples of the reward role that the best candidates are measured on: more than the others, as memory allows."""
        n_reward = self._amounts.reward_samples
        fitting = int(MOST_BYTES / max(self._sample_bytes, 1))
        return min(self._whole_reward.n, max(min(MOST_FACTOR * n_reward, fitting), n_reward))

    def evaluator(self, role: str, n_reward: int | None = None, close: bool = False) -> Evaluator:
        """Return what scores models on a role.

        Args:
            role: Its name.
            n_reward: Of the reward role, take so many samples instead of as many as a search does.
            close: Measure how close outputs are to the original's too.
        """
        samples = self._roles[role] if n_reward is None else self._first_rewards(n_reward)
        return self._evaluator(samples, original=self._model if close else None)

    def race(self) -> Evaluator:
        """Return what scores candidates on the reward role by how close their outputs are to the original's.

        All are measured on as many samples as the settings say; in a race, those that keep up on `n_most`.
        """
        n_first, early = self._amounts.reward_samples, self._amounts.racing
        return self._evaluator(
            self._first_rewards(self.n_most), original=self._model, n_first=n_first, stops_early=early
        )

    def _evaluator(self, samples: Samples, **more: Any) -> Evaluator:
        reference = self._model if needs_original(self.metric) else None
        here = self._execution
        run: dict[str, Any] = {"threads": here.threads, "provider": here.provider, "batch_size": self._batch}
        return Evaluator(samples, self.metric, reference=reference, answers=self.answers, **run, **more)

    def _first_rewards(self, n: int) -> Samples:
        """Return samples of the reward role, the same object for the same number: it keeps what it has read."""
        n = min(n, self._whole_reward.n)
        if n not in self._rewards:
            self._rewards[n] = self._whole_reward.take(n)
        return self._rewards[n]

    def digest(self) -> str:
        """Return the SHA-256 of all that a search sees of the data."""
        n = self._roles["reward"].n if self._amounts.judge == "metric" else self.n_most
        reward, calibration = self._first_rewards(n), self._roles["calibration"].take(self._amounts.search_samples)
        feeds = [
            *reward.feeds(self._batch),
            *(feed for feed, _ in calibration.batches(100)),
        ]  # as the evaluator keeps them
        arrays = [(name, feed[name]) for feed in feeds for name in sorted(feed)]
        return digest([*arrays, ("labels", None if reward.labels is None else np.asarray(reward.labels))])

    def verification_feeds(self) -> list[dict[str, np.ndarray]]:
        """Return a few inputs to compare models on."""
        return self._roles["calibration"].take(3).feeds(1)


def digest(arrays: Iterable[tuple[str, np.ndarray | None]]) -> str:
    """Return the SHA-256 of named arrays, hexadecimal: of their names, types, shapes and entries, in the order given."""
    found = hashlib.sha256()
    for name, array in arrays:
        found.update(f"{name} {None if array is None else (array.dtype.str, array.shape)}".encode())
        if array is not None:
            has_bytes = array.dtype.kind not in "OV"
            found.update(np.ascontiguousarray(array).data if has_bytes else repr(array.tolist()).encode())
    return found.hexdigest()
