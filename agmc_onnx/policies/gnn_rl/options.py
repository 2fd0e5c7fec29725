"""Options of the GNN-RL policy and their default values; *code* is what is published with it.

That is `yusx-swapp/GNN-RL-Model-Compression`, cb27bd5; *ours* is a choice of this project.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GnnRlOptions:
    """Of `gnn-rl`, guided or bare.

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
