"""Where a search for one action begins: at the uniform plan, or where local errors are small."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from cmaes import CMA
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from agents.baselines import uniform_action

NUM_PREVIEWS = 4000
"""Plans that are looked at, none of them measured."""

POPULATION_SIZE = 20
SIGMA = 0.3
"""First standard deviation; actions lie in [-1, 1]."""


class LocalErrorSum:
    """Summed local errors of plans; see `pruning.local_error`.

    Args:
        env: holds environments with `local_errors`, see `envs.pruning_env.PruningEnv`.
        power: of each error in the sum, above 0.
    """

    def __init__(self, env: VecEnv, power: float = 1.0) -> None:
        self._env = env
        self._power = power

    def __call__(self, plans: np.ndarray) -> np.ndarray:
        """From kept fractions (batch, S) to (batch,)."""
        (errors,) = self._env.env_method("local_errors", plans, indices=[0])
        return (errors**self._power).sum(1)


def uniform_start(env: VecEnv, seed: int) -> np.ndarray:
    """The action of the uniform plan, shape (S,)."""
    return uniform_action(env, np.random.default_rng(seed))


def local_error_start(env: VecEnv, seed: int) -> np.ndarray:
    """The action whose plan has the least sum of squared local errors that CMA-ES finds.

    Squared, since the error of a group saturates when nothing is left of it, and the network does
    not survive that: the plain sum gives up one group for the others, and its best plans are worse
    than the uniform one (ResNet-20 at half of the MACs).

    Needs calibration images and a second or two, and no evaluation. Plans are compared in fractions
    of channels, and at the end in whole channels, where the uniform plan may still win.

    Args:
        env: holds environments with `preview` and `local_errors`, whose episodes are one step.
        seed: of the search.

    Returns:
        float32 of shape (S,) in the action space.

    Raises:
        ValueError: plans cannot be previewed, or local errors cannot be measured.
    """
    space = env.action_space
    assert isinstance(space, spaces.Box), "checked by the agent"
    bounds = np.stack([space.low, space.high], axis=1).astype(np.float64)
    error = LocalErrorSum(env, power=2.0)

    def errors(actions: np.ndarray, *, rounded: bool) -> np.ndarray:
        (plans,) = env.env_method("preview", actions, rounded=rounded, indices=[0])
        return error(plans)

    uniform = np.clip(uniform_start(env, seed), bounds[:, 0], bounds[:, 1]).astype(np.float64)
    optimizer = CMA(
        mean=uniform, sigma=SIGMA, bounds=bounds, population_size=POPULATION_SIZE, seed=seed
    )
    best, least = uniform, float(errors(uniform[None], rounded=False)[0])
    for _ in range(NUM_PREVIEWS // POPULATION_SIZE):
        asked = np.stack([optimizer.ask() for _ in range(POPULATION_SIZE)])
        values = errors(asked, rounded=False)
        optimizer.tell([(action, float(v)) for action, v in zip(asked, values, strict=True)])
        if values.min() < least:
            best, least = asked[values.argmin()], float(values.min())
        if optimizer.should_stop():
            break
    found = np.stack([uniform, best]).astype(np.float32)
    return found[np.argmin(errors(found, rounded=True))]


STARTS: Mapping[str, Callable[[VecEnv, int], np.ndarray]] = {
    "uniform": uniform_start,
    "local_error": local_error_start,
}
"""How the first action follows from the environment and a seed."""


def check_start(start: str) -> None:
    """Refuse a name that is none of STARTS.

    Raises:
        ValueError: there is no such start.
    """
    if start not in STARTS:
        raise ValueError(
            f"A search starts at one of {', '.join(STARTS)}, got {start!r}. Change agent.start."
        )
