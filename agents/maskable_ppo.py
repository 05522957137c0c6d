"""MaskablePPO of sb3-contrib for short searches: it learns from ranks, as PPO does here."""

from __future__ import annotations

import sb3_contrib
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer

from agents.on_policy import RankedOutcomes, RanksMixin


class RankedMaskableRolloutBuffer(RanksMixin, MaskableRolloutBuffer):
    """Rollout buffer of ranked outcomes with action masks, for vector observations."""


class RankedMaskableDictRolloutBuffer(RanksMixin, MaskableDictRolloutBuffer):
    """Rollout buffer of ranked outcomes with action masks, for Dict observations."""


class MaskablePPO(RankedOutcomes, sb3_contrib.MaskablePPO):
    """sb3-contrib's MaskablePPO (https://arxiv.org/abs/2006.14171) on ranked outcomes.

    The masks are those of `PruningEnv.action_masks`. Unlike `PPO` with `GraphPolicy` it takes
    pattern actions only, and its actor reads the embeddings of all sites as one vector.
    """

    def _ranked_buffer_class(self) -> type[RanksMixin]:
        is_dict = isinstance(self.observation_space, spaces.Dict)
        return RankedMaskableDictRolloutBuffer if is_dict else RankedMaskableRolloutBuffer
