"""An agent that has searched one network searches another (AGMC paper, section 4.4: from ResNet-56 to ResNet-20).

Encoder, decoder, actor and critic fit any network. `transfer-decoder` starts from those of a file and lets the decoder alone
learn, as the paper says; `transfer-scratch` learns everything from random networks; `transfer-random` lets the decoder alone
learn beside random networks, so that it shows what the frozen ones know. None has error curves, an error model or other policies'
candidates: what they find is what the agent knows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from agmc_onnx.config import SearchOptions
from agmc_onnx.errors import UsageError
from agmc_onnx.search import policies
from agmc_onnx.search.policies import Policy, generalist
from agmc_onnx.search.policies.agmc import AgmcPolicy
from agmc_onnx.search.problem import Problem

DECODER, SCRATCH, RANDOM = "transfer-decoder", "transfer-scratch", "transfer-random"


def agent_for(
    problem: Problem,
    options: SearchOptions,
    rng: np.random.Generator,
    start: Path | None = None,
    only_decoder: bool = False,
) -> AgmcPolicy:
    """Return the AGMC policy with nothing but its networks to know.

    Args:
        problem: The network to compress.
        options: Of the search.
        rng: Seeds the agent.
        start: File of `generalist.save` that encoder, decoder, actor and critic are read from; None leaves them random.
        only_decoder: Whether encoder, actor and critic stay as they are.

    Raises:
        UsageError: If the file has networks of other sizes.
    """
    agmc = replace(options.agmc, generalist=False, known=False, fitted=False)
    policy = AgmcPolicy(problem, replace(options, agmc=agmc), rng)
    networks = policy.agent.networks
    if start is not None:
        if not generalist.fits(networks, start):
            raise UsageError(
                f"{start}: no agent of these sizes, got another or none; expected one of this version. Search again."
            )
        generalist.load(networks, start)
        policy.agent.follow_at_once()
    if only_decoder:
        decoder = networks.represent.get_submodule("decoder")
        policy.agent.optimizer = torch.optim.Adam(decoder.parameters(), lr=agmc.critic_lr)
    return policy


def add_transfer(start: Path | None = None) -> dict[str, AgmcPolicy]:
    """Add the three to the table of policies.

    Args:
        start: The agent that `transfer-decoder` starts from.

    Returns:
        A dict that has the last policy made of every name, for its networks.
    """
    made: dict[str, AgmcPolicy] = {}

    def factory(name: str) -> policies.PolicyFactory:
        def policy(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> Policy:
            first = start if name == DECODER else None
            made[name] = agent_for(problem, options, rng, first, only_decoder=name != SCRATCH)
            return made[name]

        return policy

    policies.POLICIES.update({name: factory(name) for name in (DECODER, SCRATCH, RANDOM)})
    return made
