"""Networks trained once and kept in a cache folder, so that every run prunes the same weights."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn

from networks.checkpoints import load_checkpoint, save_checkpoint
from networks.data import SampleSet
from networks.fingerprints import describe_setting, hash_code, hash_tensor
from networks.training import Progress, TrainingRecipe, train

_FORMAT = 1


@dataclass(frozen=True)
class Pretrained:
    """Where the weights of a pretrained network come from.

    Attributes:
        path: file in the cache.
        cached: whether the weights were read from it; False when they were trained just now.
    """

    path: Path
    cached: bool


def default_cache_dir() -> Path:
    """Return the user's cache folder of Topiary, $XDG_CACHE_HOME/topiary or ~/.cache/topiary."""
    # The XDG specification asks to ignore an empty or relative value.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "topiary"


def pretrain(
    network: nn.Module,
    samples: SampleSet,
    recipe: TrainingRecipe,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    stop_after: int | None = None,
) -> Pretrained:
    """Give a network the weights that the recipe leads to; train only where no cache has them.

    The weights the network comes with do not matter: modules that can draw their weights anew do so
    from the recipe's seed. So runs with different seeds prune the same network. The cache entry is
    found by architecture, data and recipe together. A training that was killed goes on after a
    whole epoch, with the same result.

    Args:
        network: gets the weights in place, and is left in eval mode.
        samples: the train split.
        recipe: how to train.
        cache_dir: folder of the cache, or None for `default_cache_dir`.
        progress: called after every training step.
        stop_after: give it the weights after that many epochs of the recipe instead, at least 0;
            0 for the initial weights.

    Returns:
        Path of the weights, and whether they were there already.

    Raises:
        ValueError: when the recipe has no epochs, or training fails.
    """
    if recipe.epochs < 1:
        raise ValueError(
            f"{type(network).__name__} has no weights: set network.checkpoint to a file, or train "
            f"it with pretrain=digits or pretrain=cifar10 (pretrain.epochs is {recipe.epochs})."
        )
    _draw_weights(network, recipe.seed)
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    key = _cache_key(network, samples, recipe)
    part = "" if stop_after is None else f"-epoch{stop_after}"
    path = folder / f"{type(network).__name__.lower()}-{key}{part}.pt"
    if path.is_file():
        try:
            load_checkpoint(network, path)
        except ValueError as error:
            reason = error.__cause__ or error
            warnings.warn(
                f"The cached weights {path} are unusable, so they are trained again: {reason}",
                stacklevel=2,
            )
        else:
            network.eval()
            return Pretrained(path, cached=True)
    options = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    unfinished = path.with_name(f"{path.stem}_unfinished.safetensors")
    train(
        network, samples, progress=progress, checkpoint=unfinished, stop_after=stop_after, **options
    )
    try:
        save_checkpoint(network, path)
        unfinished.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(
            f"The pretrained network was not kept, so the next run trains again: {error}",
            stacklevel=2,
        )
    return Pretrained(path, cached=False)


def _draw_weights(network: nn.Module, seed: int) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        # Children first: a network may refine what its layers draw by default.
        for module in reversed(list(network.modules())):
            reset = getattr(module, "reset_parameters", None) or getattr(
                module, "_reset_parameters", None
            )
            if callable(reset):
                reset()


def _cache_key(network: nn.Module, samples: SampleSet, recipe: TrainingRecipe) -> str:
    """Hash everything the trained weights depend on."""
    digest = hashlib.sha256()
    options = [
        (field.name, describe_setting(getattr(recipe, field.name))) for field in fields(recipe)
    ]
    header = (_FORMAT, options, repr(network), samples.mean, samples.std)
    digest.update(repr(header).encode())
    hash_code(digest, network)
    # The drawn weights, so that parameters nobody draws anew are told apart too.
    for name, value in network.state_dict().items():
        hash_tensor(digest, name, value)
    hash_tensor(digest, "inputs", samples.inputs)
    hash_tensor(digest, "targets", samples.targets)
    return digest.hexdigest()[:16]
