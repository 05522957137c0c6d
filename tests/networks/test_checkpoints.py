"""Saving and loading weights."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from networks.checkpoints import load_checkpoint, save_checkpoint


def network(seed: int = 0, width: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, width, 1), nn.BatchNorm2d(width))


def is_equal(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_saved_weights_come_back(tmp_path, name):
    source, target = network(0), network(1)
    assert not is_equal(source, target)
    save_checkpoint(source, tmp_path / "new" / name)
    load_checkpoint(target, tmp_path / "new" / name)
    assert is_equal(source, target)
    assert os.listdir(tmp_path / "new") == [name]


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_tied_weights_can_be_saved(tmp_path, name):
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    save_checkpoint(tied, tmp_path / name)
    loaded = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    load_checkpoint(loaded, tmp_path / name)
    assert torch.equal(loaded[1].weight, tied[0].weight)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    save_checkpoint(network(0), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(network(1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["weights.pt"]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda s: s, id="plain"),
        pytest.param(lambda s: {"state_dict": s, "best_prec1": 93.0}, id="state_dict"),
        pytest.param(lambda s: {"model_state_dict": s, "epoch": 3}, id="model_state_dict"),
        pytest.param(lambda s: {f"module.{k}": v for k, v in s.items()}, id="data-parallel"),
        pytest.param(lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, id="compiled"),
        pytest.param(
            lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}}, id="both"
        ),
        pytest.param(
            lambda s: OrderedDict((k, v) for k, v in s.items() if "num_batches" not in k), id="old"
        ),
        pytest.param(lambda s: {k: v.double() for k, v in s.items()}, id="double"),
    ],
)
def test_the_usual_layouts_are_understood(tmp_path, wrap):
    source, target = network(0), network(1)
    torch.save(wrap(source.state_dict()), tmp_path / "c.th")
    load_checkpoint(target, tmp_path / "c.th")
    assert is_equal(source, target)


def test_a_prefix_that_belongs_to_the_network_stays(tmp_path):
    wrapped = nn.Module()
    wrapped.module = nn.Linear(2, 2)
    save_checkpoint(wrapped, tmp_path / "c.pt")
    other = nn.Module()
    other.module = nn.Linear(2, 2)
    load_checkpoint(other, tmp_path / "c.pt")
    assert is_equal(wrapped, other)


def test_a_missing_file_names_the_key(tmp_path):
    with pytest.raises(
        ValueError, match=r"No checkpoint file .*none\.pt\. Set network\.checkpoint"
    ):
        load_checkpoint(network(), tmp_path / "none.pt")


@pytest.mark.parametrize("content", [b"", b"hello world", bytes(range(256)) * 4])
@pytest.mark.parametrize("name", ["c.pt", "c.safetensors"])
def test_a_damaged_file_is_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read .* damaged"):
        load_checkpoint(network(), tmp_path / name)


def test_a_cut_file_is_refused(tmp_path):
    save_checkpoint(network(), tmp_path / "c.pt")
    content = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(network(), tmp_path / "c.pt")


class Malicious:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickled_code_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "executed"
    torch.save({"state_dict": {"0.weight": Malicious(mark)}}, tmp_path / "c.pt")
    with pytest.raises(
        ValueError, match=r"pickled code \((posix|nt)\.system\), which .* never runs"
    ):
        load_checkpoint(network(), tmp_path / "c.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Malicious(mark), 2))
    with pytest.raises(ValueError, match=r"raw\.pt"):
        load_checkpoint(network(), tmp_path / "raw.pt")
    assert not mark.exists()


def test_a_pickled_network_is_refused_with_the_way_out(tmp_path):
    torch.save(network(), tmp_path / "c.pt")
    with pytest.raises(
        ValueError, match=r"Sequential.*torch\.save\(network\.state_dict\(\), file\)"
    ):
        load_checkpoint(network(), tmp_path / "c.pt")
    torch.save({"a": np.zeros(2)}, tmp_path / "n.pt")
    with pytest.raises(ValueError, match="pickled code"):
        load_checkpoint(network(), tmp_path / "n.pt")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds a dict, not a state dict"),
        ({"epoch": 3, "lr": 0.1}, "epoch, lr hold no tensors"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, payload, message):
    torch.save(payload, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(network(), tmp_path / "c.pt")


def test_another_architecture_is_refused_tensor_by_tensor_and_changes_nothing(tmp_path):
    state = network(0, width=4).state_dict()
    state["9.weight"] = torch.zeros(1)
    del state["0.bias"]
    torch.save(state, tmp_path / "c.pt")
    target = network(1)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit this Sequential") as refusal:
        load_checkpoint(target, tmp_path / "c.pt")
    message = str(refusal.value)
    assert "1 missing: 0.bias" in message
    assert "1 unexpected: 9.weight" in message
    assert "0.weight (expected (3, 2, 1, 1), found (4, 2, 1, 1))" in message
    assert "5 of another shape" in message
    assert message.count("expected (") == 3
    assert "network.checkpoint" in message
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_foreign_safetensors_are_read(tmp_path):
    source, target = network(0), network(1)
    save_file(
        {f"module.{k}": v for k, v in source.state_dict().items()}, tmp_path / "c.safetensors"
    )
    load_checkpoint(target, str(tmp_path / "c.safetensors"))
    assert is_equal(source, target)
