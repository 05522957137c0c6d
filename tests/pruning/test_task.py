"""The pruning task: sites, what decisions execute, and uniform pruning within a budget."""

import numpy as np
import pytest
import torch
from torch import nn

import pruning.task
from graphs.tracing import trace_network
from networks.data import SampleSet, SearchSplits
from patterns.library import PatternLibrary
from pruning.keep_set import KeepSet
from pruning.plan import Candidate, Decision, PruningPlan
from pruning.task import PruningTask, Site

SPECS = [
    {"family": "dense"},
    {"family": "channel", "ratio": 0.5},
    {"family": "channel", "ratio": 0.9},
    {"family": "channel", "ratio": 0.95},
    {"family": "kernel_shape", "shape": "two_right_columns"},
    {"family": "kernel_shape", "shape": "plus"},
]


class Network(nn.Module):
    """stem (3 -> 4) + residual block (4 -> 6 -> 4), then a 1x1 (4 -> 10) and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 4, 1, bias=False)
        self.outer_norm = nn.BatchNorm2d(4)
        self.wide = nn.Conv2d(4, 10, 1, bias=False)
        self.wide_norm = nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu()
        x = (x + self.outer_norm(self.outer(self.inner_norm(self.inner(x)).relu()))).relu()
        x = self.wide_norm(self.wide(x)).relu()
        return self.head(x.mean((2, 3)))


def splits():
    generator = torch.Generator().manual_seed(0)
    sets = [
        SampleSet(
            torch.randn(12, 3, 6, 6, generator=generator),
            torch.randint(0, 3, (12,), generator=generator),
        )
        for _ in range(3)
    ]
    return SearchSplits(*sets)


@pytest.fixture(scope="module")
def task():
    network = Network().eval()
    graph = trace_network(network, torch.zeros(1, 3, 6, 6))
    return PruningTask(network, graph, splits(), library=PatternLibrary.from_specs(SPECS))


def test_there_is_one_site_per_group_with_its_producers(task):
    assert task.sites == (
        Site("stem", "stem", ("stem", "outer")),
        Site("inner", "inner", ("inner",)),
        Site("wide", "wide", ("wide",)),
    )


def test_the_base_is_measured_once_and_not_counted(task):
    expected = task.evaluator.measure(task.network, splits().reward)
    assert (task.base.accuracy, task.base.loss) == (expected.accuracy, expected.loss)
    fresh = PruningTask(task.network, task.graph, splits(), library=task.library)
    assert fresh.evaluator.num_evaluations == 0


def test_a_choice_is_valid_when_it_leaves_channels_or_has_a_kernel_to_shape(task):
    #          dense  0.5   0.9    0.95   two columns  plus
    expected = [
        [True, True, False, False, True, True],  # 4 channels: 0.9 rounds to 4 removed
        [True, True, True, False, True, True],  # 6 channels: 0.9 removes 5
        [True, True, True, False, False, False],  # 10 channels: 0.95 removes 10; 1x1 only
    ]
    assert task.valid.tolist() == expected
    assert not task.valid.flags.writeable


def test_ratios_remove_the_least_important_channels(task):
    scores = task.network.inner.weight.detach().abs().sum((1, 2, 3)).numpy()
    candidate = task.candidate([Decision("inner", ratio=0.5)])
    assert candidate.keep.counts.tolist() == [4, 3, 10]
    assert candidate.keep.kept("inner").tolist() == sorted(np.argsort(-scores)[:3].tolist())
    assert candidate.masks == ()
    assert task.candidate([Decision("inner", pattern="channel_0.5")]) == candidate


def test_a_mask_lands_on_the_producers_that_have_a_kernel_to_shape(task):
    candidate = task.candidate([Decision("stem", pattern="plus"), Decision("wide", ratio=0.3)])
    assert candidate.keep.counts.tolist() == [4, 6, 7]
    assert candidate.masks == (("stem@stem", "plus"),)  # not outer: a 1x1
    mask = task.mask_tensors(candidate)["stem.weight"]
    assert mask.sum().item() == 4 * 3 * 4
    assert torch.equal(
        task.overlay(candidate)["stem.weight"], task.network.stem.weight.detach() * mask
    )


def test_deciding_nothing_or_dense_everywhere_keeps_everything(task):
    full = Candidate(KeepSet.full(task.graph))
    assert task.candidate([]) == full
    dense = [Decision(site.name, pattern="dense") for site in task.sites]
    assert task.candidate(dense) == full
    assert hash(task.candidate(dense)) == hash(full)


def test_the_order_of_the_decisions_does_not_matter(task):
    decisions = [Decision("stem", pattern="plus"), Decision("inner", pattern="two_right_columns")]
    assert task.candidate(decisions) == task.candidate(decisions[::-1])
    assert len(task.candidate(decisions).masks) == 2


def test_masking_costs_nothing_less_on_dense_hardware(task):
    candidate = task.candidate([Decision("inner", pattern="plus")])
    assert task.cost.macs(candidate.keep) == task.cost.base_macs
    inner_macs = 36 * 9 * 4 * 6
    nonzero = task.cost.nonzero_macs(candidate.keep, task.mask_tensors(candidate))
    assert nonzero == task.cost.base_macs - inner_macs * 5 // 9


def test_masks_change_the_measured_network_and_are_cached_apart(task):
    dense = task.candidate([])
    masked = task.candidate([Decision("inner", pattern="plus")])
    before = task.evaluator.num_evaluations
    losses = [task.evaluator.evaluate(c, task.overlay(c)).loss for c in (dense, masked)]
    assert losses[0] != losses[1]
    assert task.evaluator.num_evaluations == before + 2
    assert task.evaluator.evaluate(masked, task.overlay(masked)).cached


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ([Decision("tail", ratio=0.5)], "'tail'.*stem, inner, wide"),
        ([Decision("stem", ratio=0.5), Decision("stem", pattern="plus")], "'stem' has two"),
        ([Decision("stem", pattern="star")], "'star'.*dense, channel_0.5"),
        (
            [Decision("wide", pattern="plus")],
            "'plus' is not valid at site 'wide'. Valid there: dense, channel_0.5, channel_0.9.",
        ),
        ([Decision("stem", pattern="channel_0.9")], "'channel_0.9' is not valid at site 'stem'"),
    ],
)
def test_decisions_that_make_no_sense_are_refused(task, decisions, message):
    with pytest.raises(ValueError, match=message):
        task.candidate(decisions)


def test_a_replayed_plan_executes_the_same_candidate(task):
    decisions = [
        Decision("stem", pattern="channel_0.5"),
        Decision("inner", pattern="plus"),
        Decision("wide", ratio=0.21),
    ]
    candidate = task.candidate(decisions)
    plan = task.plan(decisions, candidate)
    assert plan.graph == task.graph.fingerprint
    assert plan.keep["stem"] == tuple(candidate.keep.kept("stem").tolist())
    assert [spec.get("name", spec["family"]) for spec in plan.patterns] == ["channel", "plus"]
    replayed = PruningPlan.from_json(plan.to_json())
    assert replayed == plan
    assert replayed.candidate(task.graph) == candidate
    assert task.candidate(replayed.decisions) == candidate
    # and it computes what the search measured
    inputs = splits().reward.inputs
    with task.slimmer.applied(candidate.keep, overlay=task.overlay(candidate)) as slim:
        expected = slim(inputs)
    assert torch.equal(replayed.apply(task.network, task.graph)(inputs), expected)


def test_scores_are_computed_once(task, monkeypatch):
    calls = []

    def counting(*arguments, **options):
        calls.append(arguments[2])
        return original(*arguments, **options)

    original = pruning.task.score_groups
    monkeypatch.setattr(pruning.task, "score_groups", counting)
    fresh = PruningTask(
        task.network, task.graph, splits(), library=task.library, criterion="random", seed=5
    )
    for ratio in (0.2, 0.4, 0.6):
        fresh.candidate([Decision("inner", ratio=ratio)])
        fresh.uniform_candidate(0.5 * fresh.cost.base_macs)
    assert calls == ["random"]
    with_seed = original(task.network, task.graph, "random", seed=5)
    assert all((fresh.scores[name] == with_seed[name]).all() for name in with_seed)


def test_uniform_pruning_is_within_the_budget_and_no_channel_more_would_fit(task):
    sizes = np.array([group.size for group in task.graph.groups])
    drawn = np.random.default_rng(0).uniform(task.min_macs, task.cost.base_macs, 200)
    reachable = [task.cost.macs_of_counts(task.uniform_counts(budget)) for budget in drawn]
    for budget in [*drawn, *reachable]:  # the bound is inclusive
        counts = task.uniform_counts(budget)
        assert counts.dtype == np.int64
        assert (counts >= 1).all()
        assert (counts <= sizes).all()
        assert task.cost.macs_of_counts(counts) <= budget
        for group in range(len(counts)):
            if counts[group] < sizes[group]:
                more = counts.copy()
                more[group] += 1
                assert task.cost.macs_of_counts(more) > budget


def test_uniform_pruning_keeps_nearly_the_same_fraction_everywhere(task):
    network = nn.Sequential(*(nn.Conv2d(n, n, 1) for n in [32] * 6), nn.Conv2d(32, 2, 1))
    graph = trace_network(network, torch.zeros(1, 32, 2, 2))
    data = SampleSet(torch.zeros(4, 32, 2, 2), torch.zeros(4, 2, 2, dtype=torch.long))
    wide = PruningTask(
        network,
        graph,
        SearchSplits(data, data, data),
        library=task.library,
        recalibrate=False,
        evaluator_options={"metric": lambda outputs, targets: 0.0},
    )
    for relative in (0.3, 0.5, 0.75):
        counts = wide.uniform_counts(relative * wide.cost.base_macs)
        assert counts.max() - counts.min() <= 1


def test_uniform_pruning_reaches_both_ends_of_the_budget(task):
    assert task.uniform_counts(task.cost.base_macs).tolist() == [4, 6, 10]
    assert task.uniform_counts(1e12).tolist() == [4, 6, 10]
    assert task.uniform_counts(task.min_macs).tolist() == [1, 1, 1]
    assert task.smallest_macs(1.0) == task.min_macs
    assert task.smallest_macs(0.0) == task.cost.base_macs
    assert task.smallest_macs(0.5) == task.cost.macs_of_counts([2, 3, 5])


def test_a_uniform_candidate_keeps_the_most_important_channels(task):
    budget = 0.5 * task.cost.base_macs
    counts = task.uniform_counts(budget)
    candidate = task.uniform_candidate(budget)
    assert candidate.keep == KeepSet.from_counts(task.graph, counts, task.scores)
    assert task.cost.macs(candidate.keep) <= budget


@pytest.mark.parametrize("factor", [0.99, 0.0, -1.0, float("nan")])
def test_a_budget_below_the_smallest_network_is_refused(task, factor):
    smallest = task.min_macs / task.cost.base_macs
    message = (
        f"relative_macs {smallest * factor:.4f}.*relative_macs {smallest:.4f}.*budget.relative_macs"
    )
    with pytest.raises(ValueError, match=message):
        task.uniform_counts(factor * task.min_macs)


def test_a_network_without_prunable_channels_is_refused(task):
    network = nn.Linear(3, 2)
    graph = trace_network(network, torch.zeros(1, 3))
    data = SampleSet(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"no channels that can be removed.*Change network"):
        PruningTask(network, graph, SearchSplits(data, data, data), library=task.library)
