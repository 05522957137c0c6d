"""The YAML of the decision process composes, and takes the keys of the command line."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import networks.pretrained
from envs.pruning_env import PruningEnv

CONF = Path(__file__).parents[2] / "conf"
ROOT = """
hydra:
  searchpath: [file://{conf}]
defaults:
  - _self_
  - encoder: gatv2
  - budget: band
  - reward: alpha
  - patterns: channel
  - env: autosculpt
"""
STUBS = ("encoder/gatv2", "encoder/mlp")


@pytest.fixture
def build(tmp_path, task):
    """Composes with overrides and builds the environment as the entry point does."""
    (tmp_path / "root.yaml").write_text(ROOT.format(conf=CONF))
    for stub in STUBS:
        if not (CONF / f"{stub}.yaml").exists():
            (tmp_path / stub).parent.mkdir(exist_ok=True)
            (tmp_path / f"{stub}.yaml").write_text(f"name: {stub}\n")

    def run(*overrides):
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            cfg = compose("root", overrides=list(overrides))
        return cfg, PruningEnv(
            task,
            observation=instantiate(cfg.env.observation),
            action=instantiate(cfg.env.action),
            episode=instantiate(cfg.env.episode),
            budget=instantiate(cfg.budget),
            reward=instantiate(cfg.reward),
        )

    return run


@pytest.mark.parametrize(
    ("overrides", "targets"),
    [
        (
            ["env=autosculpt"],
            ["GraphObservation", "PatternAction", "Whole", "Band", "AlphaReward"],
        ),
        (["env=amc"], ["LayerObservation", "RatioAction", "Layerwise", "Wall", "AmcErrorReward"]),
        (
            ["env=amc", "env/episode=whole", "env/observation=graph", "budget=project"],
            ["GraphObservation", "RatioAction", "Whole", "Project", "AmcErrorReward"],
        ),
        (
            ["env=amc", "reward=alpha", "budget=none", "env/action=pattern"],
            ["LayerObservation", "PatternAction", "Layerwise", "Unlimited", "AlphaReward"],
        ),
    ],
    ids=["autosculpt", "amc", "project", "none"],
)
def test_the_env_chooses_its_parts_and_the_command_line_may_differ(overrides, targets, build):
    cfg, env = build(*overrides)
    parts = (cfg.env.observation, cfg.env.action, cfg.env.episode, cfg.budget, cfg.reward)
    assert [part._target_.rpartition(".")[2] for part in parts] == targets
    env.reset()
    env.step(env.action_space.sample())


def test_the_keys_of_the_command_line_reach_the_parts(build):
    cfg, _ = build(
        "env=autosculpt",
        "env/action=ratio",
        "env.max_ratio=0.6",
        "env.max_steps=7",
        "budget.relative_macs=0.4",
        "budget.delta=0.1",
        "reward.alpha=0.25",
    )
    assert instantiate(cfg.env.action).max_ratio == 0.6
    assert instantiate(cfg.env.episode).max_steps == 7
    assert instantiate(cfg.budget).relative_macs == 0.4
    assert instantiate(cfg.budget).delta == 0.1
    assert instantiate(cfg.reward).alpha == 0.25


def test_every_env_can_say_what_its_observation_and_its_steps_know_of_local_errors(build):
    for env in ("allocation", "amc", "autosculpt", "ratios"):
        cfg, _ = build(
            f"env={env}", "env/shaping=local_error", "env.shaping.weight=0.2",
            "env.observation.local_errors=true", "env.observation.sensitivities=[0.5]",
        )  # fmt: skip
        assert instantiate(cfg.env.shaping).weight == 0.2
        observation = instantiate(cfg.env.observation)
        assert observation.local_errors
        assert observation.sensitivities == (0.5,)
        assert build(f"env={env}")[0].env.shaping == {}


def test_a_senseless_command_line_is_refused_by_name(build):
    with pytest.raises(ValueError, match="env/episode=whole and budget=wall do not go together"):
        build("env=autosculpt", "budget=wall")


def test_every_yaml_of_these_groups_begins_with_a_comment_and_names_a_target():
    for folder in ("env", "budget", "reward"):
        for path in (CONF / folder).rglob("*.yaml"):
            lines = path.read_text().splitlines()
            assert lines[0].startswith("# "), path
            body = next(line for line in lines if not line.startswith("#"))
            assert body.startswith(("_target_:", "defaults:")) or body == "{}", path


@pytest.mark.parametrize("env_id", ["AMC-v0", "AutoSculpt-v0"])
def test_make_needs_no_arguments_and_finds_the_same_cached_weights_as_a_run(env_id, monkeypatch):
    recipes = []
    monkeypatch.setattr(
        networks.pretrained, "pretrain", lambda network, samples, recipe: recipes.append(recipe)
    )
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert recipes == [instantiate(compose("pretrain/digits").pretrain)]
        patterns = instantiate(compose("patterns/channel").patterns)
    assert env.unwrapped.task.library == patterns
