"""LASSO scores: the order of entry into the path of what the readers compute."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Lasso
from torch import nn
from zoo import ZOO, build

from graphs.tracing import trace_network
from networks.data import SampleSet
from pruning.importance import score_groups
from pruning.lasso import lasso, path_scores
from pruning.patches import Draws, chunks, gather_moments, gram_bytes
from pruning.scoring import ScoringInputs

UNSCORED = ("TwoInputsDictOutput", "EncoderLayer")
"""Two inputs; attention heads that only a projection inside nn.MultiheadAttention reads."""


def samples_for(shape, number=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SampleSet(torch.randn(number, *shape, generator=generator), torch.zeros(number))


def inputs_for(network, graph, data, seed=0):
    return ScoringInputs(
        "lasso", network, graph, network.state_dict(), data, "producer", seed, None
    )


def contributions(features, weight, **options):
    """(units, everything else): what each input channel adds to a convolution's outputs."""
    parts = []
    for unit in range(features.shape[1]):
        alone = torch.zeros_like(features)
        alone[:, unit] = features[:, unit]
        parts.append(F.conv2d(alone, weight, **options).flatten())
    return torch.stack(parts).double().numpy()


def path_gram(z):
    return z @ z.T, z @ z.sum(0)


# ------------------------------------------------------------------------------------------ path


def test_a_planted_support_enters_first():
    generator = np.random.default_rng(0)
    z = generator.normal(size=(12, 400))
    support = [2, 5, 6, 11]
    target = z[support].sum(0) + 0.01 * generator.normal(size=400)
    scores = path_scores(z @ z.T, z @ target)
    assert set(np.argsort(-scores)[:4]) == set(support)


def test_every_count_keeps_what_is_active_at_that_knot_of_an_independent_solver():
    generator = np.random.default_rng(1)
    z = generator.normal(size=(6, 300)) * np.array([3.0, 1.0, 0.5, 2.0, 0.2, 1.5])[:, None]
    gram, side = path_gram(z)
    scores = path_scores(gram, side)
    assert sorted(scores) == [1, 2, 3, 4, 5, 6]
    seen = set()
    for alpha in np.geomspace(side.max() / 300 * 0.999, 1e-4, 400):
        solver = Lasso(alpha=alpha, fit_intercept=False, tol=1e-10, max_iter=100000)
        active = set(np.flatnonzero(solver.fit(z.T, z.sum(0)).coef_))
        if len(active) not in seen:
            seen.add(len(active))
            assert active == set(np.argsort(-scores)[: len(active)])
    assert {1, 2, 3, 4, 5, 6} <= seen


def test_units_that_never_enter_come_last_by_their_norm():
    z = np.array([[1.0, 0, 0], [0, 3.0, 0], [0, 0, 2.0], [0, 0, 0]])
    # the target leaves units 1 and 2 out; unit 3 contributes nothing at all
    scores = path_scores(z @ z.T, z @ np.array([1.0, 0, 0]))
    np.testing.assert_allclose(scores, [1.0, 0.5, 1 / 3, 0.0])
    np.testing.assert_array_equal(path_scores(np.zeros((2, 2)), np.zeros(2)), [0, 0])


def test_copies_of_one_unit_do_not_stop_the_path():
    z = np.array([[2.0, 0, 0], [2.0, 0, 0], [0, 1.0, 0], [0, 0, 1.5]])
    scores = path_scores(*path_gram(z))
    assert np.isfinite(scores).all()
    assert set(np.argsort(-scores)[:2]) & {0, 1}  # the strongest direction is kept first
    assert len(set(scores)) > 2


# -------------------------------------------------------------------------------------- networks


class Chain(nn.Module):
    def __init__(self, reader, between=None):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.between = between or nn.ReLU()
        self.reader = reader

    def forward(self, x):
        return self.reader(self.between(self.first(x)))


