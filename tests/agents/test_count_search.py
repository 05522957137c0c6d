from __future__ import annotations

import numpy as np
import pytest
from classic_task import chain_env, chain_task, counts_of

from agents.count_search import CountSearchAgent, CountSpace, Measured
from agents.exchange import exchange_search, exchanged
from agents.greedy import GreedyAgent
from agents.magnitude import MagnitudeAgent
from agents.netadapt import NetAdaptAgent
from agents.search import run_search
from agents.sensitivity import SensitivityAgent
from envs.actions import PatternAction, RatioAction
from envs.allocation import AllocationAction
from envs.budgets import Band, Wall
from envs.episodes import Layerwise

AGENTS = [MagnitudeAgent, SensitivityAgent, GreedyAgent, NetAdaptAgent]
BASE_MACS = 1152 + 9216 + 18432 + 48


class TwoPlans(CountSearchAgent):
    """Asks for two fixed networks, the first outside the budget."""

    def _search(self, space, rng):
        answer = yield np.array([8, 8, 15])
        self.first = answer
        yield np.array([8, 4, 14])


def space_of(env):
    return CountSpace.of(env.task, env.smallest_counts, env.limits.upper)


def test_every_network_is_measured_exactly_and_counted():
    env = chain_env()
    agent = TwoPlans(env, seed=0)
    result = run_search(agent, env, evaluations=10)
    assert [counts_of(record) for record in env.history] == [(8, 8, 15), (8, 4, 14)]
    assert (result.evaluations, result.episodes, result.stop_reason) == (2, 2, "finished")
    # 8*8*15*... : 1152 + 9216 + 16*9*8*15 + 3*15 MACs, outside; 1152 + 4608 + 8064 + 42 inside
    assert [record.macs for record in env.history] == [27693, 13866]
    assert [record.met for record in env.history] == [False, True]
    assert env.best is env.history[1]
    assert agent.first.loss == pytest.approx(0.1 + 2 / 16)
    assert agent.first.score == pytest.approx(-0.1 - 2 / 16)
    assert env.history[1].raw_action == (0.0, 0.5, 0.125)


def test_the_search_stops_at_the_exact_number_of_evaluations_and_goes_on():
    env = chain_env()
    agent = TwoPlans(env, seed=0)
    assert run_search(agent, env, evaluations=1).stop_reason == "evaluations"
    assert len(env.history) == 1
    run_search(agent, env, evaluations=2)
    assert [counts_of(record) for record in env.history] == [(8, 8, 15), (8, 4, 14)]


def test_a_replayed_search_is_free():
    env = chain_env()
    for _ in range(2):
        GreedyAgent(env, seed=3, evaluations=20).learn(24)
        counts = [counts_of(record) for record in env.history]
        paid, env.task.evaluator.num_evaluations = env.task.evaluator.num_evaluations, 0
    half = len(counts) // 2
    assert half >= 15
    assert counts[half:] == counts[:half]
    assert paid == 0


@pytest.mark.parametrize("agent_class", AGENTS)
def test_the_best_plan_is_predicted_and_survives_saving(tmp_path, agent_class):
    env = chain_env(budget=Wall(0.5), env_id="AMC-v0", episode=Layerwise())
    agent = agent_class(env, seed=0)
    run_search(agent, env, evaluations=12)
    agent.save(tmp_path / "agent")
    again = agent_class.load(tmp_path / "agent.zip", env=env)
    assert again.findings() == agent.findings()
    observation, _ = env.reset()
    finished = False
    while not finished:
        observation, _, finished, _, _ = env.step(again.predict(observation)[0])
    assert env.best is not None
    np.testing.assert_allclose(
        counts_of(env.history[-1]), counts_of(env.best), atol=1
    )  # the wall's smallest ratio step is no channel of its own
    assert env.history[-1].met


