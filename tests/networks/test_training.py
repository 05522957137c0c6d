"""Training, accuracy and the cache of pretrained networks."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from networks.data import RandomCropFlip, SampleSet
from networks.digits import digits_resnet, digits_splits
from networks.pretrained import default_cache_dir, pretrain
from networks.training import TrainingRecipe, _factor, accuracy, train

RECIPE = {
    "epochs": 3,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 8,
    "seed": 0,
}


def blobs(count: int = 60) -> SampleSet:
    """Two classes that one line separates."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % 2
    inputs = torch.randn(count, 2, generator=generator) * 0.3 + targets[:, None] * 2 - 1
    return SampleSet(inputs, targets)


def perceptron(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 2))


def weights(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


def test_training_separates_separable_classes():
    network = perceptron()
    train(network, blobs(), **RECIPE)
    assert accuracy(network, blobs(), 7) == 1.0
    assert not network.training
    assert all(p.grad is None for p in network.parameters())


def test_equal_seeds_give_equal_weights_also_with_dropout_and_augmentation():
    images = SampleSet(torch.rand(20, 1, 2, 1), torch.arange(20) % 2)

    def trained(seed: int) -> Tensor:
        network = nn.Sequential(nn.Flatten(), *perceptron(0, dropout=0.5))
        torch.seed()
        options = {**RECIPE, "seed": seed, "augment": RandomCropFlip(1)}
        train(network, images, **options)
        return weights(network)

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_training_leaves_the_global_random_numbers_alone():
    network = perceptron(dropout=0.5)
    before = torch.get_rng_state()
    train(network, blobs(), **RECIPE)
    assert torch.equal(before, torch.get_rng_state())


def test_one_step_is_the_step_of_sgd():
    network = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(network.weight)
    samples = SampleSet(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64))
    options = {**RECIPE, "epochs": 1, "batch_size": 4, "momentum": 0.0, "weight_decay": 0.0}
    train(network, samples, **options, nesterov=False)
    # Gradient of the cross-entropy at equal scores: 0.5 - 1 and 0.5; a single step is at the peak.
    torch.testing.assert_close(network.weight.detach().flatten(), torch.tensor([0.05, -0.05]))


def test_the_schedule_warms_up_and_ends_near_zero():
    factors = [_factor(done, 100) for done in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1.0
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[52] == pytest.approx(0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert 0 < factors[99] < 1e-3
    assert _factor(0, 1) == 1.0


def test_the_hooks_are_called_after_every_step():
    seen, calls = [], []
    network = perceptron()
    train(
        network,
        blobs(60),
        **RECIPE,
        progress=lambda step, total, loss: seen.append((step, total, loss)),
        after_step=lambda: calls.append(float(network[0].weight.detach().sum())),
    )
    # 60 samples are seven batches of 8; the last 4 samples are left out.
    assert [step for step, _, _ in seen] == list(range(1, 22))
    assert {total for _, total, _ in seen} == {21}
    assert seen[-1][2] < seen[0][2]
    assert len(set(calls)) == 21


def test_masked_weights_stay_zero_with_the_hook():
    network = perceptron()

    def mask() -> None:
        network[0].weight.data[0] = 0

    train(network, blobs(), **RECIPE, after_step=mask)
    assert not network[0].weight[0].any()
    assert network[0].weight[1].any()


def test_a_set_smaller_than_a_batch_is_one_batch():
    steps = []
    options = {**RECIPE, "batch_size": 100}
    train(perceptron(), blobs(10), **options, progress=lambda *step: steps.append(step))
    assert len(steps) == 3


def test_frozen_parameters_stay_and_another_loss_is_used():
    network = perceptron()
    network[0].weight.requires_grad_(False)
    before = network[0].weight.clone()
    samples = SampleSet(blobs().inputs, torch.full((60, 2), 3.0))
    options = {**RECIPE, "epochs": 60, "learning_rate": 0.05}
    train(network, samples, **options, loss=nn.functional.mse_loss)
    assert torch.equal(network[0].weight, before)
    assert (network(samples.inputs) - 3).abs().mean() < 0.3


def test_no_epochs_change_nothing():
    network = perceptron()
    before = weights(network)
    train(network, blobs(), **{**RECIPE, "epochs": 0})
    assert torch.equal(weights(network), before)


def test_a_diverging_run_says_what_to_lower():
    with pytest.raises(ValueError, match=r"diverged in epoch 1 of 3.*learning_rate \(now 1e\+30\)"):
        train(perceptron(), blobs(), **{**RECIPE, "learning_rate": 1e30})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": 0.0}, "nesterov=true needs a positive momentum"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train(perceptron(), blobs(), **{**RECIPE, **change})


def test_accuracy_counts_right_answers_and_restores_the_modes():
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0], -x[:, 0]], dim=1)

    network = nn.Sequential(Fixed(), nn.Dropout(0.9))
    network.train()
    network[0].eval()
    samples = SampleSet(torch.tensor([[1.0], [1.0], [-1.0], [2.0]]), torch.tensor([0, 1, 1, 0]))
    assert accuracy(network, samples, 3) == 0.75
    assert (network.training, network[0].training, network[1].training) == (True, False, True)


