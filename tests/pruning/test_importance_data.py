"""Importance from filters' distances, gradients and activations, against closed forms."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import ZOO, build

from graphs.tracing import trace_network
from networks.data import SampleSet
from pruning.importance import score_groups

NEED_SAMPLES = ("taylor", "obd", "apoz", "activation_mean", "wanda")
ALL = (*NEED_SAMPLES, "fpgm")
NAMES = [name for name in ZOO if name != "TwoInputsDictOutput"]


def samples_for(inputs, number=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return SampleSet(
        torch.randn(number, *inputs.shape[1:], generator=generator),
        torch.randint(5, (number,), generator=generator),
    )


def half_squared_error(outputs, targets):
    return 0.5 * (outputs.squeeze(1) - targets).square().mean()


def spatial_cross_entropy(outputs, targets):
    """Cross-entropy of any number of classes, of the mean class scores of an image."""
    outputs = outputs.flatten(2).mean(2) if outputs.dim() > 2 else outputs
    return F.cross_entropy(outputs, targets % outputs.shape[1])


def chain(first, second, *between):
    """first (rows given) -> between -> second (one row given), without biases."""
    first, second = torch.tensor(first), torch.tensor([second])
    network = nn.Sequential(
        nn.Linear(first.shape[1], len(first), bias=False),
        *between,
        nn.Linear(len(first), 1, bias=False),
    )
    with torch.no_grad():
        network[0].weight.copy_(first)
        network[-1].weight.copy_(second)
    return network, trace_network(network, torch.zeros(1, first.shape[1]))


def scores_of(network, graph, inputs, targets=None, criterion="taylor", **options):
    inputs = torch.tensor(inputs)
    targets = torch.zeros(len(inputs)) if targets is None else torch.tensor(targets)
    data = SampleSet(inputs, targets)
    (scores,) = score_groups(
        network, graph, criterion, data, loss=half_squared_error, **options
    ).values()
    return scores


# ---------------------------------------------------------------------------------------- filters


def test_fpgm_tells_opposite_filters_apart():
    network, graph = chain([[1.0, 0.0], [-1.0, 0.0], [1.0, 2.0]], [1.0, 1.0, 1.0])
    # distances: 0-1 is 2 (0 if absolute values were compared), 0-2 is 2, 1-2 is sqrt(8)
    expected = [2 + 2, 2 + np.sqrt(8), 2 + np.sqrt(8)]
    np.testing.assert_allclose(score_groups(network, graph, "fpgm")["0"], expected)


def test_fpgm_sums_over_the_producers_of_a_residual_group():
    network, inputs = build("Residual")
    graph = trace_network(network, inputs)
    (group,) = (group for group in graph.groups if len(group.producers) == 2)
    expected = np.zeros(group.size)
    for conv in (network.stem[0], network.b[0]):
        filters = conv.weight.detach().flatten(1).double().numpy()
        expected += np.linalg.norm(filters[:, None] - filters[None], axis=2).sum(1)
    np.testing.assert_allclose(score_groups(network, graph, "fpgm")[group.name], expected)


# -------------------------------------------------------------------------------------- gradients


def test_taylor_is_the_sum_of_weight_times_gradient_worked_out_by_hand():
    network, graph = chain([[2.0], [-1.0]], [3.0, 5.0])
    # y = (3 * 2 - 5) x = x, target 0: dL/dy = x, so w dL/dw = 6 x^2 and -5 x^2; mean x^2 = 2.5
    scores = scores_of(network, graph, [[1.0], [2.0]])
    np.testing.assert_allclose(scores, [15.0, 12.5])
    # a second-layer weight has the same product; both sides add up
    for scope, expected in (("consumer", [15, 12.5]), ("group", [30, 25])):
        found = scores_of(network, graph, [[1.0], [2.0]], scope=scope)
        np.testing.assert_allclose(found, expected)


def test_taylor_adds_signed_gradients_over_batches_of_unequal_size(monkeypatch):
    network, graph = chain([[2.0], [-1.0]], [3.0, 5.0])
    # dL/dy = y - t = 1 for x = 1, t = 0, and -3 for x = 1, t = 4: they cancel in part
    inputs, targets = [[1.0], [1.0], [1.0]], [0.0, 0.0, 4.0]
    expected = [6 / 3, 5 / 3]
    np.testing.assert_allclose(scores_of(network, graph, inputs, targets), expected, rtol=1e-6)
    monkeypatch.setattr("pruning.gradient_importance.BATCH_SIZE", 2)
    np.testing.assert_allclose(scores_of(network, graph, inputs, targets), expected, rtol=1e-6)


def test_taylor_is_the_change_of_the_loss_to_first_order():
    network, inputs = build("Residual")
    graph = trace_network(network, inputs)
    network = network.double()
    data = samples_for(inputs[0])
    group = graph.group("a.0")
    scores = score_groups(network, graph, "taylor", data)["a.0"]

    def loss():
        with torch.no_grad():
            return F.cross_entropy(network(data.inputs.double()), data.targets).item()

    weight, step = network.a[0].weight, 1e-6
    for channel in range(group.size):
        row = weight.detach()[channel].clone()
        before = loss()
        weight.data[channel] = row * (1 - step)
        change = (loss() - before) / step
        weight.data[channel] = row
        assert scores[channel] == pytest.approx(abs(change), rel=1e-3, abs=1e-7)


def test_obd_is_the_exact_rise_of_a_quadratic_loss():
    # weights at the minimum of a quadratic; residuals of +-1 make the Fisher matrix the Hessian
    inputs = np.array([[1.0, 2], [1, 2], [3, -1], [3, -1]], np.float32)
    residuals = np.array([1.0, -1, 1, -1], np.float32)
    network, graph = chain([[2.0, 0.0], [0.0, -3.0]], [1.0, 1.0])
    targets = inputs @ np.array([2.0, -3.0], np.float32) + residuals

    def loss():
        with torch.no_grad():
            return half_squared_error(network(torch.tensor(inputs)), torch.tensor(targets)).item()

    rises, base = [], loss()
    for unit in range(2):
        pruned = network[0].weight.detach().clone()
        network[0].weight.data[unit] = 0
        rises.append(loss() - base)
        network[0].weight.data.copy_(pruned)
    np.testing.assert_allclose(rises, [0.5 * 5 * 4, 0.5 * 2.5 * 9], rtol=1e-5)
    scores = scores_of(network, graph, inputs.tolist(), targets.tolist(), "obd")
    np.testing.assert_allclose(scores, rises, rtol=1e-5)


def test_obd_squares_the_gradient_of_each_sample_and_counts_all_of_them(monkeypatch):
    network, graph = chain([[2.0], [-1.0]], [3.0, 5.0])
    # gradients of w0: 3 * (1, -3, 0), which a batch would add up to -6 before the square
    inputs, targets = [[1.0], [1.0], [1.0]], [0.0, 4.0, 1.0]
    expected = [0.5 * 4 * 9 * 10 / 3, 0.5 * 1 * 25 * 10 / 3]
    scores = scores_of(network, graph, inputs, targets, "obd")
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    # gradients of the second layer's weights: residuals 1, -3, 0 times what they read, 2 and -1
    read = [0.5 * 9 * 4 * 10 / 3, 0.5 * 25 * 1 * 10 / 3]
    for scope, by_hand in (("consumer", read), ("group", np.add(expected, read))):
        scores = scores_of(network, graph, inputs, targets, "obd", scope=scope)
        np.testing.assert_allclose(scores, by_hand, rtol=1e-6)
    monkeypatch.setattr("pruning.gradient_importance.MAX_CHUNK", 2)
    scores = scores_of(network, graph, inputs, targets, "obd")
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    # the first sample counts although others follow it
    changed = scores_of(network, graph, inputs, [3.0, 4.0, 1.0], "obd")
    np.testing.assert_allclose(changed, [0.5 * 4 * 9 * 13 / 3, 0.5 * 25 * 13 / 3], rtol=1e-6)


class ReadsValues(nn.Module):
    """Control flow that vmap refuses, of no effect."""

    def forward(self, x):
        return x * 1 if x.sum() > 0 else x / 1


def test_obd_is_the_same_where_gradients_cannot_be_vectorised():
    plain, graph = chain([[2.0], [-1.0]], [3.0, 5.0])
    looped, _ = chain([[2.0], [-1.0]], [3.0, 5.0])
    looped[0].register_forward_hook(lambda module, args, output: ReadsValues()(output))
    inputs, targets = [[1.0], [2.0]], [0.5, -1.0]
    vectorised = scores_of(plain, graph, inputs, targets, "obd")
    np.testing.assert_allclose(scores_of(looped, graph, inputs, targets, "obd"), vectorised)
    with pytest.raises(RuntimeError, match=r"vmap|data-dependent"):
        torch.func.vmap(ReadsValues())(torch.ones(2, 3))


# ------------------------------------------------------------------------------------ activations


def test_apoz_of_known_signs():
    network, graph = chain([[1.0], [-1.0], [0.0]], [1.0, 1.0, 1.0], nn.ReLU())
    scores = scores_of(network, graph, [[1.0], [2.0], [3.0], [-4.0]], criterion="apoz")
    np.testing.assert_array_equal(scores, [0.75, 0.25, 0.0])


def test_activations_are_read_after_a_functional_non_linearity():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1)
            self.first.weight.data = torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1)

        def forward(self, x):
            return F.conv2d(F.relu(self.first(x)), weight=self.second.weight)

    network = Functional()
    graph = trace_network(network, torch.zeros(1, 1, 2, 2))
    data = SampleSet(
        torch.tensor([1.0, 3, -5, -1, 2, -2, 4, 6]).reshape(2, 1, 2, 2), torch.zeros(2)
    )
    np.testing.assert_allclose(score_groups(network, graph, "apoz", data)["first"], [5 / 8, 3 / 8])
    means = score_groups(network, graph, "activation_mean", data)["first"]
    np.testing.assert_allclose(means, [16 / 8, 2 * 8 / 8])


def test_activation_mean_takes_absolute_values():
    network, graph = chain([[1.0], [-3.0]], [1.0, 1.0])
    scores = scores_of(network, graph, [[1.0], [-2.0]], criterion="activation_mean")
    np.testing.assert_allclose(scores, [1.5, 4.5])


def test_a_unit_that_fills_several_inputs_is_their_mean():
    network, inputs = build("FlattenSpatial")
    graph = trace_network(network, inputs)
    data = samples_for(inputs[0])
    maps = F.adaptive_max_pool2d(network.a(data.inputs), 2)
    scores = score_groups(network, graph, "activation_mean", data)["a.0"]
    np.testing.assert_allclose(scores, maps.mean((0, 2, 3)).detach().numpy(), rtol=1e-5)


def test_wanda_worked_out_by_hand():
    network, graph = chain([[1.0, -2.0], [4.0, 0.0]], [-1.0, 0.5])
    inputs = [[3.0, 1.0], [-4.0, 0.0]]  # column norms 5 and 1; unit 0 computes (1, -4), 1 (12, -16)
    produced, consumed = [5 + 2, 20], [np.sqrt(17), 0.5 * 20]
    for scope, expected in (
        ("producer", produced),
        ("consumer", consumed),
        ("group", np.add(produced, consumed)),
    ):
        scores = scores_of(network, graph, inputs, criterion="wanda", scope=scope)
        np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_wanda_gives_each_block_of_a_grouped_convolution_its_own_inputs():
    network, inputs = build("GroupedConv")
    graph = trace_network(network, inputs)
    data = samples_for(inputs[0])
    norms = network.a(data.inputs).detach().double().square().sum((0, 2, 3)).sqrt().numpy()
    weight = network.grouped[0].weight.detach().abs().double().numpy()  # 16 x 2 in 4 blocks
    rows = [(weight[o].sum((1, 2)) * norms[o // 4 * 2 : o // 4 * 2 + 2]).sum() for o in range(16)]
    expected = np.reshape(rows, (4, 4)).sum(0)  # aligned channels of the blocks are one unit
    scores = score_groups(network, graph, "wanda", data)["grouped.0"]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_wanda_reads_a_transposed_convolution_along_its_input_axis():
    network = nn.Sequential(nn.ConvTranspose2d(2, 3, 1, bias=False), nn.Conv2d(3, 1, 1))
    graph = trace_network(network, torch.zeros(1, 2, 2, 2))
    x = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    norms = x.square().sum((0, 2, 3)).sqrt()
    expected = norms @ network[0].weight.detach().abs()[:, :, 0, 0]
    scores = score_groups(network, graph, "wanda", SampleSet(x, torch.zeros(4)))["0"]
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-5)


# ---------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("criterion", NEED_SAMPLES)
def test_neither_order_nor_batches_of_the_samples_matter(criterion, monkeypatch):
    network, inputs = build("Residual")
    graph = trace_network(network, inputs)
    data = samples_for(inputs[0], number=9)
    expected = score_groups(network, graph, criterion, data)
    for module in ("gradient", "activation"):
        monkeypatch.setattr(f"pruning.{module}_importance.BATCH_SIZE", 4)
    monkeypatch.setattr("pruning.gradient_importance.MAX_CHUNK", 4)
    shuffled = score_groups(network, graph, criterion, data.subset([8, 3, 1, 0, 2, 7, 6, 5, 4]))
    for name, scores in expected.items():
        np.testing.assert_allclose(shuffled[name], scores, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_scores_every_network_and_leaves_it_as_it_was(name):
    network, inputs = build(name)
    graph = trace_network(network, inputs)
    network.train()
    for module in list(network.modules())[2::3]:
        module.training = False  # modes of parts need not be the same
    for parameter in list(network.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    next(network.parameters()).requires_grad_(False)
    state = copy.deepcopy(network.state_dict())
    tensors = {key: id(value) for key, value in network.named_parameters()}
    grads = {key: (id(p.grad), p.requires_grad) for key, p in network.named_parameters()}
    modes = [module.training for module in network.modules()]
    random_state = torch.random.get_rng_state()
    for criterion in ALL:
        scores = score_groups(
            network, graph, criterion, samples_for(inputs[0]), loss=spatial_cross_entropy
        )
        assert {key: len(values) for key, values in scores.items()} == {
            group.name: group.size for group in graph.groups
        }
        assert all((values >= 0).all() for values in scores.values())
        # without a ReLU no activation is zero, and APoZ tells no channels apart
        assert criterion == "apoz" or any(len(set(values)) > 1 for values in scores.values())
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert tensors == {key: id(value) for key, value in network.named_parameters()}
    assert grads == {key: (id(p.grad), p.requires_grad) for key, p in network.named_parameters()}
    assert all(bool((p.grad == 1).all()) for p in network.parameters() if p.grad is not None)
    assert modes == [module.training for module in network.modules()]
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


class Noisy(nn.Module):
    """Always-on dropout and a buffer written in every pass, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 5)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.second(F.dropout(F.relu(self.first(x)), 0.5, training=True))


