"""Which parts of an environment make no sense together."""

from __future__ import annotations

from envs.actions import Action
from envs.band_reward import BandReward
from envs.budgets import Budget
from envs.episodes import Episode
from envs.rewards import Reward
from envs.shaping import Shaping

REFUSED = {
    ("env/episode", "whole", "budget", "wall"): (
        "a wall bounds one decision at a time. Use budget=project or budget=band"
    ),
}
"""Pairs of parts that make no sense together, and what to do instead."""


def check_parts(
    action: Action,
    episode: Episode,
    budget: Budget,
    reward: Reward,
    shaping: Shaping | None = None,
) -> None:
    """Refuse parts that make no sense together.

    Args:
        action: what the agent may do.
        episode: how the sites are walked through.
        budget: how many MACs may be left.
        reward: what an outcome is worth.
        shaping: what steps before the last are paid.

    Raises:
        ValueError: the message names both keys.
    """
    parts = {
        "env/action": action.name,
        "env/episode": episode.name,
        "budget": budget.name,
    }
    for (first, one, second, other), reason in REFUSED.items():
        if parts[first] == one and parts[second] == other:
            raise ValueError(f"{first}={one} and {second}={other} do not go together: {reason}.")
    if shaping is not None and not episode.is_sequential:
        raise ValueError(
            f"env/shaping={shaping.name} and env/episode={episode.name} do not go together: it "
            f"pays for one decided site after the other. Set env/episode=layerwise, or "
            f"env/shaping=none."
        )
    if isinstance(reward, BandReward) and not budget.evaluate_outside:
        raise ValueError(
            "reward=band and budget.evaluate_outside=false do not go together: it pays by the "
            "accuracy outside the band too. Set budget.evaluate_outside=true."
        )
    if not reward.pays_for_compression and budget.name == "none":
        raise ValueError(
            f"reward={reward.name} and budget=none do not go together: neither asks for a smaller "
            f"network, so the best plan would be to prune nothing. Set a budget, or "
            f"reward=alpha."
        )
