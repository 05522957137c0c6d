"""Samples in memory, and the disjoint splits a search may and may not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Changes a batch of raw inputs (before normalisation) with the randomness of the generator."""


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Inputs and targets, decoded once and kept in memory.

    Images stay uint8 (a quarter of the memory) and become float batch by batch; float inputs are
    handed out as they are.

    Attributes:
        inputs: (N, ...) uint8 or floating point.
        targets: (N,) or (N, ...), class numbers or any other target.
        mean: per channel (axis 1 of the inputs), in units of x / 255; uint8 inputs only.
        std: per channel, positive, in units of x / 255; uint8 inputs only.

    Raises:
        ValueError: when lengths, dtype, mean and std do not fit together.
    """

    inputs: Tensor
    targets: Tensor
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.inputs.dim() == 0 or self.targets.dim() == 0:
            raise ValueError("inputs and targets need a first axis that counts samples.")
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"A sample set needs one target per input, got {len(self.inputs)} inputs and "
                f"{len(self.targets)} targets. Check what data._target_ builds."
            )
        if self.inputs.dtype != torch.uint8 and not self.inputs.is_floating_point():
            raise ValueError(
                f"Inputs must be uint8 or floating point, got {self.inputs.dtype}. "
                "Convert them in what data._target_ builds."
            )
        if self.mean is None and self.std is None:
            return
        if self.mean is None or self.std is None:
            raise ValueError(f"Give mean and std together, got {self.mean} and {self.std}.")
        if self.inputs.dtype != torch.uint8:
            raise ValueError(
                "mean and std are applied to uint8 inputs only; "
                f"these inputs are {self.inputs.dtype}. Normalise them beforehand, or store uint8."
            )
        channels = self.inputs.shape[1] if self.inputs.dim() > 1 else 1
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"mean and std need one value per channel: the inputs have {channels}, "
                f"data.mean has {len(self.mean)}, data.std has {len(self.std)}."
            )
        if min(self.std) <= 0:
            raise ValueError(f"data.std must be positive, got {self.std}.")

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: Augmentation | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised batches; the last one may be smaller.

        Args:
            batch_size: samples per batch, at least 1.
            generator: shuffles the samples and feeds the augmentation; None keeps their order.
            augment: changes the raw inputs of a batch; needs a generator.

        Yields:
            float32 inputs (B, ...) and targets (B, ...); uint8 inputs become
            (x / 255 - mean) / std.

        Raises:
            ValueError: when batch_size is below 1, or augment comes without a generator.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if augment is not None and generator is None:
            raise ValueError("An augmentation needs a generator: pass generator=torch.Generator().")
        order = None if generator is None else torch.randperm(len(self), generator=generator)
        for start in range(0, len(self), batch_size):
            # A slice of the stored tensor is a view, a list of indices is a copy.
            index = (
                slice(start, start + batch_size)
                if order is None
                else order[start : start + batch_size]
            )
            inputs = self.inputs[index]
            if augment is not None and generator is not None:
                inputs = augment(inputs, generator)
            yield self.normalise(inputs), self.targets[index]

    def normalise(self, inputs: Tensor) -> Tensor:
        """Turn raw inputs of this set's kind into what a network reads.

        Args:
            inputs: (B, ...), dtype and channels as in `inputs` of the set.

        Returns:
            float32 tensor of the same shape.
        """
        if inputs.dtype != torch.uint8:
            return inputs.float()
        if self.mean is None or self.std is None:
            return inputs.float().div_(255)
        # (x / 255 - mean) / std as one multiplication and one addition.
        shape = (-1,) + (1,) * (inputs.dim() - 2)
        scale = torch.tensor([1 / (255 * std) for std in self.std]).view(shape)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)]).view(shape)
        scale, shift = scale.to(inputs.device), shift.to(inputs.device)
        return inputs.float().mul_(scale).add_(shift)

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> SampleSet:
        """Copy some samples, in the given order.

        Args:
            indices: positions in [0, len(self)).

        Returns:
            A sample set of len(indices) samples with the same normalisation.

        Raises:
            ValueError: when an index is out of range.
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise ValueError(
                f"Sample indices must be in [0, {len(self)}), "
                f"got {int(index.min())} to {int(index.max())}."
            )
        return SampleSet(self.inputs[index], self.targets[index], self.mean, self.std)


