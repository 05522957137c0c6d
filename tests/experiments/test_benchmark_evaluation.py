"""The cost of an evaluation: which ways are measured, and how the table is written."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from experiments.benchmark import main
from experiments.benchmark_evaluation import Decider, measure_evaluation
from experiments.command_line import CONFIG_FOLDER
from experiments.evaluation_table import (
    BARE,
    HIT,
    MASKED,
    MEANINGS,
    PLAIN,
    POLICY,
    RECALIBRATED,
    EvaluationFigures,
    EvaluationTable,
)
from experiments.parallel_evaluation import ParallelFigures
from experiments.policy_share import AGENTS, PolicyShare, TimedEvaluator
from experiments.stopwatch import Taken
from pruning.evaluation import Evaluator
from pruning.plan import Decision


@pytest.fixture
def table():
    wall = {
        MASKED: [0.3, 0.4, 0.5],
        RECALIBRATED: [0.2, 0.2, 0.2],
        PLAIN: [0.11, 0.2, 0.12],  # 1.1, 1.0 and 1.2 times the bare forward
        BARE: [0.1, 0.2, 0.1],
        HIT: [0.001, 0.001, 0.001],
    }
    taken = {
        name: [Taken(seconds, 0.05 if name == BARE else 0.06) for seconds in rounds]
        for name, rounds in wall.items()
    }
    figures = EvaluationFigures(taken, {PLAIN: 2e-7, BARE: 3e-7})
    return EvaluationTable("my_network", "digits", 0.499, 400, 100, 250, 2, figures)


def test_all_ways_measure_the_same_candidates(tiny_task, tiny_data, monkeypatch):
    asked, rounds, decisions = [], [], []
    evaluate = Evaluator.evaluate

    def spy(self, candidate, overlay=None):
        evaluation = evaluate(self, candidate, overlay)
        asked.append((self.recalibrate, candidate, evaluation))
        return evaluation

    monkeypatch.setattr(Evaluator, "evaluate", spy)
    figures = measure_evaluation(
        tiny_task, tiny_data.search, [2, 3], rounds=3,
        decide=lambda: decisions.append(1), advance=lambda: rounds.append(1),
    )  # fmt: skip
    assert list(figures.taken) == [MASKED, RECALIBRATED, PLAIN, BARE, POLICY, HIT]
    assert all(len(rounds) == 3 for rounds in figures.taken.values())
    assert min(each.wall for rounds in figures.taken.values() for each in rounds) > 0
    assert len(rounds) == len(decisions) == 4  # with the one that does not count

    plain = [entry for entry in asked if not entry[0]]
    assert [evaluation.cached for _, _, evaluation in plain] == [False, True] * 4
    candidates = [candidate for _, candidate, _ in plain[::2]]
    assert {candidate.keep.counts.tobytes() for candidate in candidates} == {
        candidates[0].keep.counts.tobytes()
    }
    assert candidates[0].keep.counts.tolist() == [2, 3]
    assert len(set(candidates)) == 4
    assert [candidate for recalibrates, candidate, _ in asked if recalibrates] == candidates


def test_slim_folded_and_masked_networks_have_the_same_loss(tiny_task, tiny_data):
    figures = measure_evaluation(tiny_task, tiny_data.search, [2, 3], rounds=2)
    assert set(figures.loss_differences) == {PLAIN, BARE}
    assert max(figures.loss_differences.values()) < 1e-5
    assert POLICY not in figures.taken


def test_measuring_leaves_the_task_as_it_was(tiny_task, tiny_data):
    before = {name: value.clone() for name, value in tiny_task.network.state_dict().items()}
    measure_evaluation(tiny_task, tiny_data.search, [2, 3], rounds=1)
    after = tiny_task.network.state_dict()
    assert all((after[name] == value).all() for name, value in before.items())
    assert tiny_task.evaluator.num_evaluations == 0


def test_other_options_of_the_evaluator_are_measured(tiny_task, tiny_data):
    figures = measure_evaluation(
        tiny_task, tiny_data.search, [2, 3], rounds=1,
        options={"fold": False, "channels_last": False, "batch_size": 5},
    )  # fmt: skip
    assert max(figures.loss_differences.values()) < 1e-5


@pytest.mark.parametrize(
    ("env", "steps"), [("env=autosculpt", 1), ("env=amc", 2)], ids=["whole", "layerwise"]
)
def test_a_decision_is_about_every_site_and_measures_nothing(tiny_task, env, steps, monkeypatch):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train_agent", [env, "agent=ppo", "budget=none", "reward=alpha"])
    decider = Decider(config, tiny_task)
    taken = []
    step = decider._env.step
    monkeypatch.setattr(decider._env, "step", lambda action: taken.append(1) or step(action))
    decider()
    assert len(taken) == steps
    for _ in range(3):
        decider()
    assert decider.evaluator.num_evaluations == 4
    assert tiny_task.evaluator.num_evaluations == 0


def test_the_table_as_markdown(table):
    lines = table.to_markdown().splitlines()
    assert lines[0] == (
        "One evaluation of my_network on digits, 49.9% of the MACs left, 400 images in batches of "
        "250, 100 calibration images, 2 thread(s), 3 rounds."
    )
    assert lines[2] == "|  | ms | × bare | CPU ms | × bare CPU | what is measured |"
    assert lines[4].startswith("| masked network | 400.000 | 3.000 | 60.000 | 1.200 | removed")
    # the median of the ratios, not the ratio of the medians
    assert f"| evaluation | 120.000 | 1.100 | 60.000 | 1.200 | {MEANINGS[PLAIN]} |" in lines
    assert f"| bare forward | 100.000 | 1.000 | 50.000 | 1.000 | {MEANINGS[BARE]} |" in lines
    assert not any(line.startswith("| policy") for line in lines)
    assert any("takes 1.100 times the bare forward, 1.200 times in proc" in line for line in lines)
    assert any("within 3.0e-07" in line for line in lines)


def test_the_command_measures_the_network_of_the_config(tmp_path, capsys):
    arguments = [
        "evaluation", "--rounds", "1", "--output", str(tmp_path / "out"), "--candidates", "2",
        "--parallel-rounds", "1", "--search-evaluations", "2",
        "budget.relative_macs=0.6", "pretrain.epochs=1", f"cache_dir={tmp_path}",
        "+network.width=4", "+network.blocks=[1,1,1]", "+data.reward_size=50",
        "progress_bar=false", "agent=ppo",
    ]  # fmt: skip
    assert main(arguments) == 0
    assert "digits_resnet on digits" in capsys.readouterr().out
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert "50 images" in text
    assert all(f"| {name} |" in text for name in MEANINGS)
    assert "2 new candidates take" in text
    assert "Both measured the same to the bit." in text
    assert all(f"| {name} | 2 |" in text for name in AGENTS)


def test_all_that_is_no_measurement_is_the_agents_share():
    evaluations = [Taken(wall=0.1, cpu=0.05), Taken(wall=0.3, cpu=0.15), Taken(wall=0.1, cpu=0.05)]
    share = PolicyShare("mine", 7, evaluations, Taken(wall=0.6, cpu=0.3))
    assert share.cells == ["mine", "3", "7", "100.0", "33.3", "0.200", "0.200"]


def test_a_cache_hit_is_no_measurement(tiny_task):
    evaluator = TimedEvaluator(tiny_task.evaluator)
    candidate = tiny_task.candidate([Decision("conv1", ratio=0.5)])
    first, second = (evaluator.evaluate(candidate) for _ in range(2))
    assert (first.cached, second.cached, len(evaluator.taken)) == (False, True, 1)
    assert (evaluator.num_evaluations, evaluator.num_cache_hits) == (1, 1)


def test_the_ratio_is_the_median_of_the_rounds():
    alone, pooled = ([Taken(wall, 0.0) for wall in walls] for walls in ((2, 3, 4), (1, 2, 4)))
    figures = ParallelFigures(2, 8, alone, pooled, equal=True, load=0.5, cores=2)
    assert figures.ratios == [2.0, 1.5, 1.0]
    assert "3000 ms one after the other and 2000 ms in 2 processes" in figures.sentence
    assert "1.50 times as fast, 1.00 to 2.00. Load 0.5 on 2 cores" in figures.sentence


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--rounds", "0"), "--rounds must be 1 or more, got 0"),
        (("--workers", "-1"), "--workers must be 0 or more, got -1"),
        (("--candidates", "0"), "--candidates must be 1 or more, got 0"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        main(["evaluation", *option])
