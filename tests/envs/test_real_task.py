"""Episodes on a real task: real evaluator, real slimming, real masks."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from envs.actions import PatternAction
from envs.budgets import Band, Wall
from envs.observations import GraphObservation
from networks.data import SampleSet, SearchSplits
from pruning.growth import Growth
from pruning.plan import PruningPlan
from pruning.task import PruningTask


@pytest.fixture
def real_task(mixed_task):
    torch.manual_seed(1)
    sets = [SampleSet(torch.rand(n, 3, 6, 6), torch.randint(4, (n,))) for n in (8, 16, 32)]
    return PruningTask(
        mixed_task.network, mixed_task.graph, SearchSplits(*sets), library=mixed_task.library
    )


def test_what_the_env_measured_is_what_its_plan_gives(real_task, run_episode):
    env = gymnasium.make(
        "AMC-v0", task=real_task, action=PatternAction(), budget=Wall(0.6)
    ).unwrapped
    before = {name: value.clone() for name, value in real_task.network.state_dict().items()}
    for seed in range(5):
        run_episode(env, seed=seed)
    for name, value in real_task.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert any(record.plan.masks for record in env.history)
    for record in env.history:
        plan = PruningPlan.from_json(record.plan.to_json())
        candidate = plan.candidate(real_task.graph)
        evaluation = real_task.evaluator.evaluate(candidate)
        assert evaluation.cached
        assert (evaluation.accuracy, evaluation.loss) == (record.accuracy, record.loss)
        slim = plan.apply(real_task.network, real_task.graph)
        assert sum(p.numel() for p in slim.parameters()) == record.params


def test_masks_change_what_is_measured(real_task):
    env = gymnasium.make(
        "AutoSculpt-v0", task=real_task, budget=Band(1.0, 0.4, cost="nonzero_macs")
    ).unwrapped
    losses = []
    for action in ([0, 0, 0, 0], [3, 3, 0, 0]):
        env.reset()
        *_, info = env.step(np.array(action))
        losses.append(info["record"].loss)
    assert losses[0] != losses[1]
    assert env.num_evaluations == 2


def test_the_static_features_are_of_the_real_network(real_task):
    env = gymnasium.make(
        "AutoSculpt-v0", task=real_task, budget=Band(0.5), observation=GraphObservation()
    ).unwrapped
    topology = env.observation_space.topology
    assert topology.num_sites == 4
    assert topology.num_patterns == len(real_task.library)
    assert topology.num_edges == len(real_task.graph.edges)


def test_a_plan_that_saw_all_images_wins_over_any_that_saw_fewer(real_task):
    env = gymnasium.make(
        "AMC-v0", task=real_task, action=PatternAction(), budget=Wall(0.9)
    ).unwrapped
    real_task.evaluator.growth = Growth(first=0.25, whole_at=10)
    rng = np.random.default_rng(0)
    while env.num_evaluations < 4:
        env.reset()
        finished = False
        while not finished:
            action = rng.choice(np.flatnonzero(env.action_masks()))
            _, _, finished, *_ = env.step(action)
    assert [record.num_samples for record in env.history] == [8, 11, 13, 16]
    assert env.best is env.history[-1]  # it saw most
    real_task.evaluator.growth = None
    first, second = env.finalists(2)
    scores = sorted((record.score for record in env.history), reverse=True)
    assert [first.score, second.score] == scores[:2]
    again = env.measure_again(second)
    assert (again.num_samples, again.executed, again.plan) == (32, second.executed, second.plan)
    assert (again.macs, again.met, env.num_evaluations) == (second.macs, True, 5)
    assert env.best is again
    env.measure_again(first)
    assert env.best is max(env.history[4:], key=lambda record: record.score)
    assert env.measure_again(second).cached