@dataclass(frozen=True, eq=False)
class SearchSplits:
    """What a search may read; the test split is not here on purpose.

    Attributes:
        train: fine-tuning and data-driven importance.
        calibration: batch-norm recalibration and reconstruction.
        reward: accuracy that the reward is made of.
    """

    train: SampleSet
    calibration: SampleSet
    reward: SampleSet


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set with its four disjoint splits.

    Attributes:
        name: short name, used in reports.
        num_classes: number of classes; integer targets are in [0, num_classes).
        search: the three splits a search may read.
        test: only the final report reads it.
        indices: for each of "train", "calibration" and "reward" the positions of its samples in the
            training source. "test" is listed only when it was cut from the same source.

    Raises:
        ValueError: when two splits share a sample, or indices and samples do not fit together.
    """

    name: str
    num_classes: int
    search: SearchSplits
    test: SampleSet
    indices: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        splits = {
            "train": self.search.train,
            "calibration": self.search.calibration,
            "reward": self.search.reward,
            "test": self.test,
        }
        unknown = sorted(set(self.indices) - set(splits))
        missing = sorted({"train", "calibration", "reward"} - set(self.indices))
        if unknown or missing:
            raise ValueError(
                "indices must name train, calibration and reward (and test when it was cut from "
                f"the same source); missing {missing}, unknown {unknown}."
            )
        for split, indices in self.indices.items():
            if len(indices) != len(splits[split]):
                raise ValueError(
                    f"Split {split!r} of {self.name} has {len(splits[split])} samples "
                    f"but {len(indices)} indices."
                )
        for first, second in combinations(self.indices, 2):
            shared = set(self.indices[first]) & set(self.indices[second])
            if shared:
                raise ValueError(
                    f"Splits {first!r} and {second!r} of {self.name} share {len(shared)} samples "
                    f"(first: {min(shared)}); they must be disjoint. "
                    "Change what data._target_ builds."
                )
        for split, samples in splits.items():
            if len(samples) == 0:
                raise ValueError(
                    f"Split {split!r} of {self.name} is empty: raise data.{split}_size."
                )
            if samples.targets.is_floating_point():
                continue
            low, high = int(samples.targets.min()), int(samples.targets.max())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"Split {split!r} of {self.name} has class numbers {low} to {high}; "
                    f"with {self.num_classes} classes they must be in [0, {self.num_classes})."
                )


def split_indices(
    targets: Tensor,
    sizes: Mapping[str, int | None],
    *,
    seed: int = 0,
    stratified: bool = True,
) -> dict[str, tuple[int, ...]]:
    """Cut the positions of a sample set into disjoint splits.

    Args:
        targets: (N,) class numbers; only their number matters when not stratified.
        sizes: number of samples per split, in order; at most one may be None and takes the rest.
        seed: the same seed gives the same splits on every machine.
        stratified: every class has nearly the same share in every split (off by two at most).

    Returns:
        Disjoint tuples of positions. The classes take turns in each tuple, so that every prefix of
        a stratified split is nearly balanced too.

    Raises:
        ValueError: when the sizes do not fit the number of samples.
    """
    total = len(targets)
    fixed = {name: size for name, size in sizes.items() if size is not None}
    negative = {name: size for name, size in fixed.items() if size < 0}
    rest = total - sum(fixed.values())
    if negative or rest < 0 or len(sizes) - len(fixed) > 1:
        asked = ", ".join(f"data.{name}_size={size}" for name, size in sizes.items())
        raise ValueError(
            f"Cannot cut {total} samples into {asked}: sizes are at least 0, "
            f"sum to at most {total}, and only one may be left open."
        )
    # Raw uniform numbers are the part of numpy's generators that stays equal between versions.
    keys = np.random.Generator(np.random.PCG64(seed)).random((2, total))
    order = np.argsort(keys[0], kind="stable")
    if stratified:
        labels = targets.cpu().numpy()
        position = np.empty(total)
        for label in np.unique(labels):
            members = order[labels[order] == label]
            position[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = np.lexsort((keys[1], position))
    splits: dict[str, tuple[int, ...]] = {}
    start = 0
    for name, size in sizes.items():
        stop = start + (rest if size is None else size)
        splits[name] = tuple(order[start:stop].tolist())
        start = stop
    return splits


def split_training_set(
    samples: SampleSet,
    test: SampleSet,
    *,
    name: str,
    num_classes: int,
    calibration_size: int,
    reward_size: int,
    seed: int = 0,
) -> DataSplits:
    """Cut train, calibration and reward from a training set that has its own test set.

    Args:
        samples: the training set, with class numbers as targets.
        test: the test set, kept as it is.
        name: short name, used in reports.
        num_classes: number of classes.
        calibration_size: samples of the calibration split, at least 1.
        reward_size: samples of the reward split, at least 1.
        seed: of the stratified split; independent of the seed of a run.

    Returns:
        The four splits; train takes what the other two leave.

    Raises:
        ValueError: when the sizes do not fit the number of samples.
    """
    indices = split_indices(
        samples.targets,
        {"calibration": calibration_size, "reward": reward_size, "train": None},
        seed=seed,
    )
    search = SearchSplits(**{split: samples.subset(index) for split, index in indices.items()})
    return DataSplits(name, num_classes, search, test, indices)


@dataclass(frozen=True)
class RandomCropFlip:
    """Pads with black, crops at a random place, and mirrors half of the images.

    The usual augmentation for CIFAR: He et al., "Deep Residual Learning for Image Recognition"
    (https://arxiv.org/abs/1512.03385), section 4.2.

    Attributes:
        padding: pixels added on every side, at least 0.
        flip: whether to mirror every second image, drawn at random, left to right.

    Shapes:
        - input: raw images (B, C, H, W), any dtype
        - output: the same
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must be at least 0, got {self.padding}.")

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and mirror every image of the batch on its own."""
        count, _, height, width = inputs.shape
        pad = self.padding
        padded = F.pad(inputs, (pad, pad, pad, pad))
        top = torch.randint(2 * pad + 1, (count, 1), generator=generator)
        left = torch.randint(2 * pad + 1, (count, 1), generator=generator)
        rows = top + torch.arange(height)
        columns = left + torch.arange(width)
        if self.flip:
            mirrored = torch.rand((count, 1), generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        images = torch.arange(count)[:, None, None]
        # (B, H, W, C) after indexing around the sliced channel axis.
        cropped = padded[images, :, rows[:, :, None], columns[:, None, :]]
        return cropped.permute(0, 3, 1, 2).contiguous()
