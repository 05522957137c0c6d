"""Kept counts that suit the hardware: multiples of round_to, or all channels."""

import dataclasses

import numpy as np
import pytest
import torch
from zoo import build

from graphs.network_graph import Group
from graphs.tracing import trace_network
from networks.data import SampleSet, SearchSplits
from patterns.library import PatternLibrary
from pruning.cost import CostModel
from pruning.keep_set import (
    CountGrid,
    InfeasibleKeep,
    KeepSet,
    allowed_counts,
    count_steps,
    kept_count,
)
from pruning.plan import Decision
from pruning.task import PruningTask

ROUND_TO = [1, 2, 4, 8]
EIGHTHS = [{"family": "channel", "ratio": eighths / 8} for eighths in range(1, 8)]


class Network(torch.nn.Module):
    """Groups of 12, 20 and 8 channels; the last has a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Conv2d(3, 12, 3, padding=1)
        self.b = torch.nn.Conv2d(12, 20, 3, padding=1)
        self.c = torch.nn.Conv2d(20, 8, 1)
        self.d = torch.nn.Conv2d(8, 8, 3, groups=8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.head(self.d(self.c(x).relu()).relu().mean((2, 3)))


def group(size, round_to, kind="channel"):
    return Group("g", kind, tuple(range(size)), min(size, round_to), (), (), round_to)


def make_graph(round_to):
    torch.manual_seed(0)
    return trace_network(Network(), torch.zeros(1, 3, 6, 6)).rounded(round_to)


def make_task(round_to, specs=EIGHTHS):
    torch.manual_seed(0)
    network, inputs = Network().eval(), torch.rand(4, 3, 6, 6)
    graph = trace_network(network, inputs[:1]).rounded(round_to)
    samples = SampleSet(inputs, torch.arange(4) % 3)
    library = PatternLibrary.from_specs(specs)
    return PruningTask(network, graph, SearchSplits(samples, samples, samples), library=library)


def is_allowed(graph, counts):
    return all(n in allowed_counts(g) for g, n in zip(graph.groups, counts, strict=True))


@pytest.mark.parametrize(
    ("size", "round_to", "steps", "allowed"),
    [
        (4, 1, [1, 2, 3, 4], [1, 2, 3, 4]),
        (20, 8, [8, 16, 20], [8, 16, 20]),
        (16, 8, [8, 16], [8, 16]),
        (5, 8, [5], [5]),
    ],
)
def test_allowed_counts_are_multiples_or_all(size, round_to, steps, allowed):
    assert count_steps(group(size, round_to)).tolist() == steps
    assert allowed_counts(group(size, round_to)).tolist() == allowed
    floored = dataclasses.replace(group(size, round_to), min_keep=size)
    assert allowed_counts(floored).tolist() == [size]


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [
        (0.0, 20),
        (0.09, 20),  # 18.2 channels: nearer to 20 than to 16
        (0.1, 16),  # 18 lies halfway: toward removal
        (0.3, 16),
        (0.4, 8),  # 12 lies halfway
        (0.7, 8),
        (1.0, 8),
    ],
)
def test_a_ratio_is_rounded_to_the_nearest_allowed_count(ratio, kept):
    assert kept_count(group(20, 8), ratio) == kept


@pytest.mark.parametrize("round_to", ROUND_TO)
@pytest.mark.parametrize("size", [1, 3, 8, 12, 20, 64])
def test_the_ratio_of_an_allowed_count_is_rounded_to_that_count(size, round_to):
    for count in allowed_counts(group(size, round_to)):
        assert kept_count(group(size, round_to), (size - count) / size) == count


@pytest.mark.parametrize("round_to", ROUND_TO)
def test_a_larger_ratio_never_keeps_more(round_to):
    ratios = np.linspace(0, 1, 1001)
    counts = [kept_count(group(20, round_to), float(ratio)) for ratio in ratios]
    assert (np.diff(counts) <= 0).all()
    assert set(counts) == set(allowed_counts(group(20, round_to)).tolist())


def test_counts_that_are_not_allowed_are_refused():
    graph = make_graph(8)
    with pytest.raises(InfeasibleKeep, match="'b' must keep a multiple of 8 channels or all 20"):
        KeepSet.from_counts(graph, {"b": 12})
    with pytest.raises(InfeasibleKeep, match="between 8 and 20 channels, got 4"):
        KeepSet.from_counts(graph, {"b": 4})
    assert KeepSet.from_counts(graph, [8, 16, 8]).counts.tolist() == [8, 16, 8]
    assert KeepSet.from_counts(graph, [12, 20, 8]).is_full


def test_named_channels_are_kept_whatever_their_number():
    graph = make_graph(8)
    keep = KeepSet.from_indices(graph, {"a": [0, 5, 7], "c": [1]})
    assert keep.counts.tolist() == [3, 20, 1]
    with pytest.raises(InfeasibleKeep, match="at least 1 channels, got 0"):
        KeepSet.from_indices(graph, {"a": []})


@pytest.mark.parametrize("round_to", ROUND_TO)
def test_random_keep_sets_have_every_allowed_count_and_no_other(round_to):
    graph, rng = make_graph(round_to), np.random.default_rng(0)
    drawn = np.array([KeepSet.random(graph, rng).counts for _ in range(300)])
    for column, g in zip(drawn.T, graph.groups, strict=True):
        assert set(column.tolist()) == set(allowed_counts(g).tolist())


def test_without_rounding_a_seed_draws_the_keep_sets_it_always_drew():
    graph = make_graph(1)
    rng = np.random.default_rng(5)
    expected = [int(rng.integers(1, g.size + 1)) for g in graph.groups]
    assert KeepSet.random(graph, np.random.default_rng(5)).counts.tolist() == expected


def test_rounding_by_one_leaves_the_graph_as_it_is():
    graph = trace_network(Network(), torch.zeros(1, 3, 6, 6))
    assert graph.rounded(1) == graph


def test_attention_heads_are_exempt():
    network, inputs = build("ManualAttention")
    graph = trace_network(network, inputs)
    heads = [g for g in graph.rounded(8).groups if g.kind == "heads"]
    assert heads
    assert all(allowed_counts(g).tolist() == list(range(1, g.size + 1)) for g in heads)


@pytest.mark.parametrize("round_to", ROUND_TO)
def test_grid_rounds_down_and_steps_up_as_the_allowed_counts_say(round_to):
    groups = make_graph(round_to).groups
    grid, rng = CountGrid(groups), np.random.default_rng(0)
    sizes = np.array([g.size for g in groups])
    for _ in range(200):
        wanted = rng.random(len(groups)) * sizes
        down = grid.round_down(wanted)
        up = grid.next_up(down)
        for g, want, low, high in zip(groups, wanted, down, up, strict=True):
            options = allowed_counts(g)
            below = options[options <= want + 1e-9]
            assert low == (below[-1] if len(below) else options[0])
            above = options[options > low]
            assert high == (above[0] if len(above) else g.size)
    np.testing.assert_array_equal(grid.round_down(sizes - 1e-12), sizes)


@pytest.mark.parametrize("round_to", ROUND_TO)
def test_the_most_a_group_may_keep_is_found_by_trying_all_allowed_counts(round_to):
    graph, rng = make_graph(round_to), np.random.default_rng(1)
    cost = CostModel(graph)
    for _ in range(50):
        counts = KeepSet.random(graph, rng).counts.copy()
        index, budget = int(rng.integers(len(counts))), rng.random() * cost.base_macs
        fitting = [0]
        for count in count_steps(graph.groups[index]):
            counts[index] = count
            if cost.macs_of_counts(counts) <= budget:
                fitting.append(int(count))
        assert cost.max_keep(counts, index, budget) == fitting[-1]


@pytest.mark.parametrize("round_to", ROUND_TO)
def test_uniform_counts_are_allowed_and_no_further_step_fits(round_to):
    task, rng = make_task(round_to), np.random.default_rng(2)
    grid = CountGrid(task.graph.groups)
    for _ in range(50):
        budget = task.min_macs + rng.random() * (task.cost.base_macs - task.min_macs)
        counts = task.uniform_counts(budget)
        assert is_allowed(task.graph, counts)
        assert task.cost.macs_of_counts(counts) <= budget
        for index, larger in enumerate(grid.next_up(counts)):
            if larger > counts[index]:
                more = counts.copy()
                more[index] = larger
                assert task.cost.macs_of_counts(more) > budget
        assert task.uniform_candidate(budget).keep.counts.tolist() == counts.tolist()


def test_a_budget_below_the_rounded_network_says_that_rounding_may_be_why():
    task = make_task(8)
    assert task.min_macs == task.cost.macs_of_counts([8, 8, 8])
    with pytest.raises(ValueError, match=r"Raise budget\.relative_macs, or lower round_to"):
        task.uniform_counts(task.min_macs - 1)


@pytest.mark.parametrize("round_to", ROUND_TO)
def test_decisions_of_any_ratio_execute_allowed_counts(round_to):
    task, rng = make_task(round_to), np.random.default_rng(3)
    for _ in range(50):
        decisions = [Decision(site.name, ratio=float(rng.random())) for site in task.sites]
        assert is_allowed(task.graph, task.candidate(decisions).keep.counts)


def test_patterns_that_round_to_the_whole_group_or_below_its_least_are_not_valid():
    task = make_task(8)
    names = task.library.names[1:]
    valid = {
        site.name: [name for name, ok in zip(names, row[1:], strict=True) if ok]
        for site, row in zip(task.sites, task.valid, strict=True)
    }
    # 12 channels: 10.5 -> 12; 9, 7.5, 6, 4.5 -> 8; 3, 1.5 -> 0
    assert valid["a"] == ["channel_0.25", "channel_0.375", "channel_0.5", "channel_0.625"]
    # 20 channels: 17.5, 15, 12.5 -> 16; 10, 7.5, 5 -> 8; 2.5 -> 0
    assert valid["b"] == [f"channel_{n / 8:g}" for n in range(1, 7)]
    assert valid["c"] == []  # 8 channels: all or none
    executed = task.candidate([Decision("a", pattern="channel_0.5")]).keep.counts
    assert executed.tolist() == [8, 20, 8]
