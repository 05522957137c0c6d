"""Slim equals masked, undo is exact, cost equals torch's own count: on every network of the zoo."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO, build, randomise_norms

from graphs.network_graph import NetworkGraph
from graphs.tracing import trace_network
from networks.mobilenet import mobilenet_v2
from networks.resnet import cifar_resnet
from networks.vgg import vgg16_bn
from networks.vit import vit
from pruning.cost import CostModel
from pruning.keep_set import KeepSet
from pruning.slimming import Slimmer, SlimmingError

ARCHITECTURES = {
    "resnet20-A": lambda: cifar_resnet(20, shortcut="A"),
    "resnet20-B": lambda: cifar_resnet(20, shortcut="B"),
    "mobilenetv2": mobilenet_v2,
    "vgg16": vgg16_bn,
    "vit": lambda: vit(depth=2, dim=48, heads=3),
}
EVERY_NETWORK = [*ZOO, *ARCHITECTURES]


def make(name):
    if name in ZOO:
        return build(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ARCHITECTURES[name]()
        randomise_norms(network)
        return network.eval(), (torch.randn(2, 3, 32, 32),)


def random_keep(graph, seed):
    rng = np.random.default_rng(seed)
    counts = {g.name: int(rng.integers(g.min_keep, g.size + 1)) for g in graph.groups}
    return KeepSet.from_counts(graph, counts, {g.name: rng.random(g.size) for g in graph.groups})


def outputs(network, inputs):
    with torch.no_grad():
        result = network(*inputs)
    return list(result.values()) if isinstance(result, dict) else [result]


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_slim_outputs_equal_masked_outputs(name):
    network, inputs = make(name)
    network.double()
    inputs = tuple(x.double() for x in inputs)
    slimmer = Slimmer(network, trace_network(network, inputs), verify=False)
    for seed in range(5):
        keep = random_keep(slimmer.graph, seed)
        with slimmer.masked(keep) as masked:
            expected = outputs(masked, inputs)
        with slimmer.applied(keep) as slim:
            found = outputs(slim, inputs)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_unpruned_is_the_network_itself_and_undo_is_exact(name):
    network, inputs = make(name)
    slimmer = Slimmer(network, trace_network(network, inputs), verify=False)
    before = {k: (v.data_ptr(), v.clone()) for k, v in network.state_dict().items()}
    attributes = {p: repr(m) for p, m in network.named_modules()}
    expected = outputs(network, inputs)
    with slimmer.applied(KeepSet.full(slimmer.graph)) as whole:
        assert all(torch.equal(a, b) for a, b in zip(outputs(whole, inputs), expected, strict=True))
    with slimmer.applied(random_keep(slimmer.graph, 1), copy=True) as slim:
        slim.train()
        outputs(slim, inputs)  # writes batch-norm statistics of the copy
        slim.eval()
    for key, value in network.state_dict().items():
        assert value.data_ptr() == before[key][0]
        assert torch.equal(value, before[key][1])
    assert {p: repr(m) for p, m in network.named_modules()} == attributes


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_analytic_cost_equals_torchs_count_on_the_slim_network(name):
    network, inputs = make(name)
    graph = trace_network(network, inputs)
    slimmer, cost = Slimmer(network, graph, verify=False), CostModel(graph)
    for seed in range(3):
        keep = random_keep(graph, seed)
        slim = slimmer.materialize(keep)
        assert cost.params(keep) == sum(p.numel() for p in slim.parameters())
        meta = copy.deepcopy(slim).to("meta")
        with FlopCounterMode(display=False) as counter:
            meta(*(torch.empty(1, *x.shape[1:], device="meta") for x in inputs))
        assert 2 * cost.macs(keep) == counter.get_total_flops()
        assert sum(cost.macs_per_operator(keep).values()) == cost.macs(keep)


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_a_materialized_network_is_independent_and_trains(name):
    network, inputs = make(name)
    slimmer = Slimmer(network, trace_network(network, inputs), verify=False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    slim = slimmer.materialize(random_keep(slimmer.graph, 2)).train()
    base_storage = {p.data_ptr() for p in network.parameters()}
    assert not base_storage & {p.data_ptr() for p in slim.parameters()}
    optimizer = torch.optim.SGD(slim.parameters(), lr=0.01)
    first = [p.detach().clone() for p in slim.parameters()]
    for _ in range(3):
        result = slim(*inputs)
        sum(
            o.square().mean() for o in (result.values() if isinstance(result, dict) else [result])
        ).backward()
        optimizer.step()
    assert not all(torch.equal(p, old) for p, old in zip(slim.parameters(), first, strict=True))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_reference_costs_of_the_cifar_networks():
    x = torch.randn(1, 3, 32, 32)
    reference = {
        "resnet20-A": (cifar_resnet(20), 40_551_040, 269_722),
        "resnet56-A": (cifar_resnet(56), 125_485_696, 853_018),
        "resnet56-B": (cifar_resnet(56, shortcut="B"), 125_747_840, 855_770),
    }
    for name, (network, macs, params) in reference.items():
        cost = CostModel(trace_network(network, x))
        assert (cost.base_macs, cost.base_params) == (macs, params), name


def test_cost_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(24, 2)
    )
    graph = trace_network(network, torch.randn(1, 3, 2, 2))
    cost = CostModel(graph)
    assert cost.base_macs == 4 * 9 * 3 * 4 + 4 * 4 * 6 + 24 * 2
    keep = KeepSet.from_counts(graph, {"0": 3, "2": 5})
    assert cost.macs_per_operator(keep) == {"0": 4 * 9 * 3 * 3, "2": 4 * 3 * 5, "4": 20 * 2}
    assert cost.params(keep) == (3 * 3 * 9 + 3) + (5 * 3 + 5) + (2 * 20 + 2)
    assert cost.macs_of_counts(np.array([[4, 6], [3, 5]])).tolist() == [576, 424]


def test_max_keep_is_the_widest_that_fits():
    graph = trace_network(cifar_resnet(20), torch.randn(1, 3, 32, 32))
    cost = CostModel(graph)
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = np.array([rng.integers(1, g.size + 1) for g in graph.groups])
        group = int(rng.integers(len(counts)))
        budget = int(rng.integers(cost.base_macs // 50, cost.base_macs))
        widest = cost.max_keep(counts, group, budget)
        for width in (widest, widest + 1):
            counts[group] = width
            fits = cost.macs_of_counts(counts) <= budget
            assert fits == (width <= widest) or width == 0 or width > graph.groups[group].size


def test_nonzero_cost_counts_only_unmasked_weights():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 2, 1, bias=False)
    )
    graph = trace_network(network, torch.randn(1, 3, 2, 2))
    cost = CostModel(graph)
    mask = torch.ones(4, 3, 3, 3, dtype=torch.bool)
    mask[0] = False  # a masked filter
    mask[3, :, 0] = False  # a third of each kernel of filter 3
    keep = KeepSet.full(graph)
    dense = 4 * 27 * 4
    assert cost.nonzero_macs(keep, {"0.weight": mask}) == 4 * (27 * 2 + 18) + 4 * 4 * 2
    assert cost.macs(keep) == dense + 4 * 4 * 2  # the dense hardware gains nothing
    assert cost.nonzero_params(keep, {"0.weight": mask}) == 27 * 2 + 18 + 8
    keep = KeepSet.from_indices(graph, {"0": [1, 3]})
    assert cost.nonzero_macs(keep, {"0.weight": mask}) == 4 * (27 + 18) + 4 * 2 * 2


def test_a_failure_inside_the_block_still_restores_the_network():
    network, inputs = build("Depthwise")
    slimmer = Slimmer(network, trace_network(network, inputs))
    expected = outputs(network, inputs)[0]
    with pytest.raises(KeyError), slimmer.applied(random_keep(slimmer.graph, 3)):
        raise KeyError("user code")
    assert network.depthwise.groups == 6
    assert torch.equal(outputs(network, inputs)[0], expected)


def test_nested_use_is_an_error():
    network, inputs = build("Residual")
    slimmer = Slimmer(network, trace_network(network, inputs))
    keep = KeepSet.full(slimmer.graph)
    with slimmer.applied(keep), pytest.raises(RuntimeError, match="nested"), slimmer.applied(keep):
        pass
    with slimmer.applied(keep):  # and usable again afterwards
        pass


def test_no_growth_over_many_episodes():
    network, inputs = build("DenseConcat")
    slimmer = Slimmer(network, trace_network(network, inputs))
    before = {name: id(p) for name, p in network.named_parameters()}
    for seed in range(300):
        with slimmer.applied(random_keep(slimmer.graph, seed)):
            pass
    assert {name: id(p) for name, p in network.named_parameters()} == before


def test_a_channel_number_in_the_users_code_is_found_when_wrapping():
    class HardCoded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 2)

        def forward(self, x):
            return self.fc(self.a(x).view(-1, 128))

    network = HardCoded()
    graph = trace_network(network, torch.randn(1, 3, 4, 4))
    with pytest.raises(SlimmingError, match="probably holds a channel number"):
        Slimmer(network, graph, executor="swap")
    assert Slimmer(network, graph).executor == "replay"


def test_removing_channels_whose_weights_are_zero_changes_nothing():
    network, inputs = make("resnet20-A")
    graph = trace_network(network, inputs)
    slimmer = Slimmer(network, graph)
    keep = KeepSet.from_ratios(graph, {group.name: 0.25 for group in graph.groups})
    removed = ~keep.mask
    with torch.no_grad():
        for axis_slice in graph.slices:
            gone = [i for i, unit in enumerate(axis_slice.units) if unit >= 0 and removed[unit]]
            tensor = network.state_dict()[axis_slice.tensor]
            tensor.index_fill_(axis_slice.axis, torch.tensor(gone, dtype=torch.long), 0.0)
    expected = outputs(network, inputs)[0]
    with slimmer.applied(keep) as slim:
        torch.testing.assert_close(
            outputs(slim, inputs)[0], expected, rtol=0, atol=1e-6 * float(expected.abs().max())
        )


def test_a_graph_of_another_network_is_refused():
    network, _ = build("Residual")
    other, other_inputs = build("DenseConcat")
    with pytest.raises(ValueError, match="does not belong to this network"):
        Slimmer(network, trace_network(other, other_inputs))


def test_a_saved_graph_slims_the_same_way():
    network, inputs = make("resnet20-A")
    graph = trace_network(network, inputs)
    again = NetworkGraph.from_json(graph.to_json())
    keep = KeepSet.from_ratios(again, {g.name: 0.5 for g in again.groups})
    with Slimmer(network, graph, verify=False).applied(keep) as slim:
        expected = outputs(slim, inputs)[0]
    with Slimmer(network, again, verify=False).applied(keep) as slim:
        assert torch.equal(outputs(slim, inputs)[0], expected)


def test_tied_weights_are_sliced_in_both_places():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.b.weight = self.a.weight
            self.stem = nn.Linear(3, 6)

        def forward(self, x):
            return self.out(F.relu(self.b(F.relu(self.a(self.stem(x))))))

    network, x = Tied(), torch.randn(2, 3)
    graph = trace_network(network, x)
    assert graph.aliases == {"b.weight": "a.weight"}
    assert Slimmer(network, graph).verify(5) < 1e-5
    cost = CostModel(graph)
    assert cost.base_params == sum(p.numel() for p in network.parameters())


def test_a_wider_network_of_the_same_kind_is_refused():
    graph = trace_network(cifar_resnet(20, width=8), torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"'conv1.weight' has the shape \(16, .*was \(8,"):
        Slimmer(cifar_resnet(20), graph)


def test_a_copy_never_shares_an_overlay():
    network, inputs = build("Residual")
    slimmer = Slimmer(network, trace_network(network, inputs))
    overlay = {"a.0.weight": torch.zeros_like(network.a[0].weight)}
    with slimmer.applied(KeepSet.full(slimmer.graph), copy=True, overlay=overlay) as slim:
        slim.a[0].weight.data.fill_(1.0)
    assert not overlay["a.0.weight"].any()


def test_writing_the_unpruned_networks_weights_is_an_error():
    network, inputs = build("Residual")
    slimmer = Slimmer(network, trace_network(network, inputs))
    keep = KeepSet.from_indices(slimmer.graph, {"a.0": [0, 1]})  # stem.0 stays whole: a base tensor
    with (
        pytest.raises(RuntimeError, match=r"'stem\.0\.weight'.*was written.*copy=True"),
        slimmer.applied(keep) as slim,
        torch.no_grad(),
    ):
        slim.stem[0].weight.add_(1.0)
    with slimmer.applied(keep, copy=True) as slim, torch.no_grad():
        slim.stem[0].weight.add_(1.0)
