"""The weights a pruned network is rewound to before it is trained further."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from experiments.progress import TrainingProgress
from experiments.settings import Settings
from networks.checkpoints import load_checkpoint
from networks.data import DataSplits
from networks.pretrained import pretrain
from networks.training import TrainingRecipe


def rewound_network(
    network: nn.Module,
    plain: Mapping[str, Any],
    recipe: TrainingRecipe,
    data: DataSplits,
    settings: Settings,
) -> nn.Module | None:
    """The network as it was early in its training, whose weights `fine_tune.rewind_to` asks for.

    Frankle et al. 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis
    (https://arxiv.org/abs/1912.05671): what is pruned is chosen in the trained network, and what
    is left is trained again from the weights of an early epoch; epoch 0, the initial weights, is
    the lottery ticket of Frankle and Carbin 2019. A network that was trained here by `pretrain` can
    be rewound to any epoch: its training is repeated up to there, once, and kept in the cache.

    Args:
        network: the trained network; left unchanged.
        plain: the config as plain data.
        recipe: how the network was trained.
        data: its data.
        settings: the root keys.

    Returns:
        Another network with the early weights and statistics, or None when nothing is rewound.

    Raises:
        ValueError: there are no such weights, or nothing trains after the rewinding.
    """
    wanted = plain["fine_tune"].get("rewind_to")
    if wanted is None:
        return None
    if plain["fine_tune"]["epochs"] == 0:
        raise ValueError(
            "fine_tune.rewind_to leaves untrained weights without fine-tuning: set "
            "fine_tune.epochs to 1 or more, or fine_tune.rewind_to=null."
        )
    early = copy.deepcopy(network)
    if isinstance(wanted, str):
        load_checkpoint(early, wanted)
        return early
    if type(wanted) is not int or wanted < 0:
        raise ValueError(
            "fine_tune.rewind_to must be null, an epoch of pretrain (0 = the initial weights) or "
            f"a checkpoint file, got {wanted!r}."
        )
    if plain["network"].get("checkpoint") is not None:
        raise ValueError(
            f"There are no weights of epoch {wanted}: the network comes from a checkpoint and was "
            "not trained here. Set fine_tune.rewind_to to the file of an early checkpoint, or "
            "network.checkpoint=null and a pretrain recipe."
        )
    if wanted >= recipe.epochs:
        raise ValueError(
            f"fine_tune.rewind_to={wanted} is not before the end of the training: pretrain has "
            f"{recipe.epochs} epochs."
        )
    progress = TrainingProgress("training up to the rewound epoch", enabled=settings.show_progress)
    pretrain(
        early, data.search.train, recipe, settings.cache_dir, progress=progress, stop_after=wanted
    )
    return early
