"""The three rewards of AMC (https://arxiv.org/abs/1802.03494, section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from envs.rewards import Transition

LOG_MOST = 50.0
"""Above the log of every count of MACs or parameters, e^50 = 5e21: what bounds the rewards."""


@dataclass(frozen=True)
class AmcErrorReward:
    """R_err = -error, with error = 1 - accuracy.

    It pays nothing for compression: a budget has to see to that.
    """

    name = "amc_error"
    bounds = (-1.0, 0.0)
    pays_for_compression = False
    term_names = ("error",)

    def __call__(self, transition: Transition) -> dict[str, float]:
        """The term `error` in [-1, 0]."""
        return {"error": -_error(transition)}


@dataclass(frozen=True)
class AmcMacsReward:
    """R_FLOPs = -error * log(MACs), natural logarithm, MACs of dense hardware.

    It pays little for compression, since the logarithm of MACs changes little, and nothing when
    there is no error.
    """

    name = "amc_macs"
    bounds = (-LOG_MOST, 0.0)
    pays_for_compression = True
    term_names = ("error_log_macs",)

    def __call__(self, transition: Transition) -> dict[str, float]:
        """The term `error_log_macs`, at most 0."""
        return {"error_log_macs": -_error(transition) * math.log(max(transition.macs, 1))}


@dataclass(frozen=True)
class AmcParamsReward:
    """R_Param = -error * log(parameters), natural logarithm."""

    name = "amc_params"
    bounds = (-LOG_MOST, 0.0)
    pays_for_compression = True
    term_names = ("error_log_params",)

    def __call__(self, transition: Transition) -> dict[str, float]:
        """The term `error_log_params`, at most 0."""
        return {"error_log_params": -_error(transition) * math.log(max(transition.params, 1))}


def _error(transition: Transition) -> float:
    assert transition.evaluation is not None, "a reward needs an evaluation"
    return 1.0 - transition.evaluation.accuracy
