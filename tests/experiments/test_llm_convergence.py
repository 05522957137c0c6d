"""Convergence to the MAC band, counted alike for every method."""

from __future__ import annotations

import pytest

from envs.actions import RatioAction
from envs.budgets import Tolerance
from envs.episodes import Whole
from envs.observations import GraphObservation
from envs.pruning_env import PruningEnv
from envs.rewards import LogLikelihoodReward
from experiments.llm_convergence import METHODS, Case, search_for_band, summarise, to_csv


@pytest.fixture
def make_env(tiny_task):
    def make(relative_macs, above=0.01, below=0.05):
        return PruningEnv(
            tiny_task,
            observation=GraphObservation(),
            action=RatioAction(0.9),
            episode=Whole(max_steps=1),
            budget=Tolerance(relative_macs, above, below),
            reward=LogLikelihoodReward(),
        )

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_search_ends_at_the_first_plan_in_the_band(method, make_env):
    env = make_env(0.5, above=0.2, below=0.3)
    proposals, converged = search_for_band(env, METHODS[method], 10)
    assert converged
    assert [record.met for record in env.history] == [False] * (len(env.history) - 1) + [True]
    assert proposals >= len(env.history)
    # a plan that is in the cache by now ends the next search as well
    assert search_for_band(make_env(0.5, 0.2, 0.3), METHODS[method], 10) == (proposals, True)


@pytest.mark.parametrize("method", METHODS)
def test_no_search_makes_more_proposals_than_it_may(method, make_env):
    env = make_env(0.5, above=0.0, below=0.0001)
    proposals, converged = search_for_band(env, METHODS[method], 4)
    assert not converged
    assert proposals <= 4
    assert env.task.evaluator.num_evaluations == 0


def test_rates_and_needed_proposals():
    cases = [
        Case("grid", 0.5, 1, 4, True),
        Case("grid", 0.4, 1, 10, False),
        Case("bisection", 0.5, 1, 3, True),
        Case("grid", 0.3, 1, 7, True),
        Case("other", 0.3, 1, 9, False),
    ]
    assert summarise(cases) == [
        ("grid", 3, 2, 5.5), ("bisection", 1, 1, 3.0), ("other", 1, 0, None),
    ]  # fmt: skip
    assert to_csv(cases).splitlines()[:2] == [
        "method,relative_macs,round_to,proposals,converged",
        "grid,0.5,1,4,True",
    ]
