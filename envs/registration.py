"""The registered environments, and the task they use when none is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from envs.pruning_env import PruningEnv
    from pruning.task import PruningTask

ENTRY_POINTS = {
    "Allocation-v0": "envs.registration:make_allocation",
    "AMC-v0": "envs.registration:make_amc",
    "AutoSculpt-v0": "envs.registration:make_autosculpt",
}
"""Environment ids and what builds them."""


def register_envs() -> None:
    """Register the environments with Gymnasium; ids that are there already stay as they are."""
    for env_id, entry_point in ENTRY_POINTS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(id=env_id, entry_point=entry_point)


def make_amc(task: PruningTask | None = None, **parts: Any) -> PruningEnv:
    """AMC's decision process (https://arxiv.org/abs/1802.03494).

    One layer after the other, seen by its 11 features, is given a pruning ratio; a wall keeps the
    MACs within half of the unpruned network's; the reward is minus the error.

    Args:
        task: what is pruned; `default_task()` when left out.
        parts: `observation`, `action`, `episode`, `budget`, `reward`, `sinks` and `render_mode` of
            `PruningEnv`, where they shall differ.
    """
    # Registering must stay cheap: torch and the parts are loaded when an environment is made.
    from envs.actions import RatioAction
    from envs.amc_rewards import AmcErrorReward
    from envs.budgets import Wall
    from envs.episodes import Layerwise
    from envs.observations import LayerObservation
    from envs.pruning_env import PruningEnv

    defaults: dict[str, Any] = {
        "observation": LayerObservation(),
        "action": RatioAction(),
        "episode": Layerwise(),
        "budget": Wall(),
        "reward": AmcErrorReward(),
    }
    return PruningEnv(default_task() if task is None else task, **{**defaults, **parts})


def make_autosculpt(task: PruningTask | None = None, **parts: Any) -> PruningEnv:
    """AutoSculpt's decision process (https://arxiv.org/abs/2412.18091), corrected.

    The whole network, seen as a graph, gets a pattern at every site; the episode ends inside a band
    around the target; the reward weighs compression against accuracy. The paper was withdrawn; what
    its released code does differently is in the documentation of the parts.

    Args:
        task: what is pruned; `default_task()` when left out.
        parts: `observation`, `action`, `episode`, `budget`, `reward`, `sinks` and `render_mode` of
            `PruningEnv`, where they shall differ.
    """
    from envs.actions import PatternAction
    from envs.budgets import Band
    from envs.episodes import Whole
    from envs.observations import GraphObservation
    from envs.pruning_env import PruningEnv
    from envs.rewards import AlphaReward

    defaults: dict[str, Any] = {
        "observation": GraphObservation(),
        "action": PatternAction(),
        "episode": Whole(),
        "budget": Band(),
        "reward": AlphaReward(),
    }
    return PruningEnv(default_task() if task is None else task, **{**defaults, **parts})


def make_allocation(task: PruningTask | None = None, **parts: Any) -> PruningEnv:
    """One decision shares out the whole budget over all groups.

    An episode is one step: the action says of every group how much more or less than in the uniform
    plan it keeps, the plan is scaled to the budget exactly, and the reward is minus the
    cross-entropy of the pruned network.

    Args:
        task: what is pruned; `default_task()` when left out.
        parts: `observation`, `action`, `episode`, `budget`, `reward`, `sinks` and `render_mode` of
            `PruningEnv`, where they shall differ.
    """
    from envs.allocation import AllocationAction
    from envs.budgets import Project
    from envs.episodes import Whole
    from envs.observations import GraphObservation
    from envs.pruning_env import PruningEnv
    from envs.rewards import LogLikelihoodReward

    defaults: dict[str, Any] = {
        "observation": GraphObservation(),
        "action": AllocationAction(),
        "episode": Whole(max_steps=1),
        "budget": Project(),
        "reward": LogLikelihoodReward(),
    }
    return PruningEnv(default_task() if task is None else task, **{**defaults, **parts})


def default_task() -> PruningTask:
    """The digits network, trained once and cached, with channel patterns in steps of an eighth."""
    from graphs.tracing import trace_network
    from networks.data import RandomCropFlip
    from networks.digits import digits_resnet, digits_splits
    from networks.pretrained import pretrain
    from networks.training import TrainingRecipe
    from patterns.library import PatternLibrary
    from pruning.task import PruningTask

    library = PatternLibrary.from_specs(
        [{"family": "channel", "ratio": eighths / 8} for eighths in range(1, 8)]
    )
    splits = digits_splits()
    network = digits_resnet()
    # As in conf/pretrain/digits.yaml, so that both find the same weights in the cache.
    recipe = TrainingRecipe(epochs=30, batch_size=64, augment=RandomCropFlip(padding=1, flip=False))
    pretrain(network, splits.search.train, recipe)
    graph = trace_network(network, splits.search.reward.inputs[:1])
    return PruningTask(network, graph, splits.search, library=library)
