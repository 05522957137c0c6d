"""The reward of AutoSculpt's released code, which is not that of its paper."""

from __future__ import annotations

from dataclasses import dataclass

from envs.rewards import Transition


@dataclass(frozen=True)
class BandReward:
    """What the released code of AutoSculpt pays (https://github.com/jlx15588/AutoSculpt).

        inside the band:                    100 * accuracy, and the episode ends
        outside:                            accuracy - 1, and the episode goes on
        outside at the last step allowed:   -100

    There is no alpha in it, although the abstract of the paper names one (see
    `envs.rewards.AlphaReward`). Networks outside the band have to be measured, and those
    evaluations are counted: budget.evaluate_outside=true. It takes the place of `BandPenalty`. With
    a budget that cannot be missed it is 100 * accuracy.
    """

    name = "band"
    bounds = (-100.0, 100.0)
    pays_for_compression = False
    term_names = ("band",)

    def __call__(self, transition: Transition) -> dict[str, float]:
        """The term `band`."""
        assert transition.evaluation is not None, "a reward needs an evaluation"
        accuracy = transition.evaluation.accuracy
        if transition.budget_distance == 0.0:
            return {"band": 100.0 * accuracy}
        return {"band": -100.0 if transition.finished else accuracy - 1.0}