@pytest.mark.parametrize("criterion", NEED_SAMPLES)
def test_a_network_that_draws_and_counts_is_left_as_it_was(criterion):
    network = Noisy()
    quiet = nn.Sequential(network.first, nn.ReLU(), network.second)
    graph = trace_network(quiet, torch.zeros(1, 3))
    text = graph.to_json().replace('"0', '"first').replace('"2', '"second')
    graph = type(graph).from_json(text)
    random_state = torch.random.get_rng_state()
    score_groups(network, graph, criterion, samples_for(torch.zeros(1, 3)))
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert network.calls.item() == 0


def test_modes_are_put_back_after_a_failure():
    network, inputs = build("Residual")
    graph = trace_network(network, inputs)
    network.train()
    with pytest.raises(RuntimeError, match="channels"):
        score_groups(network, graph, "apoz", samples_for(torch.zeros(1, 2, 8, 8)))
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("criterion", NEED_SAMPLES)
def test_missing_samples_are_refused_with_the_key(criterion):
    network, inputs = build("Residual")
    graph = trace_network(network, inputs)
    with pytest.raises(ValueError, match=f"importance.criterion={criterion} .*data=None"):
        score_groups(network, graph, criterion)
    empty = SampleSet(torch.zeros(0, 3, 8, 8), torch.zeros(0))
    with pytest.raises(ValueError, match=f"importance.criterion={criterion} .*empty sample set"):
        score_groups(network, graph, criterion, empty)


