"""Options of the AGMC policy and their default values: the paper's, or its published code's where the paper is silent.

*Paper* is AGMC, arXiv:2011.12641v1, section 4 unless said; *code* the repository published with it (`yusx-swapp/AGMC`,
db1c632); *ours* a choice of this project. What our guide changes is in `policies.guide.informed`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AgentOptions:
    """Of every agent with an actor, a critic and a replay buffer, whatever it sees.

    Attributes:
        hidden_size: Units of both hidden layers of actor and critic; 300 (paper).
        actor_lr: Adam rate of the actor; 1e-4 (code).
        critic_lr: Adam rate of the critic (and of encoder and decoder through it); 1e-3 (code).
        batch_size: Transitions of one update; whole episodes are drawn until it is reached; 64 (paper).
        buffer_size: Transitions kept; 2000 (paper).
        min_buffer_episodes: Smallest capacity in whole episodes (ours).
        n_updates: Updates after each episode once warm-up is over; 4 (ours; code: one per transition).
        warmup: Random episodes at the start; 100 (paper), but at most `warmup_share` of all.
        warmup_share: See `warmup`; a quarter is the paper's share (100 of 400).
        noise: sigma_0 of the truncated normal exploration noise (eq. 9); 0.5 (code).
        noise_decay: Factor per episode after warm-up; 0.95 (code).
        noise_floor: Smallest sigma (ours; without it exploration is over after some 100 episodes).
    """

    hidden_size: int = 300
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    batch_size: int = 64
    buffer_size: int = 2000
    min_buffer_episodes: int = 1
    n_updates: int = 4
    warmup: int = 100
    warmup_share: float = 0.25
    noise: float = 0.5
    noise_decay: float = 0.95
    noise_floor: float = 0.02

    def n_warmup(self, n_episodes: int) -> int:
        """Return the number of random episodes: `warmup`, or `warmup_share` of all if that is less."""
        return min(self.warmup, int(self.warmup_share * n_episodes))


@dataclass(frozen=True)
class GraphOptions:
    """Of encoder and decoder.

    Attributes:
        encoder: "mean" (paper, for ResNets) or "diffpool" (paper, for VGG-16 and MobileNet-V2; refuses large graphs).
        embedding_size: d, width of g, of node embeddings and of the decoder's state; 30 (code).
        n_encoder_layers: GCN layers of the mean-pool encoder. Paper: "l"; code: 1.
        edge_embedding_size: Width of the learned embedding of an edge's type; ours (the paper types edges, but never says how
            the encoder reads the types).
        diffpool_clusters: Clusters after the first pooling of the DiffPool encoder; 10 (code). The last pooling has one (paper).
        diffpool_max_nodes: Largest graph the DiffPool encoder takes; its adjacency is dense, 5,000 nodes are 100 MB (ours).
        carry_state: Carry the decoder's LSTM state along the episode (paper, eq. 8). False: published code, cell reset at
            every step.
        frozen_encoder: True: encoder and decoder stay as initialised, as they in effect did in the published code (ablation).
    """

    encoder: str = "mean"
    embedding_size: int = 30
    n_encoder_layers: int = 1
    edge_embedding_size: int = 8
    diffpool_clusters: int = 10
    diffpool_max_nodes: int = 5000
    carry_state: bool = True
    frozen_encoder: bool = False


@dataclass(frozen=True)
class DdpgOptions(AgentOptions):
    """Of DDPG (section 3.4.2).

    Attributes:
        tau: Weight of the new parameters in the target networks; 0.01 (paper).
        gamma: Discount; 1 (code).
        baseline_momentum: alpha of the moving average b of batch mean rewards; 0.5 (code).
        reward_on: "all": the final reward stands on every transition (code); "final": only on the last one.
    """

    tau: float = 0.01
    gamma: float = 1.0
    baseline_momentum: float = 0.5
    reward_on: str = "all"


@dataclass(frozen=True)
class AgmcOptions(DdpgOptions, GraphOptions):
    """Of `bare:agmc`: the paper's policy, without anything of ours round it."""
