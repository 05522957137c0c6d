"""Models of what a plan is worth, fitted to the plans that were measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel


class RewardModel(Protocol):
    """Predicts rewards of plans that were not measured."""

    def fit(self, plans: np.ndarray, rewards: np.ndarray) -> None:
        """Learn from every measurement so far.

        Args:
            plans: kept fraction of every site in (0, 1], shape (n, S).
            rewards: what was paid for them, shape (n,).
        """

    def predict(self, plans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected rewards and their standard deviations, each (batch,), on one common scale."""


class GaussianProcess:
    """A linear trend plus a smooth deviation, over the logarithms of the kept fractions.

    Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), with scikit-learn's
    implementation. One length scale serves all sites, in units of how far the plans differ there:
    with one for each, the few hundred measurements of a search would fit it to noise.

    Args:
        floor: rewards further below the median than so many interquartile ranges count as if they
            were there; what a ruined network loses says nothing about the good ones.
    """

    def __init__(self, floor: float = 2.0) -> None:
        if not floor > 0.0:
            raise ValueError(
                f"floor={floor}: wanted is a number above 0. Change agent.model.floor."
            )
        self.floor = floor
        self._process: GaussianProcessRegressor | None = None
        self._centre = self._scale = np.zeros(0)

    def fit(self, plans: np.ndarray, rewards: np.ndarray) -> None:
        """Fit trend, length scale and noise by the marginal likelihood."""
        inputs = np.log(plans)
        self._centre, self._scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
        targets = floored(rewards, self.floor)
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


class PriorModel:
    """A linear trend in something that is known of every plan, and a model of the deviation.

    Args:
        model: learns what the trend leaves.
        penalty: from plans (batch, S) to (batch,): known before anything is measured; what it
            penalises is worth less.
        weight: how much of the fitted trend is believed, in [0, 1]; the model learns the rest. With
            1 the few first measurements, which all have small penalties, decide too much.
        floor: for the trend, see `GaussianProcess`.
    """

    def __init__(
        self,
        model: RewardModel,
        penalty: Callable[[np.ndarray], np.ndarray],
        weight: float = 0.5,
        floor: float = 2.0,
    ) -> None:
        self._model = model
        self._penalty = penalty
        self._weight = weight
        self._floor = floor
        self._slope: float | None = None
        self._intercept = 0.0

    def fit(self, plans: np.ndarray, rewards: np.ndarray) -> None:
        """Fit the trend by least squares, never rising, and the model to the rest."""
        penalties = self._penalty(plans)
        targets = floored(rewards, self._floor)
        spread = penalties - penalties.mean()
        square = float(spread @ spread)
        fitted = float(spread @ targets) / square if square > 0.0 else 0.0
        self._slope = self._weight * min(0.0, fitted)
        self._intercept = float(targets.mean() - self._slope * penalties.mean())
        self._model.fit(plans, targets - self._trend(penalties))

    def predict(self, plans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Trend and model together; before the first fit minus the penalty, without deviation."""
        penalties = self._penalty(plans)
        if self._slope is None:
            return -penalties, np.zeros(len(plans))
        mean, deviation = self._model.predict(plans)
        return self._trend(penalties) + mean, deviation

    def _trend(self, penalties: np.ndarray) -> np.ndarray:
        assert self._slope is not None, "fit comes first"
        return self._intercept + self._slope * penalties


def floored(rewards: np.ndarray, floor: float) -> np.ndarray:
    """Rewards, the lowest raised to `floor` interquartile ranges below the median."""
    low, middle, high = np.quantile(rewards, (0.25, 0.5, 0.75))
    return np.maximum(rewards, middle - floor * max(high - low, 1e-6))


def _first_kernel(num_sites: int) -> Any:
    """A linear trend, a smooth deviation from it, and noise."""
    smooth = ConstantKernel(1.0) * RBF(np.sqrt(num_sites), (0.5, 100.0))
    return smooth + ConstantKernel(0.1) * DotProduct(1.0) + WhiteKernel(0.1, (1e-3, 1.0))
