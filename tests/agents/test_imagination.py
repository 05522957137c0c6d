from __future__ import annotations

import numpy as np
import pytest
from gymnasium import Wrapper, spaces

from agents.graph_policy import GraphPolicy
from agents.imagination import ImaginationAgent
from agents.imagined_env import ImaginedVecEnv
from agents.reward_model import GaussianProcess, PriorModel
from agents.search import run_search


def decided(env):
    return [record.decided for record in env.history]


def made(env, seed=0, **settings):
    settings = {"prior_weight": None, **settings}
    return ImaginationAgent(env, seed=seed, policy_kwargs={"head_scale": 0.0}, **settings)


def with_local_errors(env):
    """The further a site is from what it should be, the larger its error."""
    wanted = env.preview(env.targets)
    env.local_errors = lambda plans: np.abs(plans - wanted)
    return env


def test_the_best_plan_is_found_in_fewer_evaluations_than_drawing_at_random(make_env):
    env = make_env("ratio", num_sites=6, seed=7)
    result = run_search(made(Wrapper(env), drawn_plans=200), env, evaluations=60)
    assert (result.evaluations, result.stop_reason) == (60, "evaluations")
    rng = np.random.default_rng(0)
    drawn = rng.uniform(-1, 1, (60, 6))
    assert env.best.reward > 0.85
    assert env.best.reward > 1 - np.abs(drawn - env.targets).mean(axis=1).min() + 0.05


def test_the_first_plan_is_the_uniform_one_and_then_come_draws_around_it(make_env):
    env = make_env("ratio")
    made(env, warm_up=12).learn(12)
    first, *others = decided(env)
    assert first == (0.25,) * 4
    assert np.std(others, axis=0).mean() == pytest.approx(np.exp(-1.0), rel=0.35)
    assert np.mean(others) == pytest.approx(0.25, abs=0.15)


def test_the_same_seed_gives_the_same_episodes(make_env):
    def played(seed):
        env = make_env("ratio")
        made(env, seed, drawn_plans=50).learn(30)
        return decided(env)

    assert played(3) == played(3)
    assert played(3) != played(4)


def test_no_plan_is_measured_twice_while_others_are_left(make_env):
    env = make_env("ratio")
    made(env, drawn_plans=50).learn(40)
    plans = env.preview(np.asarray(decided(env)), rounded=True)
    assert len({plan.tobytes() for plan in plans}) == 40


def test_training_in_imagination_moves_the_policy_to_what_the_model_likes(make_env):
    """With a model that likes the last site only, the mean goes up there and nowhere else."""

    class LikesTheLast:
        def fit(self, plans, rewards):
            pass

        def predict(self, plans):
            return plans[:, -1], np.zeros(len(plans))

    env = make_env("ratio")
    settings = {"warm_up": 5, "drawn_plans": 20, "plans_per_round": 1}
    means = {}
    for updates in (0, 15):
        agent = made(env, model=LikesTheLast(), updates=updates, **settings)
        agent.learn(6)
        means[updates] = agent.predict(env.reset()[0])[0]
    moved = means[15] - means[0]
    assert moved[-1] > 0.2
    assert np.abs(moved[:-1]).max() < moved[-1]


def test_a_process_fits_a_trend_and_knows_where_it_knows_nothing():
    rng = np.random.default_rng(0)
    plans = rng.uniform(0.3, 1.0, (60, 5))
    slopes = np.array([2.0, 0.0, -1.0, 0.0, 0.5])
    model = GaussianProcess()
    model.fit(plans, np.log(plans) @ slopes)
    others = rng.uniform(0.4, 0.9, (40, 5))
    mean, deviation = model.predict(others)
    assert np.corrcoef(mean, np.log(others) @ slopes)[0, 1] > 0.99
    far = model.predict(np.full((1, 5), 0.02))[1]
    assert far[0] > 2 * deviation.mean()


def test_how_badly_a_network_is_ruined_plays_no_part():
    rng = np.random.default_rng(1)
    plans = rng.uniform(0.3, 1.0, (40, 3))
    predictions = []
    for ruin in (-20.0, -2000.0):
        rewards = plans[:, 0].copy()
        rewards[:2] = ruin
        model = GaussianProcess(floor=2.0)
        model.fit(plans, rewards)
        predictions.append(model.predict(plans)[0])
    np.testing.assert_array_equal(*predictions)
    assert np.corrcoef(predictions[0][2:], plans[2:, 0])[0, 1] > 0.9


