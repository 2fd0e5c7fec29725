import dataclasses

import numpy as np
import pytest
import torch

from agmc_onnx.graph.view import graph_of
from agmc_onnx.motifs import arrays, build
from agmc_onnx.ops import analyse
from agmc_onnx.policies import make_policy
from agmc_onnx.policies.gnn_rl import ppo
from agmc_onnx.policies.gnn_rl.encoder import MultiStageEncoder, stages
from agmc_onnx.policies.gnn_rl.options import GnnRlOptions
from agmc_onnx.policies.gnn_rl.policy import GnnRlAgent
from agmc_onnx.search.loop import search
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.rewards import err
from tests.policies.test_agmc import known_answer


def run(name, seed, n_episodes, n=12, options=None):
    problem, metric = known_answer(seed, n)
    rng = np.random.default_rng(seed)
    policy = make_policy(problem, SearchOptions(name, n_episodes, own=options), rng)
    result = search(problem, policy, err, n_episodes, rng)
    return result, metric(result.kept)


def two_blocks():
    """Two alike residual blocks, so that the hierarchy has a motif that occurs twice."""
    import onnx.parser

    convs = " ".join(
        f"a{i} = Conv<pads = [1, 1, 1, 1]>(x{i}, w{i})  b{i} = Relu(a{i})  c{i} = Conv<pads = [1, 1, 1, 1]>(b{i}, v{i})"
        f"  s{i} = Add(c{i}, x{i})  x{i + 1} = Relu(s{i})"
        for i in range(2)
    )
    weight = ", ".join(f"{value:.2f}" for value in np.random.default_rng(0).standard_normal(144))
    names = ", ".join(f"float[4, 4, 3, 3] {name} = {{{weight}}}" for name in ("w0", "v0", "w1", "v1"))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 4, 8, 8] x0) => (float[1, 4, 8, 8] x2) <{names}> {{ {convs} }}"""
    graph = graph_of(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    groups = analyse(graph).groups
    return arrays(build(graph), graph, [frozenset({f"a{i}", f"b{i}"}) for i in range(len(groups))]), len(groups)


def test_motif_embeddings_are_those_of_the_edges_above_and_a_batch_is_two_singles():
    graph, n_groups = two_blocks()
    assert n_groups == 2 and len(graph.node_of_node2) < len(graph.values)
    problem, _ = known_answer(0, n=2)
    staged = stages(dataclasses.replace(problem, graph=graph, group_nodes=graph.group_nodes))
    assert int(staged.local_motif.max()) + 1 == graph.edge_index2.shape[1]
    assert staged.local_edges.shape == graph.edge_index.shape
    encoder = MultiStageEncoder(staged)
    keep = torch.tensor([[1.0, 0.5], [0.25, 1.0]])
    g, groups = encoder(keep)
    assert g.shape == (2, 50) and groups.shape == (2, 2, 50)
    alone = [encoder(row[None]) for row in keep]
    torch.testing.assert_close(g, torch.cat([a[0] for a in alone]))
    torch.testing.assert_close(groups, torch.cat([a[1] for a in alone]))
    assert not torch.allclose(g[0], g[1])  # the state is that of the pruned network
    g.sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in encoder.parameters())


def test_the_second_stage_is_the_published_message_on_a_path():
    problem, _ = known_answer(0, n=2)
    encoder = MultiStageEncoder(stages(problem))
    assert float(encoder.norm.max()) <= 0.5  # degrees count the self-loop, as in Kipf and Welling 2017
    torch.testing.assert_close(encoder.loop_norm[0], torch.tensor([0.5]))


def test_actor_and_critic_shapes_and_log_density():
    problem, _ = known_answer(0, n=3)
    agent = GnnRlAgent(stages(problem), torch.rand(3, 4), GnnRlOptions())
    observations = torch.rand(5, 4)
    means, values = agent.means(observations), agent.values(observations)
    assert means.shape == (5, 3) and values.shape == (5,)
    actions = torch.randn(5, 3)
    exact = torch.distributions.Normal(means, 0.3).log_prob(actions).sum(1) + 1.5 * np.log(2 * np.pi)
    torch.testing.assert_close(ppo.log_prob(means, 0.3, actions), exact)


def test_ppo_raises_the_probability_of_the_better_episode():
    problem, _ = known_answer(0, n=3)
    torch.manual_seed(0)
    agent = GnnRlAgent(stages(problem), torch.rand(3, 4), GnnRlOptions())
    observation, up = torch.cat([torch.ones(1, 3), torch.zeros(1, 1)], dim=1), torch.full((1, 3), 0.5)
    with torch.no_grad():
        old = agent.means(observation)
        episodes = [
            ppo.Episode(observation, old + s * up, ppo.log_prob(old, 0.5, old + s * up), s * 1.0)
            for s in (1, -1, 1, -1)
        ]
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    ppo.update(agent, optimizer, episodes, [], 0.5, GnnRlOptions())
    assert (agent.means(observation) > old).all()


@pytest.mark.parametrize("options", [GnnRlOptions(), GnnRlOptions(max_steps=1, imitation=0.0)])
def test_the_same_seed_gives_the_same_candidates(options):
    first, again = run("gnn-rl", 1, 12, 4, options)[0], run("gnn-rl", 1, 12, 4, options)[0]
    assert [r["kept"] for r in first.history] == [r["kept"] for r in again.history]
    assert [r["kept"] for r in first.history] != [r["kept"] for r in run("gnn-rl", 2, 12, 4, options)[0].history]


def test_gnn_rl_beats_random_on_average_of_its_candidates_and_at_its_best():
    learned, chance = run("gnn-rl", 0, 50), run("random", 0, 50)
    means = [np.mean([r["reward"] for r in result.history[-10:]]) for result, _ in (learned, chance)]
    assert means[0] > means[1] + 0.5  # seeds 0 and 1 gave 1.3 and 2.9
    assert learned[1] > chance[1] - 0.3
