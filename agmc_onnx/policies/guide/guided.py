"""`Guided(policy)`: any policy, with what is known beforehand and an error model round it. Ours, and no paper's.

Round whatever policy it is put, a search then does the following. It begins with the prior's candidates, those of them that the
generalist prefers. Then the policy says what it would do; climbs on the error model begin there and at the best episodes so
far, and of what they find, brought to the budget, the error model's favourite is evaluated. Guide and policy both learn of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agmc_onnx.arrays import FloatArray
from agmc_onnx.policies.agmc.ddpg import single_thread
from agmc_onnx.policies.guide.guide import Guide
from agmc_onnx.policies.guide.prior import prior_candidates, unchecked_candidates
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.policy import Policy
from agmc_onnx.search.problem import Outcome, Problem

N_FROM_BEST, N_FROM_POLICY = 4, 8  # where climbs begin: at means of the best episodes, at what the policy would do
N_CLIMBS = 4  # from each of the former


@dataclass(frozen=True)
class GuideOptions:
    """Of the guide.

    Attributes:
        generalist: Let the error model start from what a network trained beforehand over many others says, where there is data
            (`policies.guide.generalist`).
        n_preferred: How many of the prior's candidates a search measures where the generalist chooses them; one for every three
            groups where that is more.
        recombine: Let climbs begin at means of the best episodes too, not at the best one alone (`Guide.centres`).
    """

    generalist: bool = True
    n_preferred: int = 4
    recombine: bool = True


class Guided:
    """A policy of any kind, guided.

    A policy may say more than the protocol asks for: `starts(n)`, what it would do in n episodes, or None while it explores;
    `know(table)`, to be told what the error model expects actions to cost; `generator`, which the guide then shares.

    Attributes:
        policy: The policy inside.
        guide: The guide.
    """

    def __init__(self, policy: Policy, problem: Problem, options: SearchOptions, rng: np.random.Generator) -> None:
        """Put the guide round a policy that was made for this problem."""
        self.policy, self.problem = policy, problem
        self.options: GuideOptions = options.guide or GuideOptions()
        self.n_episodes = options.n_episodes
        generator = getattr(policy, "generator", None) or torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.guide = Guide(problem, options.n_episodes, generator, self.options.generalist)
        self._waiting: list[FloatArray] | None = None

    @property
    def n_extra(self) -> int:
        """Evaluations that the policy made beside the episodes."""
        return int(getattr(self.policy, "n_extra", 0))

    @property
    def notes(self) -> list[str]:
        """What the policy has to say of what it did."""
        return list(getattr(self.policy, "notes", ()))

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return the prior's next candidate, then what the guide makes of the policy's proposals."""
        if self._waiting is None:
            self._waiting = self.guide.preferred(prior_candidates(self.problem), self.options.n_preferred)
        if self._waiting:
            return self._waiting.pop(0)
        return self._climbed(rng) if self.problem.has_budget else self.policy.propose(rng)

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Let the guide learn from an episode, then the policy."""
        self.guide.observe(torch.as_tensor(np.asarray(keep_ratio_executed), dtype=torch.float32), reward)
        told: Any = self.policy
        if hasattr(told, "know"):
            told.know(self.guide.model.table().float())
        self.policy.observe(keep_ratio_executed, reward, outcome)

    @single_thread()
    def _climbed(self, rng: np.random.Generator) -> FloatArray:
        """Return what the guide likes best of what it finds near the best episodes and the policy's choice."""
        asked: Any = self.policy
        found: Tensor | None
        if hasattr(asked, "starts"):
            found = asked.starts(N_FROM_POLICY)
        else:
            found = torch.as_tensor(self.policy.propose(rng), dtype=torch.float32).expand(N_FROM_POLICY, -1)
        if found is None or self.guide.best is None:
            return self.policy.propose(rng)
        best = self.guide.best[1].expand(N_FROM_BEST, -1)
        centres = self.guide.centres(N_FROM_BEST) if self.options.recombine else best
        return self.guide.favourite(torch.cat([centres.repeat(N_CLIMBS, 1), found]))


def unmeasured(problem: Problem, options: SearchOptions) -> list[FloatArray]:
    """Return the prior's first candidates, as the generalist prefers them: what a search without evaluations takes."""
    guide = Guide(problem, 0, torch.Generator(), options.guide is None or options.guide.generalist)
    return guide.preferred(unchecked_candidates(problem), 0, options.n_decided)[: options.n_decided]
