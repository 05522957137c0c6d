"""The default data set."""

from __future__ import annotations

import pytest
import torch

from networks.digits import digits_splits


def test_digits_are_real_images_in_four_disjoint_stratified_splits():
    data = digits_splits()
    search = data.search
    sizes = [len(s) for s in (search.train, search.calibration, search.reward, data.test)]
    assert sizes == [897, 100, 400, 400]
    assert sorted(i for split in data.indices.values() for i in split) == list(range(1797))
    for samples in (search.train, search.calibration, search.reward, data.test):
        assert samples.inputs.shape[1:] == (1, 8, 8)
        assert (samples.inputs.min(), samples.inputs.max()) == (0, 1)
        counts = samples.targets.bincount(minlength=10)
        assert (counts - len(samples) / 10).abs().max() <= 0.03 * len(samples)


def test_the_first_digit_of_the_source_is_found_where_the_indices_say():
    data = digits_splits()
    (split,) = (name for name, indices in data.indices.items() if 0 in indices)
    samples = data.test if split == "test" else getattr(data.search, split)
    position = data.indices[split].index(0)
    assert samples.targets[position] == 0
    first_row = torch.tensor([0, 0, 5, 13, 9, 1, 0, 0]) / 16
    assert torch.equal(samples.inputs[position, 0, 0], first_row)


def test_splits_follow_their_own_seed_and_not_the_global_one():
    torch.manual_seed(1)
    first = digits_splits()
    torch.manual_seed(2)
    assert first.indices == digits_splits().indices
    assert first.indices != digits_splits(seed=1).indices


def test_too_large_splits_are_refused():
    with pytest.raises(ValueError, match=r"Cannot cut 1797 samples .*data.reward_size=1500"):
        digits_splits(reward_size=1500)
