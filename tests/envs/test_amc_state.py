"""AMC's state where every feature differs: columns by hand, and what holds at every step."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

import envs  # noqa: F401  (registers the environments)
from envs.budgets import Unlimited, Wall
from envs.observations import LAYER_FEATURES
from envs.rewards import AlphaReward
from graphs.tracing import trace_network
from networks.data import SampleSet, SearchSplits
from networks.mobilenet import mobilenet_v1
from patterns.library import PatternLibrary
from pruning.task import PruningTask

STATIC = ("t", "n", "c", "h", "w", "stride", "k")
SHARES = ("reduced", "macs", "rest")
FREE = {"budget": Unlimited(), "reward": AlphaReward(0.5)}


class Oblong(nn.Module):
    """Sides, strides and kernels that are all different, on images of 24x16."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.second = nn.Conv2d(8, 16, (3, 1), stride=(4, 1), padding=(1, 0))
        self.third = nn.Conv2d(16, 4, 1)
        self.hidden = nn.Linear(4 * 3 * 8, 24)
        self.classifier = nn.Linear(24, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x))
        x = torch.relu(self.third(x)).flatten(1)
        return self.classifier(torch.relu(self.hidden(x)))


MACS = {
    "first": 12 * 8 * 25 * 3 * 8,
    "second": 3 * 8 * 3 * 8 * 16,
    "third": 3 * 8 * 16 * 4,
    "hidden": 4 * 3 * 8 * 24,
    "classifier": 24 * 5,
}


def unmeasured(network, inputs, **parts):
    """An environment whose network is never evaluated, for episodes that are not played out."""
    samples = SampleSet(inputs, torch.zeros(len(inputs), dtype=torch.long))
    library = PatternLibrary.from_specs([{"family": "channel", "ratio": 0.5}])
    graph = trace_network(network.eval(), inputs[:1])
    task = PruningTask(network, graph, SearchSplits(samples, samples, samples), library=library)
    return gymnasium.make(
        "AMC-v0", disable_env_checker=True, task=task, **{**FREE, **parts}
    ).unwrapped


def vectors(env, ratios=None):
    """The vectors at which every site is decided, (S, 11); ratios by group, 0 where none."""
    observation, _ = env.reset()
    found = [observation]
    for _ in env.task.sites[:-1]:
        found.append(env.step(env.encode_ratios(ratios or {}))[0])
    return np.asarray(found, dtype=np.float64)


def columns(rows, names):
    return rows[:, [LAYER_FEATURES.index(name) for name in names]]


@pytest.fixture(scope="module")
def oblong():
    torch.manual_seed(0)
    return unmeasured(Oblong(), torch.rand(2, 3, 24, 16))


def test_there_are_the_eleven_features_of_the_paper_in_its_order(oblong):
    assert (*STATIC, "macs", "reduced", "rest", "a") == LAYER_FEATURES
    assert oblong.observation_space.shape == (11,)
    assert len(oblong.task.sites) == 4  # the classifier is no site


def test_the_static_features_are_min_max_scaled_over_the_sites(oblong):
    raw = np.array(
        # t, n, c, h, w, stride, k; fully connected layers have 1x1 inputs, stride and kernel 1
        [
            [0, 8, 3, 24, 16, 2, 5],
            [1, 16, 8, 12, 8, 2, 3**0.5],  # geometric means of 4, 1 and of 3, 1
            [2, 4, 16, 3, 8, 1, 1],
            [3, 24, 96, 1, 1, 1, 1],
        ]
    )
    scaled = (raw - raw.min(0)) / (raw.max(0) - raw.min(0))
    rows = columns(vectors(oblong), STATIC)
    np.testing.assert_allclose(rows, scaled, atol=1e-6)
    assert rows.min(0).tolist() == [0.0] * 7
    assert rows.max(0).tolist() == [1.0] * 7


def test_with_nothing_removed_only_the_share_of_the_site_moves(oblong):
    total = sum(MACS.values())
    rows = vectors(oblong)
    shares = [MACS[name] / total for name in ("first", "second", "third", "hidden")]
    np.testing.assert_allclose(columns(rows, ["macs"])[:, 0], shares, atol=1e-6)
    assert columns(rows, ["reduced", "a"]).max() == 0.0
    np.testing.assert_allclose(columns(rows, SHARES).sum(1), 1.0, atol=1e-6)


