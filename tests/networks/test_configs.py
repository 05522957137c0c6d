"""The YAML files of networks, data and pretraining."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, instantiate
from torch import nn

from networks.data import RandomCropFlip
from networks.training import TrainingRecipe

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("data", "pretrain", "fine_tune", "network")
NETWORKS = sorted(path.stem for path in (CONF / "network").glob("*.yaml"))


@pytest.fixture
def composed(tmp_path):
    """Compose these groups alone, in the order of the root config."""
    for group in GROUPS:
        shutil.copytree(CONF / group, tmp_path / group)
    defaults = "".join(
        f"  - {group}: {name}\n"
        for group, name in zip(GROUPS, ("digits", "none", "short", "digits_resnet"), strict=True)
    )
    (tmp_path / "root.yaml").write_text(f"defaults:\n{defaults}  - _self_\n")

    def run(*overrides: str):
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return compose("root", overrides=list(overrides))

    return run


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_built_and_brings_its_data_and_training(composed, name):
    cfg = composed(f"network={name}")
    arguments = {key: value for key, value in cfg.network.items() if key != "checkpoint"}
    assert isinstance(instantiate(arguments), nn.Module)
    assert cfg.network.checkpoint is None
    is_digits = name.startswith("digits")
    assert cfg.data._target_.endswith("digits_splits" if is_digits else "cifar10_splits")
    assert cfg.pretrain.epochs == (30 if is_digits else 0)
    assert cfg.fine_tune.epochs == (10 if is_digits else 0)  # hours on a CPU


def test_the_command_line_wins_over_the_network(composed):
    cfg = composed("network=resnet20_cifar10", "data=digits", "pretrain=cifar10")
    assert cfg.data._target_ == "networks.digits.digits_splits"
    assert cfg.pretrain.epochs == 200


def test_a_users_own_functions_inherit_no_arguments(composed):
    cfg = composed("network._target_=my_package.build", "data._target_=my_package.load")
    assert dict(cfg.network) == {"_target_": "my_package.build", "checkpoint": None}
    assert dict(cfg.data) == {"_target_": "my_package.load"}


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_data_sets_name_functions_and_their_arguments(composed, name):
    cfg = dict(composed(f"data={name}").data)
    function = get_method(cfg.pop("_target_"))
    assert set(cfg) <= set(function.__annotations__)


def test_recipes_are_built_with_their_augmentation(composed):
    recipe = instantiate(composed("pretrain=digits").pretrain)
    assert isinstance(recipe, TrainingRecipe)
    assert recipe.augment == RandomCropFlip(padding=1, flip=False)
    assert recipe.weight_decay == 5e-4
    assert instantiate(composed("pretrain=cifar10").pretrain).augment == RandomCropFlip()
    assert instantiate(composed("pretrain=none").pretrain).epochs == 0