class Counting(nn.Module):
    """A network with a weight of its own that nothing draws anew."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.layers = perceptron()
        self.shift = nn.Parameter(torch.full((2,), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x + self.shift)


SMALL = TrainingRecipe(epochs=2, batch_size=16)


def test_a_network_is_trained_once_and_then_read_from_the_cache(tmp_path):
    first, second = perceptron(0), perceptron(1)
    steps = []
    made = pretrain(first, blobs(), SMALL, tmp_path, progress=lambda *step: steps.append(step))
    read = pretrain(second, blobs(), SMALL, tmp_path, progress=lambda *step: steps.append(step))
    assert (made.cached, read.cached) == (False, True)
    assert made.path == read.path
    assert len(steps) == 2 * (60 // 16)
    assert torch.equal(weights(first), weights(second))
    assert not second.training


def test_the_weights_a_network_comes_with_do_not_matter(tmp_path):
    first, second = perceptron(0), perceptron(1)
    pretrain(first, blobs(), SMALL, tmp_path / "a")
    pretrain(second, blobs(), SMALL, tmp_path / "b")
    assert torch.equal(weights(first), weights(second))


def double(inputs: Tensor, generator: torch.Generator, factor: float = 2.0) -> Tensor:
    return inputs * factor


@pytest.mark.parametrize(
    ("network", "samples", "recipe"),
    [
        pytest.param(perceptron(), blobs(), replace(SMALL, epochs=3), id="recipe"),
        pytest.param(perceptron(), blobs(), replace(SMALL, seed=1), id="seed"),
        pytest.param(perceptron(), blobs(), replace(SMALL, augment=double), id="augment"),
        pytest.param(perceptron(), blobs(50), SMALL, id="data"),
        pytest.param(perceptron(0, 0.5), blobs(), SMALL, id="dropout"),
        pytest.param(Counting(), blobs(), SMALL, id="class"),
    ],
)
def test_the_cache_tells_apart_what_trains_differently(tmp_path, network, samples, recipe):
    base = pretrain(perceptron(), blobs(), SMALL, tmp_path)
    other = pretrain(network, samples, recipe, tmp_path)
    assert not other.cached
    assert other.path.stem.split("-")[-1] != base.path.stem.split("-")[-1]


def test_partial_augmentations_are_told_apart_and_found_again(tmp_path):
    def run(factor: float) -> bool:
        augment = functools.partial(double, factor=factor)
        return pretrain(perceptron(), blobs(), replace(SMALL, augment=augment), tmp_path).cached

    assert [run(2.0), run(2.0), run(3.0)] == [False, True, False]


def test_weights_that_cannot_be_drawn_anew_are_part_of_the_key(tmp_path):
    pretrain(Counting(0.0), blobs(), SMALL, tmp_path)
    assert not pretrain(Counting(1.0), blobs(), SMALL, tmp_path).cached
    assert pretrain(Counting(0.0), blobs(), SMALL, tmp_path).cached


def test_a_damaged_cache_is_trained_again_with_a_warning(tmp_path):
    made = pretrain(perceptron(), blobs(), SMALL, tmp_path)
    expected = made.path.read_bytes()
    made.path.write_bytes(expected[:100])
    with pytest.warns(UserWarning, match="unusable, so they are trained again"):
        again = pretrain(perceptron(), blobs(), SMALL, tmp_path)
    assert not again.cached
    assert pretrain(perceptron(), blobs(), SMALL, tmp_path).cached


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    network = perceptron()
    with pytest.warns(UserWarning, match="next run trains again"):
        assert not pretrain(network, blobs(), SMALL, tmp_path / "file").cached
    assert accuracy(network, blobs()) > 0.9


def test_a_recipe_without_epochs_asks_for_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"Sequential has no weights: set network\.checkpoint"):
        pretrain(perceptron(), blobs(), TrainingRecipe(), tmp_path)


def test_the_cache_folder_follows_the_xdg_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "topiary"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "topiary"


@pytest.mark.slow
def test_the_digits_recipe_reaches_the_accuracy_the_runs_start_from(tmp_path):
    data = digits_splits()
    recipe = TrainingRecipe(epochs=30, batch_size=64, augment=RandomCropFlip(1, flip=False))
    network = digits_resnet()
    pretrain(network, data.search.train, recipe, tmp_path)
    assert accuracy(network, data.test) > 0.975