def scores_of(network, data, positions=1000, seed=0):
    graph = trace_network(network, data.inputs[:1])
    found = lasso(inputs_for(network, graph, data, seed), positions)
    return found[list(graph.group("first").units)]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": "same", "dilation": 2, "bias": False},
        {"kernel_size": 2, "padding": 1, "padding_mode": "reflect"},
    ],
)
def test_scores_are_those_of_contributions_worked_out_channel_by_channel(options):
    torch.manual_seed(0)
    network = Chain(nn.Conv2d(6, 5, **options)).eval()
    data = samples_for((3, 6, 6), 8)
    with torch.no_grad():
        features = network.between(network.first(data.inputs))
        mode = options.get("padding_mode")
        if mode:
            features = F.pad(features, (1, 1, 1, 1), mode=mode)
        named = {k: v for k, v in options.items() if k in ("stride", "padding", "dilation")}
        z = contributions(
            features, network.reader.weight, **({**named, "padding": 0} if mode else named)
        )
    expected = path_scores(*(part / np.trace(z @ z.T) for part in path_gram(z)))
    np.testing.assert_allclose(scores_of(network, data), expected, rtol=1e-4)


def test_a_transposed_convolution_is_read_at_its_own_outputs():
    torch.manual_seed(0)
    reader = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)
    network = Chain(reader).eval()
    data = samples_for((3, 5, 5), 8)
    with torch.no_grad():
        features = network.between(network.first(data.inputs))
        z = []
        for unit in range(6):
            alone = torch.zeros_like(features)
            alone[:, unit] = features[:, unit]
            z.append((reader(alone) - reader.bias.reshape(-1, 1, 1)).flatten().double().numpy())
    graph = trace_network(network, data.inputs[:1])
    moments = gather_moments(
        network, [graph.operator_by_name["reader"]], [data.inputs], Draws(graph, 8, 1000, 0)
    )["reader"]
    rows = moments.call.rows(reader.weight.detach()).double()
    products = (moments.gram * (rows.mT @ rows))[0].reshape(6, 9, 6, 9).sum((1, 3))
    np.testing.assert_allclose(products, np.stack(z) @ np.stack(z).T, rtol=1e-4, atol=1e-3)


