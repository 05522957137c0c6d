"""Properties of slimming that hold on every network of the test list."""

import contextlib
import gc

import numpy as np
import pytest
import torch
from golden_groups import MEMBERS, SIZES, expand
from hard_cases import (
    HARD_CASES,
    NORM_OVER_CHANNELS,
    assert_close,
    build_case,
    flat,
    members_of,
    outputs,
    random_keep,
    signature,
    slimmer_of,
    traced,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from graphs.network_graph import NetworkGraph
from graphs.tracing import trace_network
from pruning.cost import CostModel
from pruning.keep_set import KeepSet
from pruning.slimming import Slimmer

every_case = pytest.mark.parametrize("name", HARD_CASES)


@every_case
def test_p1_slim_outputs_equal_masked_outputs(name):
    slimmer, inputs = slimmer_of(name), traced(name)[1]
    for seed in range(5):
        keep = random_keep(slimmer.graph, seed)
        with slimmer.masked(keep) as masked:
            expected = outputs(masked, inputs)
        with slimmer.applied(keep) as slim:
            assert_close(outputs(slim, inputs), expected, 1e-10)


@every_case
def test_p1_replaying_gives_the_same_as_the_networks_own_code(name):
    network, inputs, graph = traced(name)
    replaying = Slimmer(network, graph, verify=False, executor="replay")
    for seed in range(2):
        keep = random_keep(graph, seed)
        with slimmer_of(name).applied(keep) as slim:
            expected = outputs(slim, inputs)
        with replaying.applied(keep) as slim:
            assert_close(outputs(slim, inputs), expected, 1e-10)


@every_case
def test_p1_holds_for_batches_that_were_not_traced(name):
    network, inputs = build_case(name)
    many = tuple(torch.cat([x] * 3) for x in inputs)
    for batch in (1, 4):
        graph = trace_network(network, tuple(x[:batch] for x in many))
        assert signature(graph) == signature(traced(name)[2])
        slimmer = Slimmer(network, graph)
        for seed, other in ((0, 5), (1, 2), (2, 1)):
            keep, batch_inputs = random_keep(graph, seed), tuple(x[:other] for x in many)
            with slimmer.masked(keep) as masked:
                expected = outputs(masked, batch_inputs)
            with slimmer.applied(keep) as slim:
                assert_close(outputs(slim, batch_inputs), expected, 1e-10)


@pytest.mark.parametrize("name", ["gpt", "mha_self", "mha_cross", "encoder_norm_first"])
def test_p1_holds_for_another_number_of_tokens(name):
    slimmer, inputs = slimmer_of(name), tuple(x[:1, :4] for x in traced(name)[1])
    for seed in range(3):
        keep = random_keep(slimmer.graph, seed)
        with slimmer.masked(keep) as masked:
            expected = outputs(masked, inputs)
        with slimmer.applied(keep) as slim:
            assert_close(outputs(slim, inputs), expected, 1e-10)


@every_case
def test_p2_the_unpruned_slim_network_is_the_network(name):
    slimmer, (network, inputs, graph) = slimmer_of(name), traced(name)
    expected = outputs(network, inputs)
    with slimmer.applied(KeepSet.full(graph)) as whole:
        found = outputs(whole, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def fail_inside(context, inputs):
    with context as network:
        outputs(network, inputs)
        raise KeyError("user code")


@every_case
def test_p3_undo_is_exact_also_after_an_exception(name):
    slimmer, (network, inputs, graph) = slimmer_of(name), traced(name)
    before = {k: (v.data_ptr(), v.clone()) for k, v in network.state_dict().items()}
    attributes = {path: repr(module) for path, module in network.named_modules()}
    types = {path: type(module) for path, module in network.named_modules()}
    expected = outputs(network, inputs)
    with slimmer.applied(random_keep(graph, 1), copy=True) as slim:
        slim.train()
        outputs(slim, inputs)  # writes the statistics of the copy
        slim.eval()
    for use in (slimmer.applied, slimmer.masked):
        with pytest.raises(KeyError, match="user code"):
            fail_inside(use(random_keep(graph, 2)), inputs)
    after = network.state_dict()
    assert after.keys() == before.keys()
    for key, value in after.items():
        assert value.data_ptr() == before[key][0]
        assert torch.equal(value, before[key][1])
    assert {path: repr(module) for path, module in network.named_modules()} == attributes
    assert {path: type(module) for path, module in network.named_modules()} == types
    assert not any(module.training for module in network.modules())
    found = outputs(network, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@contextlib.contextmanager
def countable_attention():
    """Attention as two matrix products, which is what the flop counter sees."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@every_case
def test_p4_analytic_cost_equals_torchs_count(name):
    slimmer, (_, inputs, graph) = slimmer_of(name), traced(name)
    cost = CostModel(graph)
    # a branch on a value cannot run without values
    device = "cpu" if name == "data_dependent" else "meta"
    for seed in range(3):
        keep = random_keep(graph, seed)
        slim = slimmer.materialize(keep)
        # before the move: on "meta" tied parameters become two
        assert cost.params(keep) == sum(p.numel() for p in slim.parameters())
        slim.to(device)
        with countable_attention(), torch.no_grad(), FlopCounterMode(display=False) as counter:
            slim(*(x[:1].to(device) for x in inputs))
        assert 2 * cost.macs(keep) == counter.get_total_flops()


@every_case
def test_p5_a_materialized_network_is_independent_and_trains(name):
    slimmer, (network, inputs, graph) = slimmer_of(name), traced(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    slim = slimmer.materialize(random_keep(graph, 2)).train()
    storage = {t.data_ptr() for t in network.state_dict().values() if t.numel()}
    assert not storage & {t.data_ptr() for t in slim.state_dict().values() if t.numel()}
    optimizer = torch.optim.SGD(slim.parameters(), lr=1e-3)
    first = [p.detach().clone() for p in slim.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        sum(o.square().mean() for o in flat(slim(*inputs))).backward()
        optimizer.step()
    assert not all(torch.equal(p, q) for p, q in zip(slim.parameters(), first, strict=True))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@every_case
def test_p6_a_saved_graph_slims_the_same_way(name):
    slimmer, (network, inputs, graph) = slimmer_of(name), traced(name)
    again = NetworkGraph.from_json(graph.to_json())
    assert again == graph
    keep = random_keep(again, 4)
    with slimmer.applied(keep) as slim:
        expected = outputs(slim, inputs)
    with Slimmer(network, again).applied(keep) as slim:
        found = outputs(slim, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_case
def test_p7_groups_are_the_true_ones(name):
    graph = traced(name)[2]
    assert {group.name: group.size for group in graph.groups} == SIZES[name]


@pytest.mark.parametrize("name", MEMBERS)
def test_p7_a_unit_takes_exactly_these_axes_with_it(name):
    graph = traced(name)[2]
    found = {group.name: members_of(graph, group) for group in graph.groups}
    assert found == {group: expand(text) for group, text in MEMBERS[name].items()}


@every_case
def test_p9_episodes_leave_no_tensor(name):
    slimmer, graph = slimmer_of(name), traced(name)[2]
    keeps = [random_keep(graph, seed) for seed in range(5)]

    def live_after(episodes):
        for number in range(episodes):
            with slimmer.applied(keeps[number % len(keeps)]):
                pass
        gc.collect()
        return sum(issubclass(type(item), Tensor) for item in gc.get_objects())

    assert live_after(20) == live_after(20)


@every_case
def test_p8_tracing_leaves_no_trace(name):
    network, inputs = build_case(name)
    modules = list(network.modules())
    for module in modules[::2]:
        module.training = True
    parameters = list(network.parameters())
    for parameter in parameters[::3]:
        parameter.requires_grad_(False)
    modes = [module.training for module in modules]
    gradients = [parameter.requires_grad for parameter in parameters]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    random, fastpath = torch.random.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    trace_network(network, inputs)
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == gradients
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.backends.mha.get_fastpath_enabled() == fastpath
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def normed_over(graph, network):
    """Groups whose channels a layer or group norm reads: its statistics change with a zero less."""
    norms = {
        path
        for path, module in network.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
    }
    return {
        group.name: range(group.size)
        for group in graph.groups
        if any(tensor.rpartition(".")[0] in norms for tensor, _ in members_of(graph, group))
    }


@every_case
def test_z_channels_whose_weights_are_zero_leave_without_a_difference(name):
    slimmer, (network, inputs, graph) = slimmer_of(name), traced(name)
    whole = normed_over(graph, network)
    assert bool(whole) == (name in NORM_OVER_CHANNELS)
    for seed in range(5):
        keep = random_keep(graph, seed)
        kept = {group.name: keep.kept(group.name) for group in graph.groups}
        keep = KeepSet.from_indices(graph, {**kept, **whole})
        removed = np.append(~keep.mask, False)  # FROZEN is -1
        zeroed, _ = build_case(name)
        tensors = dict(zeroed.state_dict(keep_vars=True))
        with torch.no_grad():
            for axis_slice in graph.slices:
                gone = torch.from_numpy(np.flatnonzero(removed[list(axis_slice.units)]))
                tensors[axis_slice.tensor].index_fill_(axis_slice.axis, gone, 0.0)
        with slimmer.applied(keep) as slim:
            assert_close(outputs(slim, inputs), outputs(zeroed, inputs), 1e-6)


@every_case
def test_one_channel_of_every_group_is_enough(name):
    slimmer, (_, inputs, graph) = slimmer_of(name), traced(name)
    rng = np.random.default_rng(7)
    scores = {group.name: rng.random(group.size) for group in graph.groups}
    keep = KeepSet.from_counts(graph, {g.name: g.min_keep for g in graph.groups}, scores)
    with slimmer.masked(keep) as masked:
        expected = outputs(masked, inputs)
    with slimmer.applied(keep) as slim:
        assert_close(outputs(slim, inputs), expected, 1e-10)


# left out: one channel per block turns a grouped convolution depthwise; a group is renamed
@pytest.mark.parametrize("name", sorted(HARD_CASES.keys() - {"resnext", "shufflenetv2_twice"}))
def test_pruning_twice_equals_pruning_once(name):
    slimmer, (_, inputs, graph) = slimmer_of(name), traced(name)
    rng = np.random.default_rng(5)
    first = KeepSet.from_ratios(
        graph,
        {g.name: 0.4 for g in graph.groups},
        {g.name: rng.random(g.size) for g in graph.groups},
    )
    smaller = slimmer.materialize(first).eval()
    second_graph = trace_network(smaller, inputs)
    second = random_keep(second_graph, 6)
    twice = Slimmer(smaller, second_graph).materialize(second)
    kept = {group.name: first.kept(group.name) for group in graph.groups}
    for group in second_graph.groups:
        assert group.size == len(kept[group.name])
        kept[group.name] = kept[group.name][second.kept(group.name)]
    with slimmer.applied(KeepSet.from_indices(graph, kept)) as once:
        assert_close(outputs(twice, inputs), outputs(once, inputs), 1e-10)
