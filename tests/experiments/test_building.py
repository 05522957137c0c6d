"""Functions named in the config."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.building import (
    build_data,
    build_network,
    call_target,
    check_outputs,
    importance_options,
    locate,
    own_options,
)
from networks.digits import digits_splits


@pytest.fixture
def user_package(tmp_path, monkeypatch):
    (tmp_path / "user_package_of_test.py").write_text(
        "import torch\n"
        "def build_network(width=4):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "def build_nothing():\n"
        "    return None\n"
        "number = 3\n"
    )
    (tmp_path / "broken_of_test.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_target_gets_the_other_keys(user_package):
    assert call_target("x", {"_target_": "builtins.dict", "a": 1, "b": 2}) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (3, r"data\._target_ must be a dotted path such as my_package\.build, got 3"),
        ("build", r"data\._target_=build names no module"),
        ("nowhere_at_all.build", r"no module 'nowhere_at_all' in the current folder"),
        ("broken_of_test.build", r"broken_of_test needs the module 'not_installed_anywhere'"),
        ("user_package_of_test.build_networks", r"Did you mean 'build_network'\?"),
        ("user_package_of_test.number", r"is a int, not something to call"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(user_package, path, message):
    with pytest.raises(ValueError, match=message):
        locate("data", path)


def test_arguments_the_function_does_not_take_are_refused_before_it_runs(user_package):
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'depth'.*It takes: width"):
        call_target("network", {"_target_": "user_package_of_test.build_network", "depth": 3})


def test_an_own_target_inherits_no_keys_of_the_chosen_yaml():
    options = {"_target_": "mine.build", "depth": 56, "width": 8, "checkpoint": "a.pt"}
    overrides = ["network._target_=mine.build", "network.width=8", "network.checkpoint=a.pt"]
    assert own_options("network", options, overrides) == {
        "_target_": "mine.build",
        "width": 8,
        "checkpoint": "a.pt",
    }


def test_without_an_own_target_all_keys_stay():
    options = {"_target_": "networks.resnet.cifar_resnet", "depth": 56}
    assert own_options("network", options, ["network.depth=56", "data._target_=mine.x"]) == options


def test_added_keys_and_nested_keys_count_as_given():
    options = {"_target_": "mine.build", "size": {"height": 8}, "extra": 1, "depth": 56}
    overrides = ["network._target_=mine.build", "+network.extra=1", "network.size.height=8"]
    assert set(own_options("network", options, overrides)) == {"_target_", "extra", "size"}


def test_a_network_of_the_user_is_built_in_eval_mode(user_package):
    network = build_network(
        {"_target_": "user_package_of_test.build_network", "checkpoint": None, "width": 2}
    )
    assert isinstance(network, nn.Sequential)
    assert not network.training


def test_a_checkpoint_is_loaded(user_package, tmp_path):
    options = {"_target_": "user_package_of_test.build_network"}
    saved = build_network(options)
    torch.save(saved.state_dict(), tmp_path / "my.pt")
    loaded = build_network({**options, "checkpoint": str(tmp_path / "my.pt")})
    assert torch.equal(saved[1].weight, loaded[1].weight)


def test_results_of_the_wrong_type_are_refused(user_package):
    nothing = {"_target_": "user_package_of_test.build_nothing"}
    with pytest.raises(ValueError, match=r"must return a torch\.nn\.Module, got NoneType"):
        build_network(nothing)
    with pytest.raises(ValueError, match=r"must return networks\.data\.DataSplits, got NoneType"):
        build_data(nothing)


def test_a_network_that_does_not_fit_the_data_is_refused():
    data = digits_splits()
    with pytest.raises(
        ValueError, match=r"cannot read one sample of digits, of shape \(1, 1, 8, 8\)"
    ):
        check_outputs(nn.Conv2d(3, 4, 3), data)
    with pytest.raises(ValueError, match=r"scores 7 classes and digits has 10"):
        check_outputs(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), data)
    check_outputs(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data)


def test_importances_are_the_files_of_the_config():
    assert importance_options(None) == {}
    options = importance_options(["taylor", "apoz"])
    assert options == {
        "taylor": {"criterion": "taylor", "scope": "producer"},
        "apoz": {"criterion": "apoz"},
    }


@pytest.mark.parametrize("names", ["l2", ["l3"], [["l2"]], {"l2": 1}])
def test_names_of_no_importance_are_refused(names):
    with pytest.raises(ValueError, match=r"agent\.importances must be null or a list among activa"):
        importance_options(names)
