"""Errors as the user sees them."""

from __future__ import annotations

import sys
import warnings

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.command_line import (
    CONFIG_FOLDER,
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    closest,
    comes_from,
    explain,
    report_error,
    run_command,
    run_hydra_command,
)


def message_of_override(*overrides, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_agent.py", *overrides])
    with (
        initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"),
        pytest.raises(HydraException) as caught,
    ):
        compose("train_agent", overrides=list(overrides))
    return explain(caught.value)


def test_a_wrong_name_lists_the_choices_and_the_nearest(monkeypatch):
    message = message_of_override("env=autosculp", monkeypatch=monkeypatch)
    assert message == (
        "There is no env 'autosculp'. Did you mean 'autosculpt'? The choices are: allocation, "
        "amc, autosculpt, ratios."
    )


def test_a_wrong_key_names_the_nearest_key_of_its_section(monkeypatch):
    message = message_of_override("reward.alhpa=0.3", monkeypatch=monkeypatch)
    assert message.startswith("There is no key 'reward.alhpa'. Did you mean 'alpha'?")
    assert "Write +reward.alhpa=VALUE to add a new key." in message


def test_a_wrong_root_key_names_the_nearest_root_key(monkeypatch):
    message = message_of_override("sed=3", monkeypatch=monkeypatch)
    assert message.startswith("There is no key 'sed'. Did you mean 'seed'?")


def test_the_keys_shown_are_those_of_the_chosen_group(monkeypatch):
    message = message_of_override("budget=none", "budget.delta=0.1", monkeypatch=monkeypatch)
    assert "relative_macs" not in message


def test_an_unreadable_override_is_one_line(monkeypatch):
    message = message_of_override("reward.alpha=[0", monkeypatch=monkeypatch)
    assert message.startswith("Cannot read the override 'reward.alpha=[0'")
    assert "\n" not in message


def test_several_values_without_a_sweep_ask_for_m():
    from hydra.errors import ConfigCompositionException

    error = ConfigCompositionException(
        "Ambiguous value for argument 'agent=ppo,ddpg'\n1. To use it as a list, ..."
    )
    assert explain(error) == (
        "agent=ppo,ddpg names several values. Add -m to run a job for each, or write "
        "'agent=[ppo,ddpg]' for a list."
    )


def test_a_missing_value_names_its_key():
    config = OmegaConf.create({"data": {"root": "???"}})
    with pytest.raises(Exception, match="root") as caught:
        OmegaConf.to_container(config, throw_on_missing=True)
    assert explain(caught.value) == (
        "data.root has no value. Give it on the command line: data.root=VALUE."
    )


def test_what_a_constructor_refuses_is_shown_with_its_section():
    config = OmegaConf.create({"reward": {"_target_": "envs.rewards.AlphaReward", "alpha": 3}})
    with pytest.raises(HydraException) as caught:
        instantiate(config.reward)
    message = explain(caught.value)
    assert message.startswith("reward: ")
    assert "3" in message
    assert "alpha" in message


def test_a_key_that_a_constructor_does_not_take_is_the_users_error():
    config = OmegaConf.create({"reward": {"_target_": "envs.rewards.AlphaReward", "beta": 3}})
    with pytest.raises(HydraException) as caught:
        instantiate(config.reward)
    assert "unexpected keyword argument 'beta'" in explain(caught.value)


def test_a_target_that_does_not_exist_is_the_users_error():
    config = OmegaConf.create({"reward": {"_target_": "envs.rewards.NoReward"}})
    with pytest.raises(HydraException) as caught:
        instantiate(config.reward)
    message = explain(caught.value)
    assert message.startswith("reward: Error locating target 'envs.rewards.NoReward'.")
    assert "HYDRA_FULL_ERROR" not in message


def test_a_refusal_of_ours_is_a_message():
    with pytest.raises(ValueError, match="seed") as caught:
        raise ValueError("seed must be 0 or more, got -1.")
    assert explain(caught.value) == "seed must be 0 or more, got -1."


def test_a_value_error_nobody_raised_on_purpose_is_a_bug():
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("three")
    assert explain(caught.value) is None


def test_a_value_error_of_an_installed_package_is_a_bug():
    import torch

    with pytest.raises(ValueError, match="Invalid beta") as caught:
        torch.optim.Adam([torch.zeros(1, requires_grad=True)], betas=(2.0, 2.0))
    assert explain(caught.value) is None


def test_errors_are_traced_to_the_package_that_raised_them():
    import torch

    with pytest.raises(ValueError, match="Invalid beta") as caught:
        torch.optim.Adam([torch.zeros(1, requires_grad=True)], betas=(2.0, 2.0))
    assert comes_from(caught.value, "stable_baselines3", "torch")
    assert not comes_from(caught.value, "stable_baselines3")
    assert not comes_from(ValueError("never raised"), "torch")


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_sweep_flag_may_stand_between_overrides(flag, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_agent.py", "seed=0,1", flag, "agent=ppo,uniform"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    seen = []
    run_hydra_command(lambda: seen.extend(sys.argv))
    assert seen == ["train_agent.py", flag, "seed=0,1", "agent=ppo,uniform"]


def test_other_errors_are_bugs():
    assert explain(KeyError("x")) is None
    assert explain(AssertionError("the cost model is wrong")) is None


def test_a_full_disk_is_the_users_to_mend():
    assert explain(OSError(28, "No space left on device", "/runs/metrics.csv")) == (
        "No space left on device: /runs/metrics.csv"
    )


def test_a_user_error_prints_one_line_and_a_bug_its_traceback(capsys, monkeypatch):
    monkeypatch.delenv("TOPIARY_TRACEBACK", raising=False)
    assert report_error(OSError(13, "Permission denied", "runs")) == EXIT_USER_ERROR
    assert capsys.readouterr().err == "error: Permission denied: runs\n"
    assert report_error(KeyError("x")) == EXIT_BUG
    assert "KeyError: 'x'" in capsys.readouterr().err


def test_a_traceback_is_shown_when_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("TOPIARY_TRACEBACK", "1")
    try:
        raise ValueError("wrong")
    except ValueError as error:
        report_error(error)
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.endswith("error: wrong\n")


def test_hints_are_given_only_for_near_names():
    assert closest("pppo", ["ppo", "ddpg"]) == " Did you mean 'ppo'?"
    assert closest("zzz", ["ppo", "ddpg"]) == ""


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(KeyboardInterrupt(), EXIT_INTERRUPTED), (OSError(13, "no"), EXIT_USER_ERROR)],
)
def test_a_command_leaves_with_the_code_of_its_error(error, exit_code, monkeypatch):
    def fail():
        raise error

    with pytest.raises(SystemExit) as left:
        run_command(fail)
    assert left.value.code == exit_code
