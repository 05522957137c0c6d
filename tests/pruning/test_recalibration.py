"""Batch-norm statistics after recalibration, worked out by hand."""

import copy

import pytest
import torch
from torch import nn

from networks.data import SampleSet
from pruning.recalibration import evaluation_mode, recalibrate_batch_norm


def test_recalibrated_statistics_are_the_average_over_equal_batches():
    network = nn.Sequential(nn.BatchNorm1d(1)).eval()
    samples = SampleSet(torch.tensor([[0.0], [2.0], [10.0], [14.0]]), torch.zeros(4))
    recalibrate_batch_norm(network, samples, batch_size=3)  # 4 images in batches of 2 and 2
    norm = network[0]
    assert norm.running_mean.item() == pytest.approx((1 + 12) / 2)
    # unbiased variances of the two batches are 2 and 8
    assert norm.running_var.item() == pytest.approx((2 + 8) / 2)
    assert norm.num_batches_tracked.item() == 2


def test_a_remainder_of_one_image_does_not_get_a_batch_of_its_own():
    network = nn.Sequential(nn.BatchNorm1d(1))
    samples = SampleSet(torch.arange(5.0)[:, None], torch.zeros(5))
    recalibrate_batch_norm(network, samples, batch_size=4)
    assert network[0].running_mean.item() == pytest.approx((1.0 + 3.5) / 2)


def test_the_old_statistics_leave_no_trace(network, images):
    poisoned = copy.deepcopy(network)
    poisoned.norm1.running_mean.fill_(1e3)
    poisoned.norm2.running_var.fill_(1e3)
    for one in (network, poisoned):
        recalibrate_batch_norm(one, images, batch_size=25)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, poisoned.get_buffer(name)), name


def test_only_batch_norms_train_and_flags_momentum_and_weights_come_back(network, images):
    network.train()
    network.norm2.eval()
    network.norm1.momentum = 0.3
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    modes = {name: module.training for name, module in network.named_modules()}
    seen = set()
    for module in network.modules():
        module.register_forward_pre_hook(
            lambda module, _: seen.add((type(module).__name__, module.training))
        )
    recalibrate_batch_norm(network, images, batch_size=20)
    assert seen == {
        ("Net", False),
        ("Conv2d", False),
        ("BatchNorm2d", True),
        ("Dropout", False),
        ("Linear", False),
    }
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert (network.norm1.momentum, network.norm2.momentum) == (0.3, 0.1)
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_flags_and_momentum_come_back_when_the_network_fails(network):
    network.train()
    with pytest.raises(RuntimeError):
        recalibrate_batch_norm(network, SampleSet(torch.zeros(4, 5, 6, 6), torch.zeros(4)), 4)
    assert all(module.training for module in network.modules())
    assert network.norm1.momentum == 0.1


def test_a_network_without_batch_norm_is_not_run():
    network = nn.Linear(7, 1)  # would fail on these inputs
    recalibrate_batch_norm(network, SampleSet(torch.zeros(4, 2), torch.zeros(4)), 4)


@pytest.mark.parametrize(
    ("num_images", "batch_size", "message"),
    [
        (4, 2, "in batches of 3 images or more, got 2"),
        (1, 4, "on a batch of 1 image"),
        (0, 4, "empty"),
    ],
)
def test_too_little_to_recalibrate_on_is_refused(network, num_images, batch_size, message):
    samples = SampleSet(torch.zeros(num_images, 3, 6, 6), torch.zeros(num_images))
    with pytest.raises(ValueError, match=message):
        recalibrate_batch_norm(network, samples, batch_size)


def test_evaluation_mode_gives_each_module_its_own_mode_back(network):
    network.train()
    network.norm1.eval()
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
        network.norm1.train()
    assert not network.norm1.training
    assert network.training
    assert network.norm2.training
