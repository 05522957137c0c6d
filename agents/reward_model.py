"""Models of what a plan is worth, fitted to the plans that were measured."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel


class RewardModel(Protocol):
    """Predicts rewards of plans that were not measured."""

    def bind(self, observation_space: spaces.Space, observation: Any) -> None:
        """Begin anew, for one network; called before the first `fit`.

        Args:
            observation_space: space of the observations.
            observation: that of the unpruned network.
        """

    def fit(self, plans: np.ndarray, rewards: np.ndarray) -> None:
        """Learn from every measurement so far.

        Args:
            plans: kept fraction of every site in (0, 1], shape (n, S).
            rewards: what was paid for them, shape (n,).
        """

    def predict(self, plans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected rewards and their standard deviations, each (batch,), on one common scale."""


def lowest_reward(rewards: np.ndarray, floor: float) -> float:
    """What ruined networks count as: by how much they are ruined says nothing about good ones.

    Args:
        rewards: shape (n,).
        floor: interquartile ranges below the median at which the bound lies, above 0.
    """
    low, middle, high = np.quantile(rewards, (0.25, 0.5, 0.75))
    return float(middle - floor * max(high - low, 1e-6))


class GaussianProcess:
    """A linear trend plus a smooth deviation, over the logarithms of the kept fractions.

    Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), with scikit-learn's
    implementation. One length scale serves all sites, in units of how far the plans differ there:
    with one for each, the few hundred measurements of a search would fit it to noise.

    Args:
        floor: see `lowest_reward`.
    """

    def __init__(self, floor: float = 2.0) -> None:
        if not floor > 0.0:
            raise ValueError(
                f"floor={floor}: wanted is a number above 0. Change agent.model.floor."
            )
        self.floor = floor
        self._process: GaussianProcessRegressor | None = None
        self._centre = self._scale = np.zeros(0)

    def bind(self, observation_space: spaces.Space, observation: Any) -> None:
        """Forget what was learned; no graph is read."""
        self._process = None

    def fit(self, plans: np.ndarray, rewards: np.ndarray) -> None:
        """Fit trend, length scale and noise by the marginal likelihood."""
        inputs = np.log(plans)
        self._centre, self._scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
        targets = np.maximum(rewards, lowest_reward(rewards, self.floor))
        kernel = (
            _first_kernel(plans.shape[1]) if self._process is None else self._process.kernel_
        )  # the last answer is a good first guess
        self._process = GaussianProcessRegressor(kernel, normalize_y=True)
        with warnings.catch_warnings():  # a length scale at its bound is an answer
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process.fit(self._standardised(inputs), targets)

    def predict(self, plans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the posterior."""
        assert self._process is not None, "fit comes first"
        mean, deviation = self._process.predict(self._standardised(np.log(plans)), return_std=True)
        return mean, deviation

    def _standardised(self, inputs: np.ndarray) -> np.ndarray:
        return (inputs - self._centre) / self._scale


def _first_kernel(num_sites: int) -> Any:
    """A linear trend, a smooth deviation from it, and noise."""
    smooth = ConstantKernel(1.0) * RBF(np.sqrt(num_sites), (0.5, 100.0))
    return smooth + ConstantKernel(0.1) * DotProduct(1.0) + WhiteKernel(0.1, (1e-3, 1.0))
