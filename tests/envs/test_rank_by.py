"""Which channels go: the task's own importance, or another one for an episode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.actions import PatternAction, RatioAction
from envs.budgets import Unlimited
from envs.episodes import Layerwise, Whole
from envs.observations import GraphObservation
from envs.pruning_env import PruningEnv
from envs.rewards import AlphaReward
from graphs.tracing import trace_network
from networks.data import SampleSet, SearchSplits
from patterns.library import PatternLibrary
from pruning.task import PruningTask

FEW_LARGE, MANY_SMALL = (0, 1), (2, 3)


@pytest.fixture
def task():
    """conv has two filters of one weight 3 (l1 3, l2 3), then two of nine 0.5 (l1 4.5, l2 1.5)."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(1), torch.nn.Linear(4, 3)
    ).eval()
    with torch.no_grad():
        filters = network[0].weight
        filters[:2] = 0.0
        filters[:2, 0, 1, 1] = 3.0
        filters[2:] = 0.5
    sets = [SampleSet(torch.rand(n, 1, 3, 3), torch.arange(n) % 3) for n in (9, 9, 12)]
    return PruningTask(
        network,
        trace_network(network, torch.zeros(1, 1, 3, 3)),
        SearchSplits(*sets),
        library=PatternLibrary.from_specs([{"family": "channel", "ratio": 0.5}]),
        importances={"l2": {"criterion": "l2"}, "taylor": {"criterion": "taylor"}},
    )


def env_of(task, action, episode):
    return PruningEnv(
        task,
        observation=GraphObservation(),
        action=action,
        episode=episode,
        budget=Unlimited(),
        reward=AlphaReward(),
    )


@pytest.mark.parametrize(
    ("action", "half"), [(RatioAction(1 - 1e-9), np.zeros(1, np.float32)), (PatternAction(), [1])]
)
@pytest.mark.parametrize("episode", [Whole(max_steps=1), Layerwise()])
def test_an_episode_is_ranked_by_the_importance_it_was_given(task, action, half, episode):
    env = env_of(task, action, episode)
    half = np.asarray(half) if env.action_space.shape else np.int64(1)
    kept = []
    for importance in (None, "l2", None, "l1"):
        env.reset()
        if importance is not None:
            env.rank_by(importance)
        foreseen = env.foresee(half)
        env.step(half)
        record = env.history[-1]
        assert foreseen == record.plan.candidate(task.graph)
        assert task.candidate(record.plan.decisions) == foreseen
        assert [decision.importance for decision in record.plan.decisions] == [importance]
        kept.append(record.plan.keep["0"])
    assert kept == [MANY_SMALL, FEW_LARGE, MANY_SMALL, MANY_SMALL]
    assert task.evaluator.num_evaluations == 2  # the cache tells the two apart, and no more


def test_counts_are_measured_by_the_own_importance(task):
    env = env_of(task, RatioAction(0.9), Whole(max_steps=1))
    env.reset()
    env.rank_by("l2")
    assert env.measure_counts([2]).plan.keep["0"] == MANY_SMALL


def test_another_importance_is_scored_when_it_is_first_asked_for(task, monkeypatch):
    import pruning.task

    asked = []
    original = pruning.task.score_groups
    monkeypatch.setattr(
        pruning.task,
        "score_groups",
        lambda *args, **options: asked.append(options["criterion"]) or original(*args, **options),
    )
    assert task.importances == ("l1", "l2", "taylor")
    for _ in range(2):
        task.scores_by("l2")
        assert task.scores_by() is task.scores_by("l1") is task.scores
    assert asked == ["l2"]
    env = env_of(task, RatioAction(0.9), Whole(max_steps=1))
    with pytest.raises(ValueError, match=r"importance is called 'fpgm' here. There are: l1, l2, t"):
        env.rank_by("fpgm")
