"""TPE: the tree-structured Parzen estimator of Optuna, with SB3's interface."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces

from agents.evolution import EvolutionAgent


class TPEStrategy:
    """TPE ("Algorithms for Hyper-Parameter Optimization", Bergstra et al. 2011), point by point.

    Works with Optuna 2.10, the newest that Hydra's Optuna sweeper 1.3 allows, and with later ones.

    Args:
        start: the first point, shape (D,).
        space: bounds of the points.
        num_random: points drawn uniformly before the estimator has its say, the first included.
        multivariate: whether the entries are drawn together instead of each by itself.
        seed: of the points.
    """

    def __init__(
        self,
        start: np.ndarray,
        space: spaces.Box,
        *,
        num_random: int,
        multivariate: bool,
        seed: int,
    ) -> None:
        optuna = import_optuna()
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._best, self._best_value = np.clip(start, self._low, self._high), -np.inf
        self._trial: Any = None
        self._point = self._best
        with _quiet():
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=num_random, multivariate=multivariate, seed=seed
            )
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
            first = {_name(index): float(value) for index, value in enumerate(self._best)}
            self._study.enqueue_trial(first)

    @property
    def mean(self) -> np.ndarray:
        """The best point so far, at first the start, shape (D,)."""
        return self._best.copy()

    def ask(self) -> np.ndarray:
        """The next point; the same until its value is told."""
        if self._trial is None:
            with _quiet():
                self._trial = self._study.ask()
                self._point = np.asarray(
                    [
                        self._trial.suggest_float(_name(index), float(low), float(high))
                        for index, (low, high) in enumerate(zip(self._low, self._high, strict=True))
                    ]
                )
        return self._point

    def tell(self, value: float) -> None:
        """The value of the point that was asked last; higher is better."""
        point = self.ask()
        if value > self._best_value:
            self._best, self._best_value = point, value
        with _quiet():
            self._study.tell(self._trial, value)
        self._trial = None


class TPEAgent(EvolutionAgent):
    """TPE of Optuna.

    Args:
        env: an environment whose episodes are one step with a Box action of one entry per group.
        num_random: plans before the estimator has its say, at least 1: the start, then uniform
            draws.
        multivariate: whether the entries of a plan are drawn together.
        start: see `EvolutionAgent`.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: same seed, same episodes; None draws one.
        verbose: not used.

    Raises:
        ValueError: Optuna is not installed, a setting is out of range, or the environment has other
            episodes or actions.
    """

    def __init__(
        self,
        env: Any,
        *,
        num_random: int = 10,
        multivariate: bool = True,
        start: str = "uniform",
        policy: Any = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        if num_random < 1:
            raise ValueError(
                f"num_random={num_random}: wanted is 1 or more. Change agent.num_random."
            )
        import_optuna()
        self.num_random, self.multivariate = num_random, multivariate
        super().__init__(env, sigma=1.0, seed=seed, start=start)

    def _make_strategy(self, start: np.ndarray, space: spaces.Box) -> TPEStrategy:
        return TPEStrategy(
            start,
            space,
            num_random=self.num_random,
            multivariate=self.multivariate,
            seed=self._strategy_seed,
        )

    def _settings(self) -> dict[str, Any]:
        return {
            "num_random": self.num_random,
            "multivariate": self.multivariate,
            "start": self.start,
        }


def import_optuna() -> Any:
    """The package optuna.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ValueError(
            "agent=tpe needs the package optuna, which is not installed. "
            'Run: pip install -e ".[hpo]"'
        ) from error
    return optuna


def _name(index: int) -> str:
    return f"x{index}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna logs every trial, and 2.10 calls half of what is used here experimental."""
    logging = import_optuna().logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
