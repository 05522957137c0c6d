"""Trainings that are killed and go on."""

from __future__ import annotations

import json
import logging
from contextlib import suppress

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from networks.checkpoints import save_checkpoint
from networks.data import RandomCropFlip, SampleSet
from networks.pretrained import pretrain
from networks.training import TrainingRecipe, train

RECIPE = {
    "epochs": 4,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "batch_size": 8,
    "seed": 5,
    "augment": RandomCropFlip(1),
}
STEPS = 4 * (30 // 8)


@pytest.fixture(autouse=True)
def after_every_epoch(monkeypatch):
    monkeypatch.setattr("networks.epoch_checkpoint.MOST_SHARE", 1e9)


class Killed(BaseException):
    """Ends a training at once."""


@pytest.fixture
def samples() -> SampleSet:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(30, 1, 4, 4, generator=generator)
    return SampleSet(inputs, torch.arange(30) % 3)


class TiedNetwork(nn.Module):
    """Draws dropout, counts in batch norm, ties two weights and hides a buffer from its state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.mix.weight
        self.last = nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3)) * (1 + self.calls / 10)
        x = nn.functional.dropout(self.again(self.mix(x)), 0.3, self.training)
        return self.last(x)


def make_network() -> TiedNetwork:
    torch.manual_seed(0)
    return TiedNetwork()


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def assert_equal(network: nn.Module, other: nn.Module) -> None:
    there = tensors(other)
    assert all(torch.equal(value, there[name]) for name, value in tensors(network).items())


def killed_training(path, samples, killed_at, **changes):
    """Losses by step, up to the step in which the process ends."""
    losses = {}

    def progress(step, total, loss):
        losses[step] = (total, loss)
        if step == killed_at:
            raise Killed

    network = make_network()
    with suppress(Killed):
        train(network, samples, progress=progress, checkpoint=path, **{**RECIPE, **changes})
    return network, losses


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.0, "nesterov": False}])
def test_a_killed_training_that_goes_on_equals_one_in_one_go(tmp_path, samples, changes):
    path = tmp_path / "state.safetensors"
    whole = make_network()
    train(whole, samples, **{**RECIPE, **changes})
    assert whole.calls == STEPS
    _, first = killed_training(path, samples, 2, **changes)  # before any epoch is whole
    assert not path.exists()
    _, second = killed_training(path, samples, 5, **changes)
    torch.seed()
    _, third = killed_training(path, samples, 11, **changes)
    network, last = killed_training(path, samples, None, **changes)
    assert [list(losses) for losses in (first, second, third, last)] == [
        [1, 2],
        [1, 2, 3, 4, 5],
        [4, 5, 6, 7, 8, 9, 10, 11],
        [10, 11, 12],
    ]
    assert second[4] == third[4]
    assert_equal(network, whole)
    assert not network.training


def test_a_training_that_is_done_is_not_repeated(tmp_path, samples):
    path = tmp_path / "state.safetensors"
    whole, losses = killed_training(path, samples, None)
    assert len(losses) == STEPS
    network, losses = killed_training(path, samples, None)
    assert not losses
    assert_equal(network, whole)


@pytest.mark.parametrize("change", ["seed", "learning_rate", "epochs", "weights", "targets"])
def test_the_state_of_another_training_is_not_used(tmp_path, samples, change, caplog):
    path = tmp_path / "state.safetensors"
    killed_training(path, samples, 8)
    changes = {change: RECIPE[change] * 2} if change in RECIPE else {}
    if change == "targets":
        samples = SampleSet(samples.inputs, samples.targets.flip(0))
    whole, network = make_network(), make_network()
    if change == "weights":
        for one in (whole, network):
            nn.init.constant_(one.last.bias, 0.5)
    train(whole, samples, **{**RECIPE, **changes})
    with caplog.at_level(logging.INFO):
        train(network, samples, checkpoint=path, **{**RECIPE, **changes})
    assert "is of another training" in caplog.text
    assert_equal(network, whole)


@pytest.mark.parametrize("damage", ["cut off", "nonsense", "no header"])
def test_a_damaged_state_is_not_used(tmp_path, samples, damage, caplog):
    path = tmp_path / "state.safetensors"
    whole, _ = killed_training(path, samples, None)
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "nonsense":
        path.write_bytes(b"nonsense")
    else:
        save_checkpoint(whole, path)
    with caplog.at_level(logging.INFO):
        network, losses = killed_training(path, samples, None)
    assert "cannot be read, so the training begins anew" in caplog.text
    assert len(losses) == STEPS
    assert_equal(network, whole)


def test_the_file_says_how_far_the_training_is(tmp_path, samples):
    path = tmp_path / "state.safetensors"
    killed_training(path, samples, 8)
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        names = set(file.keys())
    assert state["epochs"] == 2
    assert {"buffer/calls", "parameter/mix.weight", "momentum/1", "random/order"} <= names
    assert "parameter/again.weight" not in names  # tied, so it is there once
    assert "momentum/0" not in names  # of the parameter that is not used
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_short_epochs_are_skipped_but_the_last_one(tmp_path, samples, monkeypatch):
    now = [0.0]
    writes = []

    def write(self, done):
        writes.append(done)
        now[0] += 1.0

    def progress(step, total, loss):
        now[0] += 2.0  # an epoch has 3 steps

    monkeypatch.setattr("networks.epoch_checkpoint.time.monotonic", lambda: now[0])
    monkeypatch.setattr("networks.epoch_checkpoint.EpochCheckpoint._write", write)
    for share, expected in ((0.1, [1, 3, 5, 6]), (0.01, [1, 6]), (0.2, [1, 2, 3, 4, 5, 6])):
        monkeypatch.setattr("networks.epoch_checkpoint.MOST_SHARE", share)
        writes.clear()
        path = tmp_path / "state.safetensors"
        options = {**RECIPE, "epochs": 6}
        train(make_network(), samples, progress=progress, checkpoint=path, **options)
        assert writes == expected


def test_a_state_that_cannot_be_written_is_one_warning(tmp_path, samples):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="could not go on if it were interrupted") as caught:
        network, losses = killed_training(tmp_path / "file" / "state.safetensors", samples, None)
    assert len(caught) == 1
    assert len(losses) == STEPS
    whole = make_network()
    train(whole, samples, **RECIPE)
    assert_equal(network, whole)


def test_a_killed_pretraining_goes_on_and_leaves_only_the_weights(tmp_path, samples):
    recipe = TrainingRecipe(**RECIPE)
    whole, network = make_network(), make_network()
    pretrain(whole, samples, recipe, tmp_path / "whole")
    steps = []

    def progress(step, total, loss):
        steps.append(step)
        if len(steps) == 7:
            raise Killed

    with pytest.raises(Killed):
        pretrain(network, samples, recipe, tmp_path / "parts", progress=progress)
    network = make_network()
    pretrained = pretrain(network, samples, recipe, tmp_path / "parts", progress=progress)
    assert steps == [1, 2, 3, 4, 5, 6, 7, *range(7, 13)]
    assert_equal(network, whole)
    assert [file.name for file in (tmp_path / "parts").iterdir()] == [pretrained.path.name]


def test_the_weights_of_an_early_epoch_are_those_of_the_killed_training(tmp_path, samples):
    path = tmp_path / "state.safetensors"
    killed_training(path, samples, 7)  # two epochs of three steps are whole
    with safe_open(path, framework="pt") as file:
        weight = file.get_tensor("parameter/conv.weight")
    recipe = TrainingRecipe(**RECIPE)
    early, whole, first = make_network(), make_network(), make_network()
    train(early, samples, **RECIPE, stop_after=2)
    assert torch.equal(early.conv.weight, weight)
    train(first, samples, **RECIPE, stop_after=0)
    assert_equal(first, make_network())

    paths = [
        pretrain(network, samples, recipe, tmp_path, stop_after=epochs).path
        for network, epochs in ((early, 1), (whole, None), (first, 0))
    ]
    assert len(set(paths)) == 3  # the cache tells them apart
    assert not torch.equal(early.conv.weight, whole.conv.weight)
    assert not torch.equal(early.conv.weight, first.conv.weight)
    again = make_network()
    assert pretrain(again, samples, recipe, tmp_path, stop_after=1).cached
    assert torch.equal(again.conv.weight, early.conv.weight)