def test_imagined_episodes_are_one_step_paid_by_the_model():
    env = ImaginedVecEnv(
        {"x": np.arange(3.0)},
        spaces.Dict({"x": spaces.Box(0, 9, (3,))}),
        spaces.Box(-1, 1, (2,)),
        num_envs=4,
        preview=lambda actions, rounded: np.asarray(actions) + 1.0,
    )
    assert env.reset()["x"].tolist() == [[0.0, 1.0, 2.0]] * 4
    env.worth = lambda plans: plans.sum(axis=1)
    actions = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5], [-1.0, -1.0]])
    _, rewards, dones, _ = env.step(actions)
    assert rewards.tolist() == [2.0, 3.0, 3.0, 0.0]
    assert dones.all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warm_up": 1}, "warm_up=1: wanted is 2 or more. Change agent.warm_up."),
        ({"drawn_plans": 2}, "drawn_plans=2: wanted is 5 or more. Change agent.drawn_plans."),
        ({"optimism": -0.1}, "optimism=-0.1: wanted is 0 or more. Change agent.optimism."),
        ({"policy": GraphPolicy}, "agent.policy is GraphPolicy"),
    ],
)
def test_bad_settings_are_refused(make_env, settings, message):
    with pytest.raises(ValueError, match=message):
        ImaginationAgent(make_env("ratio"), **settings)


def test_a_floor_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"floor=0: wanted is a number above 0"):
        GaussianProcess(floor=0)


def test_other_environments_and_files_are_refused(make_env, tmp_path):
    with pytest.raises(ValueError, match="Set env=allocation"):
        made(make_env("pattern"))
    agent = made(make_env("ratio"), drawn_plans=50)
    agent.learn(21)
    agent.save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match=r"not loaded from a file\. Start the search again with"):
        ImaginationAgent.load(tmp_path / "agent.zip")


def test_what_is_known_before_chooses_the_first_plans(make_env):
    rewards = {}
    for weight in (None, 0.0, 0.5):
        env = with_local_errors(make_env("ratio", num_sites=6, seed=7))
        made(env, warm_up=10, prior_weight=weight).learn(10)
        assert env.history[0].decided == (0.25,) * 6
        rewards[weight] = np.mean([record.reward for record in env.history[1:]])
    assert rewards[0.5] == rewards[0.0] > rewards[None] + 0.1


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_a_weight_of_the_prior_is_a_fraction(make_env, weight):
    with pytest.raises(ValueError, match=r"prior_weight=.*\[0, 1\].*agent\.prior_weight"):
        made(make_env("ratio"), prior_weight=weight)


class Constant:
    """Predicts the mean of what it was shown."""

    def fit(self, plans, rewards):
        self.mean = rewards.mean()

    def predict(self, plans):
        return np.full(len(plans), self.mean), np.ones(len(plans))


def test_a_prior_is_a_falling_line_of_which_a_part_is_believed():
    plans = np.linspace(0.1, 0.9, 9)[:, None]
    rewards = 1.0 - 3.0 * plans[:, 0]
    for weight, slope in ((1.0, -3.0), (0.5, -1.5), (0.0, 0.0)):
        model = PriorModel(Constant(), lambda plans: plans[:, 0], weight)
        np.testing.assert_allclose(model.predict(plans)[0], -plans[:, 0])  # before the first fit
        model.fit(plans, rewards)
        mean, deviation = model.predict(np.array([[0.5], [0.7]]))
        np.testing.assert_allclose(mean, [-0.5, -0.5 + 0.2 * slope], atol=1e-12)
        np.testing.assert_allclose(deviation, 1.0)


def test_a_prior_that_the_measurements_contradict_is_not_believed():
    plans = np.linspace(0.1, 0.9, 9)[:, None]
    model = PriorModel(Constant(), lambda plans: plans[:, 0])
    model.fit(plans, 2.0 * plans[:, 0])
    np.testing.assert_allclose(model.predict(plans)[0], 1.0)
