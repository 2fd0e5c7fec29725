"""The AGMC policy: graph encoder, decoder and DDPG agent behind the `Policy` protocol."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agmc_onnx.arrays import FloatArray
from agmc_onnx.errors import UsageError
from agmc_onnx.options import AgmcOptions, SearchOptions
from agmc_onnx.policies.agmc.ddpg import DdpgAgent, Known, single_thread, truncated_normal
from agmc_onnx.policies.agmc.states import GraphStates, States, graph_tensors, standardised
from agmc_onnx.policies.guide.guide import N_GRID, SMALLEST, Guide, on_grid
from agmc_onnx.policies.guide.linear_budget import LinearBudget, linear_budget
from agmc_onnx.policies.guide.prior import best_curves
from agmc_onnx.search.problem import Outcome, Problem

N_FROM_BEST, N_FROM_ACTOR = 4, 8  # where climbs of an episode start: at means of the best ones, at what the actor takes
N_CLIMBS = 4  # from each of the former


def paper_options() -> AgmcOptions:
    """Return the options with all our additions off: the paper's setting, the published code's where the paper is silent."""
    return AgmcOptions(
        n_encoder_layers=1,
        identity_size=0,
        group_embedding=False,
        actor_lr=1e-4,
        batch_size=64,
        min_buffer_episodes=1,
        warmup_share=0.25,
        warmup_around="paper",
        noise=0.5,
        noise_decay=0.95,
        noise_floor=0.02,
        reward_on="all",
        normalise_reward=False,
        rescale_in_update=False,
        elite_share=0.0,
        n_candidates=1,
        known=False,
        fitted=False,
        generalist=False,
        recombine=False,
        mutation_share=1.0,
    )


def n_warmup(options: AgmcOptions, n_episodes: int) -> int:
    """Return the number of random episodes: `warmup`, or `warmup_share` of all if that is less."""
    return min(options.warmup, int(options.warmup_share * n_episodes))


class AgmcPolicy:
    """Learns from every episode; see `AgmcOptions` for what is the paper's and what is ours.

    Attributes:
        sees_graph: Whether an encoder reads the graph; without, there is no generalist either.
    """

    sees_graph = True

    def __init__(self, problem: Problem, options: SearchOptions, rng: np.random.Generator) -> None:
        """Make the agent.

        Args:
            problem: The network to compress.
            options: Episodes and the options of the agent.
            rng: Seeds the agent's own generator.

        Raises:
            UsageError: If an option has an unknown value.
        """
        _check(options.agmc)
        self.options = options.agmc
        self.n_episodes = options.n_episodes
        self.n_warmup = n_warmup(options.agmc, options.n_episodes)
        self.episode = 0
        self.best: tuple[float, Tensor] | None = None
        self.generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.budget = linear_budget(problem)
        self.guide = None
        if options.agmc.known and options.agmc.fitted:
            self.guide = Guide(problem, options.n_episodes, self.generator, self.sees_graph and options.agmc.generalist)
        known = _known(problem, self.budget, options.agmc) if options.agmc.known else None
        self.agent = DdpgAgent(
            lambda: self.make_states(problem, options.agmc, known), self.budget, options.agmc, self.generator, known
        )
        self.problem = problem

    def make_states(self, problem: Problem, options: AgmcOptions, known: Known | None) -> States:
        """Return what the agent sees: encoder and decoder here."""
        return GraphStates(graph_tensors(problem), problem.n_groups, options, None if known is None else known.features)

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return float64 (n_groups,) keep ratios; the first of all, if nothing was observed, is the uniform one."""
        if self.episode < self.n_warmup or self.best is None:
            return self._as_ratio(self._warmup())
        options, agent = self.options, self.agent
        if self.guide is not None:
            return self._guided(self.guide)
        around_best = float(torch.rand((), generator=self.generator)) < options.elite_share
        if options.n_candidates == 1 and not around_best:
            candidates = agent.rollout(1, agent.sigma)
        else:
            centre = self.best[1] if around_best else agent.rollout(1, 0.0)[0]
            candidates = self._around(centre, options.n_candidates)
        agent.decay_noise()
        if len(candidates) == 1:
            return self._as_ratio(candidates[0])
        return self._as_ratio(candidates[int(agent.judge(candidates).argmax())])

    def preferred(self, candidates: list[FloatArray], n: int | None = None) -> list[FloatArray]:
        """Return the n of these keep ratios (n_groups,) that the generalist likes best, the first most (`Guide.preferred`).

        By default `n_preferred`, or more where there are many groups. Without the generalist (no data, or an option says so) all
        of them, in their own order.
        """
        return candidates if self.guide is None else self.guide.preferred(candidates, self.options.n_preferred, n)

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Store the episode, and train once the warm-up is over."""
        actions = torch.as_tensor(np.asarray(keep_ratio_executed), dtype=torch.float32)
        self.agent.remember(actions, reward)
        if self.best is None or reward > self.best[0]:
            self.best = reward, actions
        self.episode += 1
        if self.guide is not None:
            self.guide.observe(actions, reward)
            self.agent.know(self.guide.model.table().float())
        if self.episode >= self.n_warmup:
            for _ in range(self.options.n_updates):
                self.agent.update()

    @single_thread()
    def _guided(self, guide: Guide) -> FloatArray:
        """Return what the guide likes best of what it finds near the best episodes and the actor's choice."""
        assert self.best is not None
        starts = guide.centres(N_FROM_BEST) if self.options.recombine else self.best[1].expand(N_FROM_BEST, -1)
        starts = starts.repeat(N_CLIMBS, 1)
        if self.options.n_updates:
            starts = torch.cat([starts, self.agent.rollout(N_FROM_ACTOR, self.agent.sigma)])
        self.agent.decay_noise()
        return guide.favourite(starts)

    def _warmup(self) -> Tensor:
        """Return the actions of a random episode (n_groups,)."""
        uniform = self.budget.keep_ratio
        if self.options.warmup_around == "paper":
            return torch.rand(uniform.shape, generator=self.generator)
        if self.best is None:
            return uniform
        centre = self.best[1] if self.options.warmup_around == "best" else uniform
        return truncated_normal(centre, self.options.warmup_sigma, self.generator)

    def _around(self, centre: Tensor, n: int) -> Tensor:
        """Return n candidates (n, n_groups) around one, each with noise on a part of the groups only."""
        noisy = truncated_normal(centre.expand(n, -1), self.agent.sigma, self.generator)
        share = self.options.mutation_share
        if share >= 1:
            return noisy
        draw = torch.rand(noisy.shape, generator=self.generator)
        least = draw.topk(min(2, draw.shape[1]), dim=1, largest=False).values[
            :, -1:
        ]  # of one alone the budget leaves nothing
        return torch.where((draw < share) | (draw <= least), noisy, centre)

    @staticmethod
    def _as_ratio(actions: Tensor) -> FloatArray:
        """Return actions as the search wants them."""
        return np.clip(actions.double().numpy(), SMALLEST, 1.0)


