"""Weights that fit any network: shared, saved, loaded, trained on several at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.allocation_policy import AllocationPolicy
from agents.evolution import CMAESAgent
from agents.on_policy import PPO
from agents.transfer import (
    Lesson,
    check_transferable,
    load_shared,
    save_shared,
    shared_weights,
    start_at,
    tie,
    train_shared,
    zero_shot_action,
)

GATV2 = {"hidden_channels": 8, "encoder_kwargs": {"heads": 2, "num_layers": 1}}
TRAINING = {
    "updates": 120,
    "plans": 32,
    "deviation": 0.2,
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "caution": 0.0,
    "anchor": 0.0,
    "seed": 0,
}


def make_policy(env, seed=0, **kwargs):
    torch.manual_seed(seed)
    options = {"features_extractor_kwargs": GATV2, "net_arch": [16], "offset_scale": 0.0}
    return AllocationPolicy(
        env.observation_space,
        env.action_space,
        lambda _: 1e-3,
        **{**options, "head_scale": 1.0, **kwargs},
    )


def perturb(policy, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in shared_weights(policy).values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return policy


def observe(env):
    return env.reset(seed=0)[0]


class KnownModel:
    """What a plan is worth: minus its squared distance to the best one."""

    def __init__(self, best, doubt=0.0):
        self.best = best
        self.doubt = doubt

    def fit(self, plans, rewards):
        pass

    def predict(self, plans):
        worth = -((plans - self.best) ** 2).sum(axis=1)
        return worth, np.full(len(plans), self.doubt)


def lesson(env, best, policy=None):
    def preview(actions, *, rounded):
        return actions

    return Lesson(policy or make_policy(env), observe(env), preview, KnownModel(best))


def test_weights_of_one_network_decide_for_a_larger_one(make_env, tmp_path):
    small, large = make_env("ratio", num_sites=3), make_env("ratio", num_sites=7, seed=5)
    learned = perturb(make_policy(small))
    save_shared(learned, tmp_path / "policy.safetensors")
    other = make_policy(large, seed=9)
    assert not zero_shot_action(other, observe(large)).any()  # the head begins at 0
    load_shared(other, tmp_path / "policy.safetensors")
    for name, value in shared_weights(other).items():
        torch.testing.assert_close(value, shared_weights(learned)[name])
    action = zero_shot_action(other, observe(large))
    assert action.shape == (7,)
    assert np.ptp(action) > 1e-3
    np.testing.assert_array_equal(zero_shot_action(other, observe(large)), action)


def test_what_belongs_to_groups_is_not_shared(make_env):
    policy = make_policy(make_env("ratio"))
    names = set(shared_weights(policy))
    assert {"offset", "free_log_std"} == {n for n, _ in policy.named_parameters()} - names
    assert any("encoder" in name for name in names)


def test_tied_policies_learn_together(make_env):
    first, second = make_env("ratio", num_sites=3), make_env("ratio", num_sites=5, seed=2)
    one, two = make_policy(first, seed=0), make_policy(second, seed=1)
    tie([one, two])
    perturb(one)
    for name, value in shared_weights(one).items():
        assert shared_weights(two)[name] is value
    assert zero_shot_action(two, observe(second)).any()
    assert (len(one.offset), len(two.offset)) == (3, 5)


def test_a_rule_that_two_networks_teach_holds_on_a_third(make_env):
    """The best action of a site is a function of its features, so a head can know it."""
    envs = [make_env("ratio", num_sites=8, seed=seed) for seed in (1, 2, 3)]

    def best(env):
        feature = env.topology.site_features[:, 0]
        return 0.5 * (feature - feature.mean()) / feature.std()

    lessons = [lesson(env, best(env)) for env in envs[:2]]
    progress = train_shared(lessons, **TRAINING)
    assert len(progress) == 120
    assert progress[0] == 0.0
    assert progress[-1] > 1.0
    unseen = make_policy(envs[2])
    unseen.load_state_dict(
        {
            **unseen.state_dict(),
            **{n: v.detach() for n, v in shared_weights(lessons[0].policy).items()},
        }
    )
    action = zero_shot_action(unseen, observe(envs[2]))
    target = np.clip(best(envs[2]), -1, 1)
    assert np.corrcoef(action, target)[0, 1] > 0.5
    assert ((action - target) ** 2).sum() < 0.8 * (target**2).sum()  # better than uniform


def test_training_is_repeatable_and_every_network_counts_alike(make_env):
    env = make_env("ratio", num_sites=4)
    best = np.array([0.5, -0.5, 0.2, 0.0])

    class Scaled(KnownModel):
        def predict(self, plans):
            worth, doubt = super().predict(plans)
            return 1000.0 * worth - 7.0, doubt

    def trained(model):
        policy = make_policy(env)
        plain = lesson(env, best, policy)
        train_shared(
            [Lesson(policy, plain.observation, plain.preview, model)], **{**TRAINING, "updates": 5}
        )
        return zero_shot_action(policy, observe(env))

    once = trained(KnownModel(best))
    np.testing.assert_array_equal(trained(KnownModel(best)), once)
    np.testing.assert_allclose(trained(Scaled(best)), once, atol=1e-4)


def test_the_anchor_holds_the_policy_at_the_uniform_plan(make_env):
    env = make_env("ratio", num_sites=4)

    def distance(anchor):
        taught = lesson(env, np.array([0.6, -0.6, 0.6, -0.6]))
        train_shared([taught], **{**TRAINING, "updates": 40, "anchor": anchor})
        return np.abs(zero_shot_action(taught.policy, observe(env))).mean()

    assert distance(0.0) > 2 * distance(0.5) > 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"offset_scale": 1.0}, "offsets cannot be transferred: they belong to the 4 groups"),
        ({"head_scale": 0.0}, "Without its head"),
        ({"features_extractor_kwargs": None}, "fits one network only. Set encoder=gatv2"),
    ],
)
def test_policies_that_fit_one_network_only_are_refused(make_env, tmp_path, kwargs, message):
    policy = make_policy(make_env("ratio"), **kwargs)
    with pytest.raises(ValueError, match=message):
        save_shared(policy, tmp_path / "policy.safetensors")
    assert not list(tmp_path.iterdir())


def test_other_policies_are_refused():
    with pytest.raises(ValueError, match="Only an AllocationPolicy can be transferred"):
        check_transferable(torch.nn.Linear(1, 1))


def test_files_that_hold_no_such_policy_are_refused(make_env, tmp_path):
    policy = make_policy(make_env("ratio"))
    file = tmp_path / "policy.safetensors"
    with pytest.raises(ValueError, match="There is no file"):
        load_shared(policy, file)
    file.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="does not hold the weights of a policy"):
        load_shared(policy, file)
    save_shared(make_policy(make_env("ratio"), net_arch=[32]), file)
    with pytest.raises(ValueError, match=r"has another form: action_net.0.bias"):
        load_shared(policy, file)


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(ValueError, match=r"Name some in transfer\.sources"):
        train_shared([], **TRAINING)


def test_agents_begin_where_they_are_told(make_env, tmp_path):
    env = make_env("ratio")
    start = np.array([0.5, -0.25, 0.0, 0.75], dtype=np.float32)
    file = tmp_path / "policy.safetensors"
    learned = perturb(make_policy(env))
    save_shared(learned, file)

    strategy = CMAESAgent(env, seed=0)
    start_at(strategy, observe(env), start, file)
    np.testing.assert_allclose(strategy.predict(observe(env))[0], start)

    options = {"features_extractor_kwargs": GATV2, "net_arch": [16]}
    ppo = PPO(AllocationPolicy, env, policy_kwargs={**options, "head_scale": 0.05}, device="cpu")
    start_at(ppo, observe(env), start, file)
    mean, _ = ppo.predict(observe(env), deterministic=True)
    np.testing.assert_allclose(mean, start, atol=1e-6)
    assert ppo.policy.offset_scale == 1.0
    for name, value in shared_weights(ppo.policy).items():  # the head goes on learning from there
        torch.testing.assert_close(value, shared_weights(learned)[name])


def test_a_search_that_has_begun_or_another_shape_is_refused(make_env, tmp_path):
    env = make_env("ratio")
    agent = CMAESAgent(env, seed=0)
    with pytest.raises(ValueError, match=r"shape \(3,\) is no action of shape \(4,\)"):
        agent.start_at(np.zeros(3))
    agent.learn(1)
    with pytest.raises(ValueError, match="has begun"):
        agent.start_at(np.zeros(4))
    with pytest.raises(ValueError, match="object cannot begin its search at a given plan"):
        start_at(object(), observe(env), np.zeros(4), tmp_path / "none")
