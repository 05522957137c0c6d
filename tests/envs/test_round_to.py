"""Episodes end within budget, with counts that suit the hardware."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from envs.actions import PatternAction, RatioAction
from envs.budgets import Project, Wall
from envs.episodes import Whole
from graphs.tracing import trace_network
from networks.data import SampleSet, SearchSplits
from patterns.library import PatternLibrary
from pruning.keep_set import CountGrid, allowed_counts, kept_count
from pruning.task import PruningTask

ROUND_TO = [1, 4, 8]
MAX_RATIO = 0.8


class Network(nn.Module):
    """Groups of 24, 20, 30 and 6 channels: whole multiples of 8, parts of them, and too few."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.inner = nn.Conv2d(24, 20, 3, padding=1)
        self.outer = nn.Conv2d(20, 24, 3, padding=1)
        self.wide = nn.Conv2d(24, 30, 1)
        self.narrow = nn.Linear(30, 6)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.outer(torch.relu(self.inner(x)))
        x = torch.relu(self.wide(x)).mean((2, 3))
        return self.classifier(torch.relu(self.narrow(x)))


@pytest.fixture(params=ROUND_TO, ids=lambda n: f"round_to={n}")
def rounded_task(request, task):
    """A task whose counts are rounded; its accuracy has the closed form of the other tests."""
    torch.manual_seed(0)
    network, inputs = Network().eval(), torch.rand(4, 3, 6, 6)
    samples = SampleSet(inputs, torch.arange(4))
    graph = trace_network(network, inputs[:1]).rounded(request.param)
    library = PatternLibrary.from_specs(
        [{"family": "channel", "ratio": n / 8} for n in range(1, 8)]
    )
    made = PruningTask(network, graph, SearchSplits(samples, samples, samples), library=library)
    made.evaluator = type(task.evaluator)(made)
    made.base = task.base
    return made


def random_budgets(task, smallest, number=6):
    """Budgets between the smallest network and the whole one, as fractions."""
    rng, base = np.random.default_rng(0), task.cost.base_macs
    lowest = smallest / base
    return [lowest + 1e-6 + float(rng.random()) * (1 - lowest - 1e-6) for _ in range(number)]


def check(env, relative_macs):
    """Every episode of `env` ended within budget, with allowed counts; returns the counts."""
    graph, cost = env.task.graph, env.task.cost
    found = []
    for record in env.history:
        counts = record.plan.keep_set(graph).counts
        assert cost.macs_of_counts(counts) == record.macs <= relative_macs * cost.base_macs
        assert record.met
        for group, count in zip(graph.groups, counts, strict=True):
            assert count in allowed_counts(group)
        found.append(counts)
    return found


def test_behind_a_wall_counts_are_allowed(rounded_task, make_env, run_episode):
    smallest = rounded_task.smallest_macs(MAX_RATIO)
    for budget in random_budgets(rounded_task, smallest):
        env = make_env(
            "AMC-v0", task=rounded_task, action=RatioAction(MAX_RATIO), budget=Wall(budget)
        )
        for seed in range(20):
            run_episode(env, seed=seed)
        check(env, budget)


def test_patterns_behind_a_wall_give_allowed_counts(rounded_task, make_env, run_episode):
    least = make_env("AMC-v0", task=rounded_task, action=PatternAction(), budget=Wall(1.0))
    smallest = rounded_task.cost.macs_of_counts(least._problem.smallest.counts)
    for budget in random_budgets(rounded_task, smallest):
        env = make_env("AMC-v0", task=rounded_task, action=PatternAction(), budget=Wall(budget))
        for seed in range(20):
            run_episode(env, seed=seed)
        check(env, budget)


def test_a_projection_ends_within_budget_and_no_further_step_fits(
    rounded_task, make_env, run_episode
):
    cost, grid = rounded_task.cost, CountGrid(rounded_task.graph.groups)
    for budget in random_budgets(rounded_task, rounded_task.smallest_macs(MAX_RATIO)):
        env = make_env(
            "AMC-v0",
            task=rounded_task,
            action=RatioAction(MAX_RATIO),
            episode=Whole(max_steps=1),
            budget=Project(budget),
        )
        for seed in range(20):
            run_episode(env, seed=seed)
        for counts in check(env, budget):
            for site, larger in enumerate(grid.next_up(counts)):
                if larger > counts[site]:
                    more = counts.copy()
                    more[site] = larger
                    assert cost.macs_of_counts(more) > budget * cost.base_macs


@pytest.mark.parametrize("action", [RatioAction(MAX_RATIO), PatternAction()], ids=lambda a: a.name)
def test_the_uniform_ratios_are_executed_within_budget(action, rounded_task, make_env):
    least = make_env("AMC-v0", task=rounded_task, action=action, budget=Wall(1.0))
    smallest = rounded_task.cost.macs_of_counts(least._problem.smallest.counts)
    for budget in random_budgets(rounded_task, smallest):
        env = make_env("AMC-v0", task=rounded_task, action=action, budget=Wall(budget))
        env.reset()
        finished = False
        while not finished:
            *_, terminated, truncated, _ = env.step(env.encode_ratios(env.uniform_ratios()))
            finished = terminated or truncated
        check(env, budget)


def test_what_an_action_asks_for_is_rounded_once(rounded_task, make_env, run_episode):
    env = make_env("AMC-v0", task=rounded_task, action=RatioAction(MAX_RATIO), budget=Wall(1.0))
    for value in np.linspace(-1, 1, 9):
        run_episode(env, [np.array([value], np.float32)] * 4)
        ratio = (float(np.float32(value)) + 1) / 2 * MAX_RATIO
        expected = [kept_count(group, ratio) for group in env.task.graph.groups]
        assert env.history[-1].plan.keep_set(env.task.graph).counts.tolist() == expected
        assert env.history[-1].clamps == 0


@pytest.mark.parametrize("rounded_task", [8], indirect=True)
def test_a_group_too_small_to_round_stays_whole(rounded_task, make_env, run_episode):
    env = make_env("AMC-v0", task=rounded_task, action=RatioAction(MAX_RATIO), budget=Wall(1.0))
    run_episode(env, [np.array([1.0], np.float32)] * 4)
    counts = env.history[-1].plan.keep_set(env.task.graph).counts
    assert counts.tolist() == [8, 8, 8, 6]  # 20 % of 24, 20 and 30 is below 8


def test_a_budget_that_rounding_puts_out_of_reach_says_so(rounded_task, make_env):
    smallest = rounded_task.smallest_macs(MAX_RATIO) / rounded_task.cost.base_macs
    with pytest.raises(ValueError, match="a smaller round_to"):
        make_env(
            "AMC-v0", task=rounded_task, action=RatioAction(MAX_RATIO), budget=Wall(0.5 * smallest)
        )
