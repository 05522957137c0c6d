"""Replay buffers for short searches: every transition carries the outcome of its episode."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from torch import Tensor

from agents.ranking import rank_utilities


class _OutcomesMixin:
    """Remembers the outcome of every transition, and may pay its rank instead.

    With `rank_power` all stored rewards are written anew whenever an episode ends, as the
    utilities of their outcomes among all outcomes in the buffer (`agents.ranking`). So a plan that
    was good when it was found counts for less once better ones are known, no scale or baseline
    goes stale, and one ruined network does not drown the differences between the others.

    Args:
        rank_power: exponent of the rank, above 0; None pays the outcomes themselves.
    """

    rewards: np.ndarray
    dones: np.ndarray
    timeouts: np.ndarray
    pos: int
    full: bool
    buffer_size: int

    def __init__(self, *args: Any, rank_power: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rank_power = rank_power
        self._outcomes = np.full_like(self.rewards, np.nan)  # nan: not known yet

    def relabel(self) -> None:
        """Write all rewards anew whose outcomes are known."""
        if self.rank_power is None:
            return
        is_known = ~np.isnan(self._outcomes)
        known = self._outcomes[is_known]
        self.rewards[is_known] = rank_utilities(known, known, self.rank_power)

    def sample_several(self, count: int, batch_size: int, env: Any = None) -> list[Any]:
        """What `count` calls of `sample` would give, gathered at once.

        Args:
            count: number of batches.
            batch_size: transitions per batch.
            env: SB3's `VecNormalize`, if there is one.
        """
        end = self.buffer_size if self.full else self.pos
        drawn = [np.random.randint(0, end, size=batch_size) for _ in range(count)]
        together = self._get_samples(np.concatenate(drawn), env)  # type: ignore[attr-defined]
        parts = [_split(field, batch_size) for field in together if field is not None]
        return [type(together)(*fields) for fields in zip(*parts, strict=True)]


def _split(field: Any, batch_size: int) -> list[Any]:
    """The batches of one field of SB3's samples, a tensor or a dict of them."""
    if isinstance(field, Tensor):
        return list(field.split(batch_size))
    parts = {key: value.split(batch_size) for key, value in field.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


class _ReturnsMixin(_OutcomesMixin):
    """Turns the rewards of an episode into returns as soon as it ends.

    A search of a few hundred episodes has no time to bootstrap a reward that comes with the last
    step through all steps before it. Like AMC, which gives the final reward to every transition of
    the episode (released code of https://arxiv.org/abs/1802.03494), each transition gets what
    followed it; unlike AMC's its target ends there (`dones` is 1), so the critic learns the return
    itself and not the return times the steps left.
    """

    def __init__(self, *args: Any, gamma: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gamma = gamma
        self._episode: list[int] = []

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: Any,
        reward: Any,
        done: Any,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition of one environment."""
        self._episode.append(self.pos)
        self._outcomes[self.pos] = np.nan
        super().add(obs, next_obs, action, reward, done, infos)  # type: ignore[misc]
        if done[0]:
            following = 0.0
            for position in reversed(self._episode[-self.buffer_size :]):
                following = float(self.rewards[position, 0]) + self.gamma * following
                self.rewards[position] = self._outcomes[position] = following
                self.dones[position] = 1.0
                self.timeouts[position] = 0.0
            self._episode = []
            self.relabel()


class ReturnReplayBuffer(_ReturnsMixin, ReplayBuffer):
    """Replay buffer of returns, for vector observations and one environment."""


class ReturnDictReplayBuffer(_ReturnsMixin, DictReplayBuffer):
    """Replay buffer of returns, for Dict observations and one environment."""


class _FinalRewardMixin(_OutcomesMixin):
    """Holds an episode back until it ends, then stores every transition with its last reward.

    Nothing of an episode can be sampled before its reward is known. The last transition is
    terminal, also when a time limit ended the episode.

    Args:
        replay_first_step: whether first transitions are stored. The sampler of the released code
            never returns them.
    """

    def __init__(self, *args: Any, replay_first_step: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.replay_first_step = replay_first_step
        self._episode: list[tuple[Any, Any, Any]] = []

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: Any,
        reward: Any,
        done: Any,
        infos: list[dict[str, Any]],
    ) -> None:
        """Take one transition of one environment."""
        self._episode.append(copy.deepcopy((obs, next_obs, action)))
        if not done[0]:
            return
        last = len(self._episode) - 1
        for index, transition in enumerate(self._episode):
            if index > 0 or last == 0 or self.replay_first_step:
                is_last = np.array([index == last])
                self._outcomes[self.pos] = reward
                super().add(*transition, reward, is_last, [{}])  # type: ignore[misc]
        self._episode = []
        self.relabel()

    def drop_unfinished(self) -> None:
        """Forget the episode that has not ended: its reward will never be known."""
        self._episode = []


class FinalRewardReplayBuffer(_FinalRewardMixin, ReplayBuffer):
    """Replay buffer of AMC, for vector observations and one environment."""


class FinalRewardDictReplayBuffer(_FinalRewardMixin, DictReplayBuffer):
    """Replay buffer of AMC, for Dict observations and one environment."""