@pytest.mark.parametrize("criterion", NEED_SAMPLES)
def test_a_network_with_two_inputs_is_refused_by_criteria_that_run_it(criterion):
    network, inputs = build("TwoInputsDictOutput")
    graph = trace_network(network, inputs)
    with pytest.raises(ValueError, match=f"importance.criterion={criterion}.*takes 2"):
        score_groups(network, graph, criterion, samples_for(inputs[0]))


@pytest.mark.parametrize("criterion", ["taylor", "obd"])
def test_targets_without_a_cross_entropy_are_refused(criterion):
    network, graph = chain([[2.0], [-1.0]], [3.0, 5.0])
    data = SampleSet(torch.ones(2, 1), torch.ones(2))
    with pytest.raises(ValueError, match=r"cross-entropy.*torch.float32.*importance.criterion"):
        score_groups(network, graph, criterion, data)


def test_class_scores_per_pixel_with_one_target_per_image_are_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))
    graph = trace_network(network, torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"outputs of shape \(6, 5, 2, 2\).*of shape \(6,\)"):
        score_groups(network, graph, "taylor", samples_for(torch.zeros(1, 3, 2, 2)))


def test_an_operator_that_runs_more_often_than_when_traced_is_refused():
    class Repeats(nn.Module):
        def __init__(self):
            super().__init__()
            self.times = 1
            self.first, self.middle, self.last = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.first(x)
            for _ in range(self.times):
                x = self.middle(x)
            return self.last(x)

    network = Repeats()
    graph = trace_network(network, torch.zeros(1, 2))
    network.times = 2
    data = SampleSet(torch.ones(2, 2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"'middle' ran 2 times.*1 times when .*traced"):
        score_groups(network, graph, "apoz", data)


def test_channels_that_no_layer_reads_have_no_activations_to_score():
    network, graph = chain([[1.0], [2.0]], [1.0, 1.0])
    data = SampleSet(torch.ones(2, 1), torch.zeros(2))
    unread = type(graph).from_json(graph.to_json())
    object.__setattr__(unread, "operators", unread.operators[:1])
    with pytest.raises(ValueError, match=r"'0' is read by no .*importance.criterion=apoz"):
        score_groups(network, unread, "apoz", data)
