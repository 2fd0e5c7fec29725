"""The generalist: encoder, decoder, actor and critic of AGMC, trained beforehand over many networks.

What belongs to one network (its graph, its static features, the learned vectors of its groups) is not in the file. Stored as
safetensors, which cannot hold code; made by tools/experiments/generalist.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = Path(__file__).with_name("generalist.safetensors")
SHARED = ("represent.encoder.", "represent.decoder.", "actor.", "critic.")


def shared_state(networks: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that fit any network, by name."""
    return {name: t.detach() for name, t in networks.state_dict().items() if name.startswith(SHARED)}


def save(networks: nn.Module, path: Path = FILE) -> None:
    """Write what fits any network."""
    save_file({name: t.contiguous() for name, t in shared_state(networks).items()}, path)


def fits(networks: nn.Module, path: Path = FILE) -> bool:
    """Whether the generalist is there, and of the sizes of an agent's networks."""
    if not path.exists():
        return False
    found, own = load_file(path), shared_state(networks)
    return found.keys() == own.keys() and all(found[name].shape == own[name].shape for name in own)


def load(networks: nn.Module, path: Path = FILE) -> None:
    """Read the generalist into networks that it fits; the vectors of their groups become zero, as in training."""
    found = load_file(path)
    with torch.no_grad():
        for name, tensor in networks.state_dict().items():
            if name in found:
                tensor.copy_(found[name])
            elif name.startswith("represent.identity."):
                tensor.zero_()


def share(networks: nn.Module, with_other: nn.Module) -> None:
    """Let two agents' networks have the same parameters, but for what belongs to one network."""
    for part in ("actor", "critic"):
        setattr(networks, part, getattr(with_other, part))
    for part in ("encoder", "decoder"):
        setattr(networks.represent, part, getattr(with_other.represent, part))
