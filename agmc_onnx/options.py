"""Every option of the search and its default value, once, with where the value comes from.

Sources are tagged: *paper* = AGMC, arXiv:2011.12641v1, section 4 unless said; *code* = the repository published with it
(`yusx-swapp/AGMC`, db1c632); *ours* = a choice or measurement of this project (`docs` and `tests/test_agmc.py`).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields, replace
from typing import Any

from agmc_onnx.errors import UsageError


@dataclass(frozen=True)
class AgmcOptions:
    """Options of the AGMC policy: encoder, decoder, DDPG agent, and what we added to learn from 100 evaluations.

    `paper_options` in `agmc_onnx.policies.agmc.policy` gives the setting with all our additions switched off.

    Attributes:
        encoder: "mean" (paper, for ResNets) or "diffpool" (paper, for VGG-16 and MobileNet-V2; refuses large graphs).
        embedding_size: d, width of g, of node embeddings and of the decoder's state; 30 (code).
        n_encoder_layers: GCN layers of the mean-pool encoder. Paper: "l"; code: 1. Ours: 2, so that a value sees its neighbours'
            neighbours.
        edge_embedding_size: Width of the learned embedding of an edge's type; ours (the paper types edges, but never says how
            the encoder reads the types).
        diffpool_clusters: Clusters after the first pooling of the DiffPool encoder; 10 (code). The last pooling has one (paper).
        diffpool_max_nodes: Largest graph the DiffPool encoder takes; its adjacency is dense, 5,000 nodes are 100 MB (ours).
        carry_state: Carry the decoder's LSTM state along the episode (paper, eq. 8). False: published code, cell reset at
            every step.
        group_embedding: Give the decoder the mean embedding of the group's own graph nodes beside [s_{t-1}, a_{t-1}]; ours,
            because a chain that starts from g can tell groups apart only by counting.
        identity_size: Width of a learned vector per group, beside its embedding; 0 for none; ours, groups that look alike in
            the graph may still differ.
        frozen_encoder: True: encoder and decoder stay as initialised, as they in effect did in the published code (ablation).
        hidden_size: Units of both hidden layers of actor and critic; 300 (paper).
        actor_lr: Adam rate of the actor; 1e-4 (code) is too slow for 100 episodes; 1e-3 is ours.
        critic_lr: Adam rate of the critic (and of encoder and decoder through it); 1e-3 (code).
        tau: Weight of the new parameters in the target networks; 0.01 (paper).
        gamma: Discount; 1 (code).
        baseline_momentum: alpha of the moving average b of batch mean rewards; 0.5 (code).
        batch_size: Transitions of one update; whole episodes are drawn until it is reached; 64 (paper). Ours: 128.
        buffer_size: Transitions kept, at least `min_buffer_episodes` episodes; 2000 (paper).
        min_buffer_episodes: Smallest capacity in whole episodes, so that 2000 transitions of a network with 300 groups do not
            leave seven episodes; ours.
        n_updates: Updates after each episode once warm-up is over; ours (code: one per transition). For 27 groups and 300 graph
            nodes one takes 12 ms on one core, 2 instead of 4 found somewhat less where sensitivity follows the
            structure, and as much where it does not.
        warmup: Random episodes at the start; 100 (paper), but at most `warmup_share` of all.
        warmup_share: See `warmup`; a quarter is the paper's own share (100 of 400). Ours: a tenth, the known errors do the rest.
        warmup_around: "best": around the best episode so far, at first the uniform ratio that meets the budget (ours);
            "budget": around the uniform ratio; "paper": U(0, 1), which over-prunes nearly always.
        warmup_sigma: Width of the warm-up noise around the uniform ratio (ours).
        noise: sigma_0 of the truncated normal exploration noise of eq. 9; 0.5 (code). Ours: 0.2, the budget already fixes
            the level.
        noise_decay: Factor per episode after warm-up; 0.95 (code). Ours: 0.98, for searches of 100 episodes.
        noise_floor: Smallest sigma (ours; without it exploration is over after some 100 episodes).
        reward_on: "all": the final reward stands on every transition (code); "final": only on the last one; "share": the
            critic's values of an episode's transitions add up to its reward, so that each group gets its own part (ours).
        normalise_reward: Divide r - b by the standard deviation of the rewards seen (ours; makes rates independent of units).
        rescale_in_update: Put the actor's actions on the budget (Algorithm 1 with all W the marginal costs, differentiable)
            before the critic judges them (ours; without it "keep everything" looks best).
        elite_share: Share of episodes after warm-up that explore around the best episode instead of the actor (ours;
            0 is the paper).
        n_candidates: Noisy action vectors drawn per episode, of which the critic's favourite is evaluated; 1 is the paper.
        mutation_share: Chance of each group to get noise in such a vector (two groups always do); 1 is the paper.
        clamp: Clamp every action of the actor to what lets the later groups meet the budget, as AMC does (`amc`'s ablation).
        known: Give the decoder the static features of the groups, and the critic the refit error of every action where there
            are error curves (ours).
        fitted: Learn from the episodes what each group's known errors cost in reward (a weight a group, `error_model`), and
            take what that model finds; only with `known` (ours).
        generalist: Let the error model start from what a network trained beforehand over many others says, where there is data
            (`policies.guide.generalist`; ours).
        n_preferred: How many of the prior's candidates a search measures where the generalist chooses them; one for every three
            groups where that is more (ours).
        recombine: Let climbs begin at means of the best episodes too, not at the best one alone (`Guide.centres`; ours).
    """

    encoder: str = "mean"
    embedding_size: int = 30
    n_encoder_layers: int = 2
    edge_embedding_size: int = 8
    diffpool_clusters: int = 10
    diffpool_max_nodes: int = 5000
    carry_state: bool = True
    group_embedding: bool = True
    identity_size: int = 8
    frozen_encoder: bool = False
    hidden_size: int = 300
    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    tau: float = 0.01
    gamma: float = 1.0
    baseline_momentum: float = 0.5
    batch_size: int = 128
    buffer_size: int = 2000
    min_buffer_episodes: int = 100
    n_updates: int = 4
    warmup: int = 100
    warmup_share: float = 0.1
    warmup_around: str = "best"
    warmup_sigma: float = 0.12
    noise: float = 0.2
    noise_decay: float = 0.98
    noise_floor: float = 0.05
    reward_on: str = "share"
    normalise_reward: bool = True
    rescale_in_update: bool = True
    elite_share: float = 0.75
    n_candidates: int = 8
    mutation_share: float = 1.0
    clamp: bool = False
    known: bool = True
    fitted: bool = True
    generalist: bool = True
    n_preferred: int = 4
    recombine: bool = True


@dataclass(frozen=True)
class GnnRlOptions:
    """Options of the GNN-RL policy; *paper* and *code* are those of GNN-RL here (`yusx-swapp/GNN-RL-Model-Compression`).

    Attributes:
        edge_size: Width of motif embeddings, the features of level-2 edges; 20 (code).
        embedding_size: Width of the network's embedding; 50 (code).
        identity_size: Width of a learned vector per group (ours).
        hidden_size: Units of the hidden layer of actor and critic; 200 (code).
        max_steps: Steps of an episode at most; 5 (code).
        sigma: Width of the Gaussian policy before squashing; 0.5 (code).
        sigma_decay: Factor per update (ours; the code never lowers it).
        sigma_floor: Smallest width (ours).
        learning_rate: Adam; 3e-4 (code) is for 15,000 episodes; 1e-3 is ours.
        n_rollout: Episodes between updates; ours 5 (code: 100 steps).
        n_epochs: Updates on them; 10 (code).
        clip: Largest change of a probability's ratio; 0.2 (code).
        value_weight: Of the critic's loss; 0.5 (code).
        imitation: Weight of the imitation of the best episodes (ours; 0 is plain PPO).
        n_best: Best episodes kept for it.
        max_gradient: Largest norm of the gradient (ours).
        fitted: Improve every proposal on the error model, as `AgmcOptions.fitted` (ours).
        n_preferred: As `AgmcOptions.n_preferred` (ours).
    """

    edge_size: int = 20
    embedding_size: int = 50
    identity_size: int = 8
    hidden_size: int = 200
    max_steps: int = 5
    sigma: float = 0.5
    sigma_decay: float = 0.95
    sigma_floor: float = 0.15
    learning_rate: float = 1e-3
    n_rollout: int = 5
    n_epochs: int = 10
    clip: float = 0.2
    value_weight: float = 0.5
    imitation: float = 0.5
    n_best: int = 5
    max_gradient: float = 1.0
    fitted: bool = True
    n_preferred: int = 4


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search, whatever its policy.

    Attributes:
        policy: Row of `agmc_onnx.policies.POLICIES`.
        reward: Row of `agmc_onnx.search.rewards.REWARDS`; "err" for a budget (paper, 3.4.3).
        n_episodes: Candidates evaluated; 400 (paper: 100 random, then 300). 0: those a policy takes as it is.
        n_decided: How many these are at most.
        seed: Seed of the one random generator of the search.
        prior: Evaluate the greedy candidates and the uniform one first, whatever the policy that searches (rows of
            `agmc_onnx.policies.PRIMED`), or those of them that it prefers beforehand (`AgmcOptions.n_preferred`); they
            count as episodes. Ours; without it the papers' search is left.
        agmc: Options of the AGMC policy, and of AMC, which has the same agent.
        gnn_rl: Options of the GNN-RL policy.
    """

    policy: str = "agmc"
    reward: str = "err"
    n_episodes: int = 400
    n_decided: int = 1
    seed: int = 0
    prior: bool = True
    agmc: AgmcOptions = field(default_factory=AgmcOptions)
    gnn_rl: GnnRlOptions = field(default_factory=GnnRlOptions)


@dataclass(frozen=True)
class CompressOptions:
    """Options of the main job; the command line has one flag for each.

    Attributes:
        flops: Keep at most this share of the original's multiply-adds, 0 < R < 1.
        params: Keep at most this share of its parameters.
        latency: Keep at most this share of its latency: of one inference of batch 1 with `threads`, measured beside it.
        latency_table: Table of op times that another device filled (`tools/time_ops.py`); None times the ops here, once, and
            keeps them in the user's cache folder.
        max_drop: Instead of a budget: the smallest model that loses at most so many points of the metric.
        minimise: What is smallest then: the name of a budget.
        stages: Steps in which the budget is reached, each recovered before the next.
        policy: Row of `agmc_onnx.policies.POLICIES`.
        episodes: Candidates evaluated; 0: nothing is searched, the policy takes as many as there are `finalists`. The paper has
            400; 100 find nearly as much here in a quarter of the time (ours).
        minutes: A search ends after so many of them, with what it has found by then; the same seed gives the same result only
            where as many candidates are evaluated. None: it ends after `episodes`.
        seed: Of every random choice.
        reward: Row of `agmc_onnx.search.rewards.REWARDS`.
        importance: Row of `agmc_onnx.pruning.importance.IMPORTANCE` or, with data, of `agmc_onnx.refit.importance.MEASURED`;
            L2 (code). None: "moments" where candidates are refitted on data and there are depthwise convolutions (ours), else L2.
        recover: "compensate": every candidate is refitted in closed form before it is measured, and the result with all
            calibration samples; "distill": as that, and then the result learns from the original, without labels, on the
            card's [train] images or else the calibration role; "statistics": only means and variances are put right;
            "none": measured as cut; None: "compensate" where there is data, else "none".
        distill_steps: Optimiser steps of "distill".
        sparsity: Share of the weights of `sparse_layers` that become zero, 0 < R < 1; they keep their shapes.
        sparse_method: Row of `agmc_onnx.refit.thin.METHODS`; None: "obs" where candidates are refitted, else "magnitude".
        sparse_pattern: "N:M": of M weights one after the other along the inputs at most N are kept; instead of `sparsity`.
        sparse_layers: "dense": fully connected ones; "all": convolutions too.
        sparse_decide: "uniform": every layer has the same share of zeros; "policy": the policy decides it layer by layer, in
            the same episode as the widths, such that `sparsity` of all the layers' weights together are zero.
        sparse_storage: "dense", or "smallest": as sparse_initializer where that is smaller and onnxruntime loads it. Not the
            default, since onnx's own checker and most other runtimes refuse it, and a zip file makes up the difference.
        search_samples: Calibration samples that a candidate is refitted with.
        search_positions: Output positions sampled per node for that.
        round_to: Kept counts are multiples of this where a group has that many units. "auto": the channels that convolutions take
            at once on this machine, half or a quarter of them in small groups, at least 4 (ours: onnxruntime leaves its fast
            layout for widths that are no multiple of 4; 17 channels took 1.9 times as long as 16, and 20 as long as 32).
            None: "auto" for a budget on latency, else 4: at half the multiply-adds ResNet-20 keeps 87.6 % in fours, 83.4 % in
            whole blocks.
        floor: Smallest share of a group that is kept, unless the budget needs less; 0.2 is the paper's a_max of 0.8 (code).
        exclude: Groups that stay whole, separated by commas: their names as `inspect` prints them, or names of weights or nodes,
            with * and ?; "residual" stands for all groups that shortcuts join.
        judge: What a candidate's reward is made of, and finalists are chosen by: "fidelity", the closeness of its outputs to the
            original's (of class scores as soft probabilities, `measuring.closeness.soft_classes`), or "metric", the card's
            (paper). Ours: on few images it says far more than a count of right answers (docs/results.md, "What a candidate is
            judged by").
        reward_samples: Samples of the reward role that every candidate is measured on, at most. Judged by fidelity, one that is
            not behind the best so far then is measured on more, up to eight times as many: among the best, 500 images tell
            nothing (docs/results.md, "Racing"). Finalists are measured on those too.
        racing: A candidate that is clearly worse than the best so far, image by image, is stopped after a quarter or half of
            them; its reward is then an estimate. Not the default: the refit takes as long as what it saves from.
        batch: Proposals drawn before the first of them is observed; the outcome depends on it, unlike on `workers`. None: as
            many as workers, so that all have something to do.
        workers: Processes that evaluate candidates side by side, with `threads` each.
        ray: Address of a Ray cluster whose actors evaluate the candidates, as many as `workers`; "local" starts one here.
        resume: Go on with the journal of an interrupted run with the same output, if there is one.
        threads: Of onnxruntime, and of torch in a refit.
        provider: "cpu", "cuda", or "auto".
        latency_seconds: Time given to measuring latency.
    """

    flops: float | None = None
    params: float | None = None
    latency: float | None = None
    latency_table: str | None = None
    max_drop: float | None = None
    minimise: str = "flops"
    stages: int = 1
    policy: str = "agmc"
    episodes: int = 100
    minutes: float | None = None
    seed: int = 0
    reward: str = "err"
    importance: str | None = None
    recover: str | None = None
    distill_steps: int = 1000
    sparsity: float | None = None
    sparse_method: str | None = None
    sparse_pattern: str | None = None
    sparse_layers: str = "dense"
    sparse_decide: str = "uniform"
    sparse_storage: str = "dense"
    search_samples: int = 128
    search_positions: int = 4000
    round_to: int | str | None = None
    floor: float = 0.2
    exclude: str | None = None
    judge: str = "fidelity"
    reward_samples: int = 500
    racing: bool = False
    finalists: int = 4
    batch: int | None = None
    workers: int = 1
    ray: str | None = None
    resume: bool = False
    threads: int = 1
    provider: str = "cpu"
    latency_seconds: float = 5.0

    @classmethod
    def of(cls, **options: Any) -> CompressOptions:
        """Return checked options.

        Raises:
            UsageError: If a name is unknown, a value is out of range, or not exactly one budget is given.
        """
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise UsageError(
                    f"options: unknown name, got {name!r}; expected one of {', '.join(sorted(known))}.{hint}"
                )
        made = cls(**options)
        given = [name for name in (*BUDGETS, "latency", "max_drop") if getattr(made, name) is not None]
        if len(given) != 1:
            raise UsageError(
                f"budget: got {' and '.join('--' + g.replace('_', '-') for g in given) or 'none'}; expected exactly one of"
                " --flops R, --params R and --latency R, with 0 < R < 1, or --max-drop P. Say how much to keep, or to lose."
            )
        share = getattr(made, given[0])
        if given[0] == "max_drop":
            if not isinstance(share, int | float) or not 0 < share < 100:
                raise UsageError(
                    f"--max-drop: the points to lose are out of range, got {share!r}; expected 0 < P < 100, such as 1."
                )
        elif not isinstance(share, int | float) or not 0 < share < 1:
            raise UsageError(
                f"--{given[0]}: the share to keep is out of range, got {share!r}; expected 0 < R < 1, such as 0.5 to keep half."
            )
        for name, low in (
            ("episodes", 0),
            ("reward_samples", 1),
            ("finalists", 1),
            ("distill_steps", 1),
            ("threads", 1),
            ("seed", 0),
            ("stages", 1),
            ("workers", 1),
            ("batch", 1),
        ):
            if getattr(made, name) is not None and getattr(made, name) < low:
                raise UsageError(
                    f"--{name.replace('_', '-')}: too small, got {getattr(made, name)}; expected at least {low}."
                )
        if made.minutes is not None and not made.minutes > 0:
            raise UsageError(f"--minutes: too few, got {made.minutes}; expected more than 0.")
        if (
            made.round_to is None
        ):  # in whole blocks where time is what counts, else in what accuracy has more choice from
            made = replace(made, round_to=4 if made.latency is None else "auto")
        if made.round_to != "auto" and (not isinstance(made.round_to, int) or made.round_to < 1):
            raise UsageError(f"--round-to: too small, got {made.round_to}; expected at least 1, or auto.")
        if made.latency_table is not None and made.latency is None:
            raise UsageError("--latency-table: got no --latency; expected the budget it is for. Add --latency R.")
        if not 0 <= made.floor < 1:
            raise UsageError(f"--floor: out of range, got {made.floor}; expected 0 <= R < 1.")
        if made.recover is not None and made.recover not in RECOVER:
            raise UsageError(f"--recover: unknown name, got {made.recover!r}; expected one of {', '.join(RECOVER)}.")
        if made.judge not in JUDGES:
            raise UsageError(f"--judge: unknown name, got {made.judge!r}; expected one of {', '.join(JUDGES)}.")
        if made.racing and made.judge != "fidelity":
            raise UsageError(f"--racing: got --judge {made.judge}; expected fidelity, which is known image by image.")
        if made.minimise not in BUDGETS:
            raise UsageError(f"--minimise: unknown name, got {made.minimise!r}; expected one of {', '.join(BUDGETS)}.")
        _check_sparsity(made)
        if made.stages > 1 and (made.max_drop is not None or made.recover == "none"):
            beside = (
                "--recover none, where a step leaves nothing to the next" if made.max_drop is None else "--max-drop"
            )
            raise UsageError(f"--stages: got {made.stages} beside {beside}; expected 1 there. Leave out --stages.")
        return replace(made, batch=made.batch or made.workers)

    @property
    def excluded(self) -> tuple[str, ...]:
        """Names of the groups that stay whole."""
        return tuple(name for text in (self.exclude or "").split(",") if (name := text.strip()))

    @property
    def is_sparse(self) -> bool:
        """Whether single weights become zero."""
        return self.sparsity is not None or self.sparse_pattern is not None

    def with_data(self, is_given: bool) -> CompressOptions:
        """Return the options with what depends on data filled in.

        Args:
            is_given: Whether there are samples to refit on, real ones or what a network's stored statistics replace them by.
        """
        return self if self.recover is not None else replace(self, recover="compensate" if is_given else "none")

    def search(self) -> SearchOptions:
        """Return the part that concerns the search."""
        return SearchOptions(
            policy=self.policy, reward=self.reward, n_episodes=self.episodes, n_decided=self.finalists, seed=self.seed
        )


BUDGETS = ("flops", "params")  # the fields that name a share of a cost
JUDGES = ("fidelity", "metric")
RECOVER = ("none", "statistics", "compensate", "distill")
SPARSE_METHODS = ("magnitude", "wanda", "obs")
SPARSE_LAYERS = ("dense", "all")
SPARSE_DECIDE = ("uniform", "policy")
SPARSE_STORAGE = ("dense", "smallest")


def pattern_of(text: str) -> tuple[int, int]:
    """Return (n, m) of a pattern "N:M".

    Raises:
        UsageError: If it is none.
    """
    n, _, m = text.partition(":")
    if not (n.isdecimal() and m.isdecimal() and 0 < int(n) < int(m)):
        raise UsageError(
            f"--sparse-pattern: not a pattern, got {text!r}; expected N:M with 0 < N < M, such as 2:4 to keep 2 of 4."
        )
    return int(n), int(m)


def _check_sparsity(options: CompressOptions) -> None:
    if options.sparsity is not None and not 0 < options.sparsity < 1:
        raise UsageError(
            f"--sparsity: the share of zeros is out of range, got {options.sparsity!r}; expected 0 < R < 1, such as 0.3."
        )
    if options.sparse_pattern is not None:
        n, m = pattern_of(options.sparse_pattern)
        if options.sparsity is not None:
            raise UsageError(
                f"--sparsity: got {options.sparsity} beside --sparse-pattern {n}:{m}, which sets {1 - n / m:.3g} of the"
                " weights to zero; expected one of the two. Leave one out."
            )
    for name, value, known in (
        ("method", options.sparse_method, SPARSE_METHODS),
        ("layers", options.sparse_layers, SPARSE_LAYERS),
        ("decide", options.sparse_decide, SPARSE_DECIDE),
        ("storage", options.sparse_storage, SPARSE_STORAGE),
    ):
        if value is not None and value not in known:
            raise UsageError(f"--sparse-{name}: unknown name, got {value!r}; expected one of {', '.join(known)}.")
    if options.sparse_decide == "policy" and options.sparsity is None:
        raise UsageError(
            "--sparse-decide: got policy without --sparsity; expected a share to divide. Give --sparsity R."
        )
    if options.sparse_decide == "policy" and options.stages > 1:
        raise UsageError(f"--sparse-decide: got policy beside --stages {options.stages}; expected uniform there.")
    if options.is_sparse and options.recover == "statistics":
        raise UsageError(
            "--sparsity: got --recover statistics, which has no second moments to choose weights by; expected compensate,"
            " distill or none. Change --recover."
        )
    if options.recover == "none" and options.sparse_method not in (None, "magnitude"):
        raise UsageError(
            f"--sparse-method: {options.sparse_method} looks at activations, got --recover none; expected --recover"
            " compensate or distill. Or use --sparse-method magnitude."
        )
