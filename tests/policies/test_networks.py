import pytest
import torch

from agmc_onnx.errors import UsageError
from agmc_onnx.policies.agmc.networks import Actor, Critic, Decoder, DiffPoolEncoder, GCNEncoder

ENCODERS = [GCNEncoder, DiffPoolEncoder]


def make(cls, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(**options)


def graph(n_nodes, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n_nodes, 5, generator=generator)
    edges = torch.randint(n_nodes, (2, 2 * n_nodes), generator=generator)
    edges = torch.unique(edges[:, edges[0] < edges[1]], dim=1)
    return x, edges, torch.randint(3, (edges.shape[1],), generator=generator)


@pytest.mark.parametrize("cls", ENCODERS)
def test_encoders_give_one_vector_per_graph_and_one_per_node(cls):
    encoder = make(cls, n_features=5, n_edge_types=3, size=30)
    g, nodes = encoder(*graph(12, 1))
    assert g.shape == (1, 30) and nodes.shape == (12, 30)
    assert torch.isfinite(g).all()


@pytest.mark.parametrize("cls", ENCODERS)
def test_renaming_the_nodes_changes_nothing(cls):
    encoder = make(cls, n_features=5, n_edge_types=3)
    x, edges, types = graph(15, 2)
    turn = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    place = torch.argsort(turn)
    g, nodes = encoder(x, edges, types)
    g_turned, nodes_turned = encoder(x[turn], place[edges], types)
    torch.testing.assert_close(g_turned, g, atol=1e-5, rtol=1e-4)  # float32, sums of 15 terms in another order
    torch.testing.assert_close(nodes_turned, nodes[turn], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cls", ENCODERS)
def test_a_batch_of_two_graphs_equals_two_batches_of_one(cls):
    encoder = make(cls, n_features=5, n_edge_types=3)
    first, second = graph(7, 3), graph(11, 4)
    both = encoder(
        torch.cat([first[0], second[0]]),
        torch.cat([first[1], second[1] + 7], dim=1),
        torch.cat([first[2], second[2]]),
        torch.tensor([0] * 7 + [1] * 11),
    )
    alone = encoder(*first), encoder(*second)
    torch.testing.assert_close(both[0], torch.cat([alone[0][0], alone[1][0]]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[1], torch.cat([alone[0][1], alone[1][1]]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cls", ENCODERS)
def test_edge_types_are_seen_and_learned(cls):
    encoder = make(cls, n_features=5, n_edge_types=3)
    x, edges, types = graph(15, 2)
    g, _ = encoder(x, edges, types)
    assert not torch.allclose(g, encoder(x, edges, (types + 1) % 3)[0])
    g.sum().backward()
    assert float(encoder.types.incoming.weight.grad.abs().sum()) > 0


def test_a_graph_without_edges_is_encoded():
    none = torch.zeros(2, 0, dtype=torch.long)
    for cls in ENCODERS:
        g, _ = make(cls, n_features=5, n_edge_types=3)(torch.rand(4, 5), none, none[0])
        assert torch.isfinite(g).all()


def test_diffpool_ends_in_one_cluster_with_auxiliary_losses():
    encoder = make(DiffPoolEncoder, n_features=5, n_edge_types=3, n_clusters=4)
    g, _ = encoder(*graph(12, 5))
    assert g.shape[0] == 1 and encoder.pool[-1].out_channels == 1
    loss = encoder.auxiliary_loss
    assert loss.shape == () and float(loss.detach()) > 0
    loss.backward()
    assert float(encoder.pool[0].lin.weight.grad.abs().sum()) > 0


def test_diffpool_refuses_a_large_graph_and_names_mean_pool():
    encoder = make(DiffPoolEncoder, n_features=5, n_edge_types=3, max_nodes=10)
    with pytest.raises(UsageError, match=r"too large for DiffPool, got 11 nodes; expected at most 10\. .*mean pool"):
        encoder(*graph(11, 6))


@pytest.mark.parametrize("carry_state", [True, False])
@pytest.mark.parametrize("context_size", [0, 4])
def test_decoding_an_episode_at_once_equals_decoding_it_step_by_step(carry_state, context_size):
    decoder = make(Decoder, size=30, context_size=context_size, carry_state=carry_state)
    g, actions = torch.rand(3, 30), torch.rand(3, 5)
    context = torch.rand(3, 5, context_size) if context_size else None
    at_once = decoder(g, actions, context)
    assert at_once.shape == (3, 5, 30)
    state, action = decoder.initial(g), torch.ones(3, 1)
    for t in range(5):
        s, state = decoder.step(state, action, None if context is None else context[:, t])
        torch.testing.assert_close(s, at_once[:, t], atol=1e-6, rtol=1e-5)
        action = actions[:, t : t + 1]


def test_a_state_depends_on_earlier_actions_only():
    decoder = make(Decoder, size=8)
    g, actions = torch.rand(1, 8), torch.full((1, 5), 0.5)
    changed = actions.clone()
    changed[0, 2] = 0.9
    difference = (decoder(g, actions) - decoder(g, changed)).abs().sum(dim=2)[0]
    assert torch.all(difference[:3] == 0) and torch.all(difference[3:] > 0)


def test_actor_and_critic_have_two_hidden_layers_of_300():
    actor, critic = make(Actor, first_action=0.6), make(Critic)
    states = torch.rand(2, 7, 30)
    actions = actor(states)
    assert actions.shape == (2, 7) and critic(states, actions).shape == (2, 7)
    torch.testing.assert_close(actions.detach(), torch.full((2, 7), 0.6), atol=0.05, rtol=0)
    widths = [layer.out_features for layer in actor.layers if isinstance(layer, torch.nn.Linear)]
    assert widths == [300, 300, 1]
