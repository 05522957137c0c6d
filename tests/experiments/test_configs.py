"""Every YAML of conf/ composes with the defaults, and every key of it resolves."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.command_line import CONFIG_FOLDER
from experiments.comparison_rows import read_rows
from experiments.search_stage import build_parts

FILES = sorted(CONFIG_FOLDER.rglob("*.yaml"))
CHOICES = [
    f"{file.parent.relative_to(CONFIG_FOLDER).as_posix()}={file.stem}"
    for file in FILES
    if file.parent not in (CONFIG_FOLDER, CONFIG_FOLDER / "compare")
]


@pytest.fixture(scope="module")
def conf():
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        yield


def test_there_is_one_main_config_and_four_studies():
    names = [file.stem for file in FILES if file.parent == CONFIG_FOLDER]
    studies = ["ablate_patterns", "compare_policies", "iterative", "transfer"]
    assert sorted(names) == sorted([*studies, "train_agent"])
    assert len(CHOICES) > 30


def test_the_comparison_has_every_key_of_the_main_job(conf):
    study, job = compose("compare_policies"), compose("train_agent", overrides=["env=allocation"])
    assert set(study) == {*job, "compare"}
    assert set(study.compare.agents) == set(study.compare.policies)
    assert {key for key in job if study[key] != job[key]} == {
        "fine_tune_uniform", "logger", "resume", "search",
    }  # fmt: skip
    assert study.search.keep == "accuracy"


def test_the_ablation_is_a_comparison_at_equal_weights_that_are_left(conf):
    study = compose("ablate_patterns")
    ours = compose("compare_policies", overrides=["env=autosculpt"])
    assert {key for key in ours if study[key] != ours[key]} == {"budget", "compare"}
    assert {key for key in ours.budget if study.budget[key] != ours.budget[key]} == {"cost"}
    theirs, own = (OmegaConf.to_container(config.compare) for config in (ours, study))
    assert {key for key in theirs if own[key] != theirs[key]} == {"agents"}


def test_stages_have_every_key_of_the_main_job(conf):
    study, job = compose("iterative"), compose("train_agent", overrides=["env=allocation"])
    assert set(study) == {*job, "iterative"}
    assert {key for key in job if study[key] != job[key]} == {"logger", "resume"}


def test_the_study_of_transfer_has_every_key_of_the_main_job(conf):
    overrides = ["env=allocation", "agent=imagination"]
    study, job = compose("transfer"), compose("train_agent", overrides=overrides)
    assert set(study) == {*job, "transfer"}
    assert {key for key in job if study[key] != job[key]} == {"logger", "search"}
    plain = OmegaConf.to_container(study.transfer, resolve=False)
    assert set(plain["sources"]) <= set(plain["networks"])
    assert plain["policy_kwargs"]["offset_scale"] == 0.0


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_resolves(conf, choice):
    needed = ["agent=imagination"] if choice.startswith("agent/model=") else []
    config = compose("train_agent", overrides=[*needed, choice])
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert plain["network"]["_target_"].count(".") >= 1
    assert plain["seed"] == 0


@pytest.mark.parametrize("study", ["default", "levers"])
def test_every_row_of_a_study_is_an_agent_in_an_environment(conf, study):
    compare = compose("compare_policies", overrides=[f"compare={study}"]).compare
    rows = read_rows(list(compare.agents), OmegaConf.to_container(compare.policies))
    assert len(rows) == len({row.overrides for row in rows})
    for row in rows:
        config = compose("compare_policies", overrides=list(row.overrides))
        parts = build_parts(config)
        assert (parts["shaping"] is not None) == ("env/shaping=local_error" in row.overrides)
        assert config.agent._target_


def test_the_defaults_are_those_of_the_first_command(conf):
    config = compose("train_agent", return_hydra_config=True)
    choices = config.hydra.runtime.choices
    assert (choices.agent, choices.env, choices.network) == ("ppo", "autosculpt", "digits_resnet")
    assert choices.logger == "wandb"


def test_wandb_is_offline_unless_the_environment_says_otherwise(conf, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert compose("train_agent").logger.wandb.mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert compose("train_agent").logger.wandb.mode == "disabled"


def test_several_loggers_can_be_chosen(conf):
    assert set(compose("train_agent", overrides=["logger=[wandb,tensorboard]"]).logger) == {
        "wandb",
        "tensorboard",
    }
    assert dict(compose("train_agent", overrides=["logger=csv"]).logger) == {}


def test_an_experiment_sets_root_keys_and_groups(conf):
    config = compose("train_agent", overrides=["experiment=resnet56_amc"])
    assert config.budget.relative_macs == 0.5
    assert config.network.depth == 56
    assert config.fine_tune.epochs == 0


def test_the_command_line_wins_over_an_experiment(conf):
    config = compose(
        "train_agent", overrides=["experiment=digits", "search.evaluations=7", "seed=3"]
    )
    assert (config.search.evaluations, config.seed) == (7, 3)


def test_two_sweeps_never_share_a_folder(conf):
    config = compose("train_agent", return_hydra_config=True)
    pattern = OmegaConf.to_container(config.hydra, resolve=False)["sweep"]["dir"]
    assert "%f" in pattern
