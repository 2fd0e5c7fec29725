"""The AGMC policy: graph encoder, decoder and DDPG agent behind the `Policy` protocol."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agmc_onnx.config import AgmcOptions, SearchOptions
from agmc_onnx.errors import UsageError
from agmc_onnx.search.policies import generalist
from agmc_onnx.search.policies.ddpg import DdpgAgent, Known, single_thread, truncated_normal
from agmc_onnx.search.policies.guide import N_GRID, SMALLEST, Guide, on_grid
from agmc_onnx.search.policies.linear_budget import LinearBudget, linear_budget
from agmc_onnx.search.policies.states import GraphStates, GraphTensors, States
from agmc_onnx.search.prior import best_curves, prior_candidates
from agmc_onnx.search.problem import FloatArray, Outcome, Problem

# of a decision without evaluations: rollouts of the actor, steps uphill, candidates of a step, noise, groups left alone
N_OWN, N_CLIMBS, N_CLIMB, CLIMB_SIGMA, CLIMB_SHARE = 8, 40, 32, 0.1, 0.7
N_FROM_BEST, N_FROM_ACTOR = 4, 2  # climbs of an episode, from the best one and from what the actor takes


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
        mutation_share=1.0,
    )


def n_warmup(options: AgmcOptions, n_episodes: int) -> int:
    """Return the number of random episodes: `warmup`, or `warmup_share` of all if that is less."""
    return min(options.warmup, int(options.warmup_share * n_episodes))


class AgmcPolicy:
    """Learns from every episode; see `AgmcOptions` for what is the paper's and what is ours."""

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
        self.guide = (
            Guide(problem, options.n_episodes, self.generator) if options.agmc.known and options.agmc.fitted else None
        )
        known = _known(problem, self.budget, options.agmc) if options.agmc.known else None
        self.agent = DdpgAgent(
            lambda: self.make_states(problem, options.agmc, known), self.budget, options.agmc, self.generator, known
        )
        self.problem = problem
        has_table = known is not None and known.table is not None
        self.is_generalist = options.agmc.generalist and has_table and generalist.fits(self.agent.networks)
        if self.is_generalist:
            generalist.load(self.agent.networks)
            self.agent.follow_at_once()

    def make_states(self, problem: Problem, options: AgmcOptions, known: Known | None) -> States:
        """Return what the agent sees: encoder and decoder here."""
        return GraphStates(
            _graph_tensors(problem), problem.n_groups, options, None if known is None else known.features
        )

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

    def decide(self) -> FloatArray:
        """Return float64 (n_groups,) keep ratios without any evaluation: the generalist's choice.

        Of the prior's candidates and the actor's own its critic takes the best, then climbs from there by noise on some
        groups. Without the generalist (no data, or an agent of other sizes) the prior's first candidate is taken.
        """
        prior = prior_candidates(self.problem)
        if not self.is_generalist:
            return prior[0]
        agent = self.agent
        start = torch.as_tensor(np.array(prior), dtype=torch.float32)
        options = torch.cat([start, agent.rollout(N_OWN, 0.0), agent.rollout(N_OWN, agent.sigma)])
        best = options[int(agent.judge(options).argmax())]
        for _ in range(N_CLIMBS):
            noisy = truncated_normal(best.expand(N_CLIMB, -1), CLIMB_SIGMA, self.generator)
            kept = torch.rand(noisy.shape, generator=self.generator) < CLIMB_SHARE
            options = agent.budget.rescale(torch.cat([best[None], torch.where(kept, best, noisy)]))
            best = options[int(agent.judge(options).argmax())]
        return self._as_ratio(best)

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
        """Return the critic's favourite of what the guide finds near the best episode and near the actor's choice."""
        assert self.best is not None
        starts = self.best[1].expand(N_FROM_BEST, -1)
        if self.options.n_updates:
            starts = torch.cat([starts, self.agent.rollout(N_FROM_ACTOR, self.agent.sigma)])
        self.agent.decay_noise()
        return guide.favourite(starts, self.agent.judge)

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
    def _as_ratio(actions: Tensor) -> npt.NDArray[np.float64]:
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
    return Known(torch.as_tensor(_standardised(np.concatenate(columns, axis=1)), dtype=torch.float32), table)


def _spread(known: Known, budget: LinearBudget, sigma: float) -> float:
    """Return half the distance between the 16th and the 84th percentile of the error of episodes around the uniform one."""
    draws = truncated_normal(budget.keep_ratio.expand(256, -1), sigma, torch.Generator().manual_seed(0))
    errors = known.error(budget.rescale(draws))
    assert errors is not None
    low, high = torch.quantile(errors.sum(dim=1), torch.tensor([0.16, 0.84])).tolist()
    return max((high - low) / 2, 1e-9)


def _standardised(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return columns of mean 0 and deviation 1; a constant column becomes zero."""
    deviation = x.std(axis=0)
    return np.asarray((x - x.mean(axis=0)) / np.where(deviation > 1e-12, deviation, 1.0))


def _graph_tensors(problem: Problem) -> GraphTensors:
    """Return the graph with standardised node features (a constant column becomes zero)."""
    x = _standardised(np.asarray(problem.graph.x, dtype=np.float64))
    counts = [len(nodes) for nodes in problem.group_nodes]
    nodes = np.concatenate([np.zeros(0, dtype=np.int64), *map(np.asarray, problem.group_nodes)]).astype(np.int64)
    return GraphTensors(
        torch.as_tensor(x, dtype=torch.float32),
        torch.as_tensor(np.asarray(problem.graph.edge_index), dtype=torch.long),
        torch.as_tensor(np.asarray(problem.graph.edge_type), dtype=torch.long),
        problem.graph.n_edge_types,
        torch.as_tensor(np.repeat(np.arange(len(counts)), counts), dtype=torch.long),
        torch.as_tensor(nodes, dtype=torch.long),
    )
