"""An agent that has searched one network searches another (AGMC paper, section 4.4: from ResNet-56 to ResNet-20).

Encoder, decoder, actor and critic fit any network. `transfer-decoder` starts from those of a file and lets the decoder alone
learn, as the paper says; `transfer-scratch` learns everything from random networks; `transfer-random` lets the decoder alone
learn beside random networks, so that it shows what the frozen ones know. None has error curves, an error model or other policies'
candidates: what they find is what the agent knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agmc_onnx import policies
from agmc_onnx.errors import UsageError
from agmc_onnx.policies import Row
from agmc_onnx.policies.agmc.ddpg import DdpgAgent
from agmc_onnx.policies.agmc.policy import AgmcPolicy
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.policy import Policy
from agmc_onnx.search.problem import Problem

DECODER, SCRATCH, RANDOM = "transfer-decoder", "transfer-scratch", "transfer-random"
# what fits any network; its graph does not
SHARED = ("represent.encoder.", "represent.decoder.", "actor.", "critic.")


def shared_state(networks: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that fit any network, by name."""
    return {name: t.detach() for name, t in networks.state_dict().items() if name.startswith(SHARED)}


def save_agent(networks: nn.Module, path: Path) -> None:
    """Write what fits any network."""
    save_file({name: t.contiguous() for name, t in shared_state(networks).items()}, path)


def fits(networks: nn.Module, path: Path) -> bool:
    """Whether a file is there, with networks of these sizes."""
    if not path.exists():
        return False
    found, own = load_file(path), shared_state(networks)
    return found.keys() == own.keys() and all(found[name].shape == own[name].shape for name in own)


def load_agent(networks: nn.Module, path: Path) -> None:
    """Read an agent into networks that it fits."""
    found = load_file(path)
    with torch.no_grad():
        for name, tensor in networks.state_dict().items():
            if name in found:
                tensor.copy_(found[name])


def agent_for(
    problem: Problem,
    options: SearchOptions,
    rng: np.random.Generator,
    start: Path | None = None,
    only_decoder: bool = False,
) -> AgmcPolicy:
    """Return the AGMC policy, bare.

    Args:
        problem: The network to compress.
        options: Of the search.
        rng: Seeds the agent.
        start: File of `save_agent` that encoder, decoder, actor and critic are read from; None leaves them random.
        only_decoder: Whether encoder, actor and critic stay as they are.

    Raises:
        UsageError: If the file has networks of other sizes.
    """
    policy = AgmcPolicy(problem, options, rng)
    networks = policy.agent.networks
    if start is not None:
        if not fits(networks, start):
            raise UsageError(
                f"{start}: no agent of these sizes, got another or none; expected one of this version. Search again."
            )
        load_agent(networks, start)
        cast(DdpgAgent, policy.agent).follow_at_once()
    if only_decoder:
        decoder = networks.represent.get_submodule("decoder")
        policy.agent.optimizer = torch.optim.Adam(decoder.parameters(), lr=policy.options.critic_lr)
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

    policies.POLICIES.update({name: Row(factory(name), batches=True) for name in (DECODER, SCRATCH, RANDOM)})
    return made
