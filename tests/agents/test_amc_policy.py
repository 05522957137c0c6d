"""AMC's actor and critic: values by hand, sizes, and the weights they start from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from agents.amc import AMC
from agents.amc_policy import AMCPolicy, BranchedQ, ScaledSigmoid
from agents.encoder import NodeEncoder
from agents.features_extractor import GraphFeaturesExtractor
from agents.flat_features import FlatFeaturesExtractor

FLAT = {"features_extractor_class": FlatFeaturesExtractor, "net_arch": [32, 32]}


def make_agent(env, **kwargs):
    defaults = {"policy_kwargs": FLAT, "seed": 0, "device": "cpu", "learning_starts": 0}
    return AMC(AMCPolicy, env, **{**defaults, **kwargs})


@pytest.mark.parametrize("action_layer", [1, 2])
def test_branches_of_the_critic_are_summed_before_the_nonlinearity(action_layer):
    critic = BranchedQ(2, 1, [2, 2], action_layer)
    with torch.no_grad():
        critic.layers[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        critic.layers[0].bias.copy_(torch.tensor([0.0, -1.0]))
        critic.layers[1].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        critic.layers[1].bias.zero_()
        critic.action.weight.copy_(torch.tensor([[-4.0], [2.0]]))
        critic.action.bias.copy_(torch.tensor([0.0, 0.5]))
        critic.value.weight.copy_(torch.tensor([[1.0, 10.0]]))
        critic.value.bias.fill_(0.25)
    found = critic(torch.tensor([[3.0, 0.5]]), torch.tensor([[0.0]])).item()  # 0 is 0.5 on [0, 1]
    # The action's branch is (-2, 1.5). At layer 1: relu(3 - 2, -0.5 + 1.5) = (1, 1), then (1, 2).
    # At layer 2: relu(3, -0.5) = (3, 0), then relu(3 - 2, 3 + 1.5) = (1, 4.5).
    assert found == pytest.approx({1: 1 + 20 + 0.25, 2: 1 + 45 + 0.25}[action_layer])


def test_networks_have_the_sizes_of_amc(make_env):
    env = make_env("ratio", "layerwise")
    agent = make_agent(env, policy_kwargs={**FLAT, "net_arch": [300, 300]})
    state = FlatFeaturesExtractor(env.observation_space).features_dim
    sizes = {name: tuple(p.shape) for name, p in agent.critic.named_parameters()}
    assert sizes["qf0.layers.0.weight"] == (300, state)
    assert sizes["qf0.action.weight"] == (300, 1)
    assert sizes["qf0.layers.1.weight"] == (300, 300)
    assert sizes["qf0.value.weight"] == (1, 300)
    assert len(sizes) == 8
    assert [type(layer) for layer in agent.actor.mu[::2]] == [nn.Linear] * 3
    assert isinstance(agent.actor.mu[-1], ScaledSigmoid)


def test_initial_weights_are_those_of_torch(make_env):
    """Uniform within 1 / sqrt(fan in), the action's branch within 1, and no small last layer."""
    agent = make_agent(
        make_env("ratio", "layerwise"), policy_kwargs={**FLAT, "net_arch": [300, 300]}
    )
    critic = agent.critic.qf0
    for layer, bound in (
        (critic.action, 1.0),
        (critic.value, 300**-0.5),
        (agent.actor.mu[4], 300**-0.5),
    ):
        largest = layer.weight.abs().max().item()
        assert 0.9 * bound < largest <= bound


def test_the_sigmoid_of_amc_is_scaled_to_the_actions_of_sb3():
    logits = torch.tensor([0.0, np.log(3.0), -40.0, 40.0])
    assert ScaledSigmoid()(logits).tolist() == pytest.approx([0.0, 0.5, -1.0, 1.0])


def test_an_action_that_arrives_nowhere_is_refused(make_env):
    with pytest.raises(ValueError, match=r"2 hidden layers, numbered from 1, got 3"):
        make_agent(make_env("ratio"), policy_kwargs={**FLAT, "action_layer": 3})


def test_the_graph_can_be_read_too(make_env):
    extractor = {"encoder_class": NodeEncoder, "hidden_channels": 16}
    graph = {
        "features_extractor_class": GraphFeaturesExtractor,
        "features_extractor_kwargs": extractor,
        "net_arch": [16, 16],
    }
    env = make_env("ratio", "layerwise")
    agent = make_agent(env, policy_kwargs=graph, warmup_episodes=2)
    before = [p.detach().clone() for p in agent.critic.features_extractor.parameters()]
    agent.learn(4 * 5)
    after = agent.critic.features_extractor.parameters()
    assert not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
