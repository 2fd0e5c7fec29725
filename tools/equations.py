"""Write docs/equations.md: every equation of the two papers, and the lines that have it.

python -m tools.equations            # writes the page; tests/policies/test_equations.py says when it is old
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("agmc_onnx/policies/agmc", "agmc_onnx/search", "agmc_onnx/policies/gnn_rl")
PAGE = ROOT / "docs" / "equations.md"
AGMC = {
    "sec. 3.1, eq. 1": "an operation of level 2 is a graph of level 1",
    "sec. 3.3.1, eq. 2": "graph convolutions, layer by layer",
    "sec. 3.3.1, eq. 3": "g, the mean of the node embeddings",
    "sec. 3.3.2, eq. 4": "DiffPool: embeddings Z",
    "sec. 3.3.2, eq. 5": "DiffPool: assignment M to clusters",
    "sec. 3.3.2, eq. 6": "DiffPool: features of the clusters",
    "sec. 3.3.2, eq. 7": "DiffPool: adjacency of the clusters",
    "sec. 3.3.3, eq. 8": "the decoder, s_t of s_{t-1} and a_{t-1}",
    "sec. 3.4.2, eq. 9": "exploration, truncated normal noise",
    "sec. 3.4.2, eq. 10": "the critic's loss",
    "sec. 3.4.2, eq. 11": "what the critic should say, y",
    "sec. 3.4.3, eq. 12": "reward under a budget",
    "sec. 3.4.3, eq. 13": "reward that weighs FLOPs",
    "sec. 3.4.3, eq. 14": "reward that weighs parameters",
    "sec. 3.4.4, alg. 1": "actions brought to the budget",
}
GNN_RL = {
    "Kipf and Welling 2017, arXiv:1609.02907, eq. 2": "stage 1: graph convolution over a motif",
    "GNN-RL, models/graph_encoder.py, stage1_gcn_encoder.forward": "stage 1: a motif's embedding, the feature of its edge",
    "GNN-RL, models/multi_stage_gcn.py, multi_stage_conv.message": "stage 2: messages along edges with features",
    "GNN-RL, models/graph_encoder.py, stage2_gcn_encoder.forward": "stage 2: the network's embedding g",
    "GNN-RL, gnnrl/lib/RL/agent.py, ActorNetwork.forward": "means of the actions, of g",
    "GNN-RL, gnnrl/lib/RL/agent.py, CriticNetwork.forward": "value, of g",
    "GNN-RL, gnnrl/lib/RL/agent.py, ActorCritic.act": "actions, Gaussian around the means",
    "GNN-RL, gnnrl/graph_env/graph_environment.py, graph_env.step": "a step: what is left is pruned again",
    "GNN-RL, gnnrl/lib/RL/agent.py, Agent.update": "returns, normalised",
    "Schulman et al. 2017, arXiv:1707.06347, eq. 7": "PPO's clipped objective",
    "Schulman et al. 2017, arXiv:1707.06347, eq. 9": "with the value's loss",
}
TEXT = """# The papers' equations, line by line

Each line named here has the citation in it or right above the code; a test holds it (`python -m tools.equations` writes this page
anew). Read a folder from `networks.py` or `encoder.py` to `policy.py`.

## AGMC (arXiv:2011.12641v1): `policies/agmc/`, rewards and budget in `search/`

{agmc}
The update itself is `DdpgAgent.update` in `agmc_onnx/policies/agmc/ddpg.py`.

## GNN-RL (arXiv:2102.03214): `policies/gnn_rl/`

The equations are cited by the code published with the paper, which is what they were implemented from (`models/` at 08cc346,
`gnnrl/` at bb2c341 of `yusx-swapp/GNN-RL-Model-Compression`): the numbers of the paper's own equations were not at hand.

{gnn_rl}"""


def lines_with(citation: str, root: Path = ROOT) -> list[str]:
    """Return "file:line" of every line of the three folders that has a citation."""
    pattern = re.compile(re.escape(citation) + r"(?![\d.]*\d)")
    found = []
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*.py")):
            numbered = enumerate(path.read_text().splitlines(), 1)
            found += [f"{path.relative_to(root)}:{number}" for number, line in numbered if pattern.search(line)]
    return found


def table(citations: dict[str, str], before: str = "") -> str:
    """Return a table in Markdown.

    Raises:
        ValueError: If a citation is nowhere.
    """
    rows = ["| source | what it says | lines |", "| --- | --- | --- |"]
    for citation, what in citations.items():
        lines = lines_with(before + citation)
        if not lines:
            raise ValueError(f"{before}{citation}: no line has it")
        rows.append(f"| {citation} | {what} | {', '.join(f'`{line}`' for line in lines)} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """Return the page."""
    return TEXT.format(agmc=table(AGMC, "AGMC, "), gnn_rl=table(GNN_RL))


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"wrote {PAGE.relative_to(ROOT)}\n")