def _check(options: AgmcOptions) -> None:
    """Raise if a choice is unknown."""
    for name, choices in (
        ("encoder", ("mean", "diffpool")),
        ("warmup_around", ("best", "budget", "paper")),
        ("reward_on", ("share", "all", "final")),
    ):
        if getattr(options, name) not in choices:
            raise UsageError(
                f"agmc: unknown {name}, got {getattr(options, name)!r}; expected one of {', '.join(choices)}."
            )


def _known(problem: Problem, budget: LinearBudget, options: AgmcOptions) -> Known:
    """Return features and error curves; without data the curves say too little to start a critic from."""
    columns = [np.asarray(problem.features, np.float64)]
    table = None
    if problem.curves is not None:
        errors = on_grid(best_curves(problem), problem)
        table = torch.as_tensor(errors, dtype=torch.float32)
        columns.append(np.log(errors[:, [N_GRID // 4, N_GRID // 2]] + 1e-4))
        table = table / _spread(Known(table, table), budget, options.warmup_sigma)
    elif options.fitted:
        table = torch.zeros(problem.n_groups, N_GRID)  # the error model fills it
    if problem.is_joined is not None:
        columns.append(problem.is_joined[:, None].astype(np.float64))
    return Known(torch.as_tensor(standardised(np.concatenate(columns, axis=1)), dtype=torch.float32), table)


def _spread(known: Known, budget: LinearBudget, sigma: float) -> float:
    """Return half the distance between the 16th and the 84th percentile of the error of episodes around the uniform one."""
    draws = truncated_normal(budget.keep_ratio.expand(256, -1), sigma, torch.Generator().manual_seed(0))
    errors = known.error(budget.rescale(draws))
    assert errors is not None
    low, high = torch.quantile(errors.sum(dim=1), torch.tensor([0.16, 0.84])).tolist()
    return max((high - low) / 2, 1e-9)