def test_all_positions_of_a_channel_after_flatten_are_its_contribution():
    network, inputs = build("FlattenSpatial")
    graph = trace_network(network, *inputs)
    data = samples_for((3, 8, 8), 30)
    with torch.no_grad():
        flat = F.adaptive_max_pool2d(network.a(data.inputs), 2).flatten(1)
    weight = network.fc1.weight.detach()
    blocks = [slice(4 * unit, 4 * unit + 4) for unit in range(6)]
    z = np.stack([(flat[:, b] @ weight[:, b].T).flatten().double().numpy() for b in blocks])
    expected = path_scores(*(part / np.trace(z @ z.T) for part in path_gram(z)))
    found = score_groups(network, graph, "lasso", data)["a.0"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_an_aligned_unit_of_a_grouped_convolution_contributes_to_every_block():
    network, inputs = build("GroupedConv")
    graph = trace_network(network, *inputs)
    data = samples_for((3, 8, 8), 8)
    with torch.no_grad():
        z = contributions(network.a(data.inputs), network.grouped[0].weight, padding=1, groups=4)
    z = z.reshape(4, 2, -1).sum(0)  # unit i holds channel i of each of the four blocks of two
    expected = path_scores(*(part / np.trace(z @ z.T) for part in path_gram(z)))
    found = lasso(inputs_for(network, graph, data), 1000)[list(graph.group("a.0").units)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_readers_of_one_group_are_stacked_whatever_their_scales():
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)

        def forward(self, x):
            x = F.relu(self.first(x))
            return self.a(x), self.b(x)

    network, data = Two().eval(), samples_for((4,), 50)
    graph = trace_network(network, data.inputs[:1])
    before = score_groups(network, graph, "lasso", data)["first"]
    with torch.no_grad():
        hidden = F.relu(network.first(data.inputs))
        grams = []
        for reader in (network.a, network.b):
            z = torch.einsum("nu,ou->uno", hidden, reader.weight).flatten(1).double().numpy()
            grams.append(z @ z.T / np.trace(z @ z.T))
        network.b.weight *= 1000
    total = np.sum(grams, axis=0)
    np.testing.assert_allclose(before, path_scores(total, total.sum(1)), rtol=1e-4)
    after = score_groups(network, graph, "lasso", data)["first"]
    np.testing.assert_array_equal(np.argsort(after), np.argsort(before))


@pytest.mark.parametrize("name", [n for n in ZOO if n not in UNSCORED])
def test_every_network_is_scored_and_left_as_it_was(name):
    network, inputs = build(name)
    graph = trace_network(network, *inputs)
    network.train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    random_state = torch.random.get_rng_state()
    scores = score_groups(network, graph, "lasso", samples_for(inputs[0].shape[1:], 6))
    assert {key: len(values) for key, values in scores.items()} == {
        group.name: group.size for group in graph.groups
    }
    assert all((values >= 0).all() for values in scores.values())
    assert any(len(set(values)) > 1 for values in scores.values())
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert torch.equal(random_state, torch.random.get_rng_state())


def test_seeds_and_batches(monkeypatch):
    network, inputs = build("Residual")
    graph = trace_network(network, *inputs)
    data = samples_for((3, 8, 8), 9)
    first = lasso(inputs_for(network, graph, data, seed=3), 2)
    np.testing.assert_array_equal(first, lasso(inputs_for(network, graph, data, seed=3), 2))
    monkeypatch.setattr("pruning.lasso.BATCH_SIZE", 4)
    monkeypatch.setattr("pruning.lasso.GRAM_BYTES", 1)  # one operator per run
    np.testing.assert_allclose(lasso(inputs_for(network, graph, data, seed=3), 2), first, rtol=1e-4)
    drawn = [Draws(graph, 9, 2, seed).of(graph.operators[1], 0, 9) for seed in (3, 4)]
    assert not torch.equal(*drawn)
    again = Draws(graph, 9, 2, 3)
    assert torch.equal(again.of(graph.operators[1], 4, 9), drawn[0][4:])
    assert not torch.equal(again.of(graph.operators[2], 0, 9), drawn[0])


def test_chunks_hold_what_fits():
    network, inputs = build("Residual")
    operators = trace_network(network, *inputs).operators
    sizes = [gram_bytes(operator) for operator in operators]
    assert sizes == [8 * 27**2, 8 * 54**2, 8 * 36**2, 8 * 6**2]
    found = chunks(operators, sizes[1] + sizes[2])  # leaves no room for the third after the first
    assert [len(part) for part in found] == [2, 2]
    assert [operator for part in found for operator in part] == list(operators)
    assert [len(part) for part in chunks(operators, 0)] == [1, 1, 1, 1]


def test_a_group_that_nothing_reads_and_missing_samples_are_refused():
    network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    graph = trace_network(network, torch.zeros(1, 1))
    unread = type(graph).from_json(graph.to_json())
    object.__setattr__(unread, "operators", unread.operators[:1])
    data = SampleSet(torch.ones(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match=r"'0' is read by no .*importance.criterion=lasso"):
        score_groups(network, unread, "lasso", data)
    with pytest.raises(ValueError, match=r"importance.criterion=lasso .*data=None"):
        score_groups(network, graph, "lasso")


def test_heads_inside_an_attention_module_are_read():
    network, inputs = build("EncoderLayer")
    graph = trace_network(network, *inputs)
    samples = samples_for(inputs[0].shape[1:], 6)
    with torch.no_grad():  # a head that the last projection does not read is the first to go
        network.layer.self_attn.out_proj.weight[:, 4:8] = 0.0
    scores = score_groups(network, graph, "lasso", samples)["layer.self_attn"]
    assert scores.argmin() == 1
    assert scores[1] == 0.0


def test_an_operator_that_does_not_read_one_row_per_image_is_refused():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            x = F.relu(self.first(x.reshape(-1, 4)))
            return self.second(x)

    network = Windows()
    graph = trace_network(network, torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match=r"'second' reads 6 rows for 3 images.*importance"):
        score_groups(network, graph, "lasso", samples_for((2, 4), 3))
