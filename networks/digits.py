"""The default task: scikit-learn's handwritten digits, and a small residual network for them."""

from __future__ import annotations

import numpy as np
import torch

from networks.data import DataSplits, SampleSet, SearchSplits, split_indices
from networks.resnet import ResNet


def digits_resnet(
    width: int = 16,
    num_classes: int = 10,
    shortcut: str = "A",
    blocks: tuple[int, int, int] = (1, 2, 2),
    in_channels: int = 1,
) -> ResNet:
    """Build a residual network for 8x8 images: 11 convolutions, 8 dependency groups.

    Args:
        width: channels of the first of three stages; they double twice.
        num_classes: number of classes.
        shortcut: "A" (zero padding) or "B" (projection).
        blocks: residual blocks of the three stages.
        in_channels: channels of the images.

    Returns:
        The network, drawn anew from torch's global random numbers.
    """
    return ResNet(blocks, shortcut, num_classes, width, in_channels)


def digits_splits(
    train_size: int | None = None,
    calibration_size: int = 100,
    reward_size: int = 400,
    test_size: int = 400,
    seed: int = 0,
) -> DataSplits:
    """Load the 1,797 real images that come with scikit-learn, cut into four stratified splits.

    The images are the test part of the UCI set "Optical Recognition of Handwritten Digits", 8x8,
    with 17 grey levels; here in [0, 1] and not normalised further.

    Args:
        train_size: images of the train split; None takes what the others leave (897).
        calibration_size: images of the calibration split, at least 1.
        reward_size: images of the reward split, at least 1.
        test_size: images of the test split, at least 1.
        seed: of the split, on purpose apart from the seed of a run: all runs share their splits.

    Returns:
        Splits with float32 inputs (N, 1, 8, 8) in [0, 1] and int64 targets in [0, 10).

    Raises:
        ValueError: when the sizes sum to more than 1,797.
    """
    # Slow to import, and only this data set needs it.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy((images / 16).astype(np.float32)).view(-1, 1, 8, 8)
    samples = SampleSet(inputs, torch.from_numpy(labels.astype(np.int64)))
    sizes = {
        "test": test_size,
        "reward": reward_size,
        "calibration": calibration_size,
        "train": train_size,
    }
    indices = split_indices(samples.targets, sizes, seed=seed)
    splits = {name: samples.subset(index) for name, index in indices.items()}
    search = SearchSplits(splits["train"], splits["calibration"], splits["reward"])
    return DataSplits("digits", 10, search, splits["test"], indices)