def test_decisions_change_the_following_sites_by_their_inputs(oblong):
    total = sum(MACS.values())
    rows = vectors(oblong, {"first": 0.5, "second": 0.25, "third": 0.5})
    left = {
        1: MACS | {"first": 0.5 * MACS["first"], "second": 0.5 * MACS["second"]},
        2: MACS
        | {
            "first": 0.5 * MACS["first"],
            "second": 0.5 * 0.75 * MACS["second"],
            "third": 0.75 * MACS["third"],
        },
        3: MACS
        | {
            "first": 0.5 * MACS["first"],
            "second": 0.5 * 0.75 * MACS["second"],
            "third": 0.75 * 0.5 * MACS["third"],
            "hidden": 0.5 * MACS["hidden"],
        },
    }
    for row, macs, name in zip(rows[1:], left.values(), ("second", "third", "hidden"), strict=True):
        expected = {"macs": macs[name] / total, "reduced": 1 - sum(macs.values()) / total}
        found = columns(row[None], expected)[0]
        np.testing.assert_allclose(found, list(expected.values()), atol=1e-6)
    np.testing.assert_allclose(columns(rows, ["a"])[:, 0], [0.0, 0.5, 0.25, 0.5], atol=1e-6)


def test_static_features_do_not_depend_on_decisions(oblong):
    before = columns(vectors(oblong), STATIC)
    after = columns(vectors(oblong, {"first": 0.75, "second": 0.5, "third": 0.5}), STATIC)
    np.testing.assert_array_equal(before, after)


def test_an_episode_leaves_nothing_behind(oblong):
    first = vectors(oblong)
    vectors(oblong, {"first": 0.75, "second": 0.5})
    np.testing.assert_array_equal(vectors(oblong), first)


def test_a_depthwise_convolution_is_counted_with_the_pointwise_one_before_it():
    torch.manual_seed(0)
    env = unmeasured(mobilenet_v1(10, width=0.125), torch.rand(1, 3, 64, 64))
    widths = [4, 8, 16, 16, 32, 32, 64, 64, 64, 64, 64, 64, 128, 128]
    sides = [32, 16, 16, 8, 8, 4, 4, 4, 4, 4, 4, 2, 2]  # outputs of the blocks
    pointwise = [
        side**2 * before * after
        for side, before, after in zip(sides, widths[:-1], widths[1:], strict=True)
    ]
    produced = [32**2 * 9 * 3 * 4, *pointwise]
    depthwise = [side**2 * 9 * width for side, width in zip(sides, widths[:-1], strict=True)]
    by_site = np.add(produced, [*depthwise, 0])
    total = by_site.sum() + 128 * 10
    assert env.task.cost.base_macs == total
    np.testing.assert_allclose(columns(vectors(env), ["macs"])[:, 0], by_site / total, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_behind_a_wall_the_state_shows_what_was_executed(make_env, run_episode, seed):
    """What the agent asked for is not in the state: the wall and the rounding come first."""
    env = make_env("AMC-v0", budget=Wall(0.4))
    rng = np.random.default_rng(seed)
    # Little is asked for, so that the wall has to act.
    asked = [rng.uniform(-1.0, -0.5, 1).astype(np.float32) for _ in env.task.sites]
    observations, _, infos = run_episode(env, asked)
    rows = np.asarray(observations, dtype=np.float64)
    record = infos[-1]["record"]
    executed = [ratio for _, ratio in record.executed]
    assert record.clamps > 0
    np.testing.assert_allclose(columns(rows, ["a"])[:, 0], [0.0, *executed], atol=1e-6)
    reduced = columns(rows, ["reduced"])[:, 0]
    np.testing.assert_allclose(reduced, [1 - i["relative_macs"] for i in infos], atol=1e-6)
    assert (np.diff(reduced) >= -1e-7).all()
    assert reduced[-1] >= 0.6 - 1e-6
    np.testing.assert_allclose(columns(rows, SHARES).sum(1), 1.0, atol=1e-6)
    assert rows.min() >= 0.0
    assert rows.max() <= 1.0
