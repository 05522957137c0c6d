from __future__ import annotations

import pytest
import torch
from classic_task import Chain

from networks.data import SampleSet
from networks.sparse_training import SparseTraining, batch_norm_scales, train_sparsely


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    return SampleSet(torch.rand(24, 1, 4, 4, generator=generator), torch.arange(24) % 3)


def test_penalties_by_hand():
    scales = [torch.tensor([0.5, -2.0]), torch.tensor([0.05])]
    assert SparseTraining().penalty_of(scales).item() == pytest.approx(2.55)
    smooth = SparseTraining(penalty="smooth_l1", beta=0.1).penalty_of(scales).item()
    assert smooth == pytest.approx(0.45 + 1.95 + 0.05**2 / 0.2)


@pytest.mark.parametrize("penalty", ["l1", "smooth_l1"])
def test_the_scales_become_small(samples, penalty):
    torch.manual_seed(0)
    network = Chain()
    recipe = SparseTraining(epochs=20, penalty=penalty, strength=0.3, batch_size=8)
    result = train_sparsely(network, samples, samples, recipe)
    assert torch.cat(batch_norm_scales(network)).abs().median() < 0.2
    assert not network.training
    assert 0.0 <= result.accuracy_after <= 1.0
    assert result.small_scales_before == 0.0


def test_networks_without_batch_norms_are_refused(samples):
    with pytest.raises(ValueError, match=r"Chain has no batch norm .* sparse_training=none"):
        SparseTraining()(Chain(with_norms=False), samples)


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"penalty": "l2"}, {"strength": 0.0}, {"beta": -1}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=rf"sparse_training\.{next(iter(settings))} must be"):
        SparseTraining(**settings)