@pytest.mark.parametrize("agent_class", AGENTS)
def test_the_same_seed_gives_the_same_plans_in_any_kind_of_episode(agent_class):
    def plans(env_id, **parts):
        env = chain_env(env_id=env_id, **parts)
        run_search(agent_class(env, seed=4), env, evaluations=25)
        assert all(record.met or record.macs > BASE_MACS // 2 for record in env.history)
        assert env.best is not None
        return [counts_of(record) for record in env.history]

    whole = plans("Allocation-v0", action=AllocationAction(max_ratio=0.8))
    assert plans("Allocation-v0", action=RatioAction(0.8)) == whole
    assert plans("AMC-v0") == whole


@pytest.mark.parametrize("agent_class", AGENTS)
def test_patterns_are_refused_by_name(agent_class):
    env = chain_env(env_id="AutoSculpt-v0")
    with pytest.raises(ValueError, match=rf"{agent_class.__name__} decides channel counts.*env="):
        agent_class(env)


@pytest.mark.parametrize("agent_class", AGENTS)
def test_a_budget_that_asks_for_nothing_is_refused(agent_class):
    env = chain_env(env_id="AMC-v0", budget=Wall(1.0))
    with pytest.raises(ValueError, match=r"meets this one\. Set budget=project"):
        agent_class(env)


def test_other_environments_and_evaluations_are_refused(make_env):
    with pytest.raises(ValueError, match=r"TwoPlans decides channel counts"):
        TwoPlans(make_env("ratio"), seed=0)
    with pytest.raises(ValueError, match=r"evaluations=0: .* Change agent\.evaluations"):
        TwoPlans(None, seed=0, evaluations=0)


def test_measure_counts_refuses_what_is_no_choice():
    env = chain_env(chain_task(round_to=4))
    with pytest.raises(ValueError, match="multiple of 4"):
        env.measure_counts([8, 5, 16])
    with pytest.raises(ValueError, match="3 kept counts"):
        env.measure_counts([8, 8])
    with pytest.raises(ValueError, match="each at least"):
        env.measure_counts([0, 8, 16])
    with pytest.raises(ValueError, match="no pattern actions"):
        chain_env(env_id="AutoSculpt-v0", action=PatternAction()).measure_counts([8, 8, 16])


def test_measure_counts_measures_outside_a_band_and_ends_the_episode():
    env = chain_env(env_id="AMC-v0", budget=Band(0.5, 0.1), episode=Layerwise())
    env.reset()
    record = env.measure_counts([8, 8, 16])
    assert record.loss == pytest.approx(0.1)
    assert not record.met
    assert record.score < -1.0  # below every reward inside
    with pytest.raises(Exception, match="reset"):
        env.step(env.action_space.sample())


def test_shrinking_keeps_the_proportions_within_budget():
    space = space_of(chain_env())
    shrunk = space.shrunk(np.array([8, 8, 16]))
    assert space.fits(shrunk)
    assert not any(
        space.fits(shrunk + step)
        for step in np.eye(3, dtype=int)
        if (shrunk + step <= space.sizes).all()
    )
    np.testing.assert_allclose(shrunk / space.sizes, 0.7, atol=0.11)
    assert space.shrunk(np.array([8, 4, 8])).tolist() == [8, 4, 8]


def test_an_exchange_stays_within_budget_and_fills_it():
    space, rng = space_of(chain_env()), np.random.default_rng(0)
    start = space.shrunk(space.sizes)
    found = {tuple(exchanged(space, start, rng, 0.5).tolist()) for _ in range(60)}
    assert len(found) > 8
    for counts in map(np.array, found):
        assert space.fits(counts)
        assert (counts >= space.smallest).all()
        assert (counts <= space.sizes).all()


def test_local_search_only_climbs_and_never_repeats():
    env = chain_env()
    space = space_of(env)
    start = space.shrunk(space.sizes)
    evaluator = env.task.evaluator
    search = exchange_search(
        space, start, -evaluator.loss(start), np.random.default_rng(1), step=0.5
    )
    asked, counts = [], next(search)
    for _ in range(12):
        asked.append(tuple(counts.tolist()))
        record = env.measure_counts(counts)
        assert record.met
        counts = search.send(Measured(record.score, 0.0, record.loss, True))
    assert len(set(asked)) == len(asked)
    assert min(map(evaluator.loss, asked)) < evaluator.loss(start)
