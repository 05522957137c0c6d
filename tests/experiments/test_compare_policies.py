"""The fair comparison: rows, refusals, runs that are done once, and what is read from them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.command_line import CONFIG_FOLDER
from experiments.compare_policies import collect
from experiments.comparison_figures import draw_comparison, line_styles
from experiments.comparison_figures import main as draw_again
from experiments.comparison_results import (
    Comparison,
    CurvePoint,
    RunResult,
    curve_on_grid,
    ending_with,
    read_comparison,
    read_curve,
    statistics,
    write_comparison,
)
from experiments.comparison_rows import Row, differences, make_jobs, read_rows
from experiments.comparison_runs import run_jobs
from experiments.comparison_table import print_comparison

POLICIES = {"uniform": ["agent=uniform"], "ddpg-amc": ["agent=amc", "env=amc"]}
COMPARE = {"seeds": [0], "budgets": None, "study_axes": []}
SMALL = (
    "+network.width=4",
    "pretrain.epochs=2",
    "search.evaluations=3",
    "fine_tune.epochs=0",
    "evaluation.latency.min_run_time=0.01",
    "evaluation.latency.onnxruntime=false",
)


def jobs_of(rows, tmp_path, *common, **compare):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return make_jobs(rows, {**COMPARE, **compare}, common, tmp_path)


def test_rows_are_names_texts_or_mappings():
    own = {"wide": ["agent=random", "env.log_range=2"]}
    entries = ["uniform", "ddpg-amc", "cmaes", "my ppo: agent=ppo env=autosculpt", own]
    assert read_rows(entries, POLICIES) == (
        Row("uniform", ("agent=uniform",)),
        Row("ddpg-amc", ("agent=amc", "env=amc")),
        Row("cmaes", ("agent=cmaes",)),
        Row("my ppo", ("agent=ppo", "env=autosculpt")),
        Row("wide", ("agent=random", "env.log_range=2")),
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "names no row"),
        (["uniforms"], r"no policy 'uniforms'\. Did you mean 'uniform'\?.*a row of your own"),
        (["mine:"], r"'label: agent=NAME key=value \.\.\.', got 'mine:'"),
        (["a b: agent=ppo", "a-b: agent=random"], "would share the folder 'a-b': 'a b' and 'a-b'"),
        (["ppo", "ppo"], "would share the folder 'ppo'"),
    ],
)
def test_rows_that_cannot_be_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        read_rows(entries, POLICIES)


def test_every_row_gets_the_common_overrides_and_its_own(tmp_path):
    rows = read_rows(["ddpg-amc", "uniform"], POLICIES)
    jobs = jobs_of(rows, tmp_path, "budget.relative_macs=0.3", "agent=ppo", seeds=[4, 7])
    assert [(job.row.label, job.seed) for job in jobs] == [
        ("ddpg-amc", 4), ("uniform", 4), ("ddpg-amc", 7), ("uniform", 7),
    ]  # fmt: skip
    config = jobs[2].open_config()
    assert config.agent._target_ == "agents.amc.AMC"
    assert config.budget._target_ == "envs.budgets.Wall"
    assert (config.budget.relative_macs, config.seed, config.agent.seed) == (0.3, 7, 7)
    assert config.measurements_dir == str(tmp_path / "measurements")
    assert "compare" not in config
    assert "hydra" not in config
    assert jobs[2].folder == tmp_path / "relative_macs_0.3" / "ddpg-amc" / "seed_7"
    assert (jobs[2].identity.agent, jobs[2].identity.env) == ("amc", "amc")
    assert jobs[1].identity.env == "allocation"


def test_another_folder_of_measurements_is_kept(tmp_path):
    (job,) = jobs_of(read_rows(["uniform"], POLICIES), tmp_path, "measurements_dir=elsewhere")
    assert job.open_config().measurements_dir == "elsewhere"


@pytest.mark.parametrize(
    "row",
    [
        "uniform",
        "ddpg-amc",
        "mine: agent=ppo env=autosculpt reward.alpha=0.3 encoder=gcn",
        'other: agent=random env=amc "frozen=[]" +budget.tolerance=0.1',
    ],
)
def test_a_run_of_a_comparison_is_one_of_train_agent(row, tmp_path):
    common = ("env=amc", "+network.width=4", "frozen=[stem]", "search.evaluations=7", "agent=ppo")
    (job,) = jobs_of(read_rows([row], POLICIES), tmp_path, *common, budgets=[0.4], seeds=[3])
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        alone = compose("train_agent", overrides=list(job.overrides))
    wanted, found = (OmegaConf.to_container(c, resolve=True) for c in (job.open_config(), alone))
    assert differences(wanted, found) == []
    assert wanted["search"]["keep"] == found["search"]["keep"] == "accuracy"
    assert "compare" not in " ".join(job.overrides)


def test_rows_that_differ_in_libraries_are_runs_of_train_agent(tmp_path):
    entry = {
        "cut": ["agent=random", 'patterns.specs=[{family:dense},{family:"channel",ratio:0.5}]']
    }
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        (job,) = make_jobs(
            read_rows([entry], POLICIES), COMPARE, ["budget.delta=0.1"], tmp_path, "ablate_patterns"
        )
        alone = compose("train_agent", overrides=list(job.overrides))
    wanted, found = (OmegaConf.to_container(c, resolve=True) for c in (job.open_config(), alone))
    assert differences(wanted, found) == []
    assert found["budget"]["cost"] == "nonzero_macs"


def test_budgets_make_a_study_each(tmp_path):
    jobs = jobs_of(read_rows(["uniform"], POLICIES), tmp_path, budgets=[0.3, 0.5])
    assert [job.folder.parts[-3] for job in jobs] == ["relative_macs_0.3", "relative_macs_0.5"]
    assert [job.open_config().budget.relative_macs for job in jobs] == [0.3, 0.5]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x: agent=random importance=taylor", r"'uniform' and 'x' differ in importance\.\w+.*"
         r"compare\.study_axes=\[importance\]"),
        ("x: agent=random evaluation.recalibrate=false", r"differ in evaluation\.recalibrate"),
        ("x: agent=random +data.reward_size=50", r"differ in data\.reward_size"),
        ("x: agent=random fine_tune.epochs=3", r"differ in fine_tune\.epochs"),
        ("x: agent=random search.evaluations=9", r"overrides search\.evaluations, which is the sa"),
        ("x: agent=llm agent.importances=[l2]", r"Row 'x' lets its agent choose importance, which "
         r"all rows .* Leave out agent\.importances, .* 'compare\.study_axes=\[importance\]'"),
        ("x: agent=llm agent.proposes_fine_tune=true", r"lets its agent choose fine_tune, which"),
        ("x: agent=random seed=9", "overrides seed, which is the same for all rows"),
        ("x: agent=ppo env=autosculpt budget.cost=nonzero_macs", "in macs and nonzero_macs"),
        ("x: agent=ppo env=autosculpt budget=none", "has no budget"),
        ("x: agent=random agent.no_such_key=1", r"Row 'x' of compare\.agents: There is no key"),
    ],
)  # fmt: skip
def test_rows_that_differ_in_more_than_the_policy_are_refused(row, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        jobs_of(read_rows(["uniform", row], POLICIES), tmp_path)


def test_a_study_axis_may_differ(tmp_path):
    rows = read_rows(["uniform", "taylor: agent=uniform importance=taylor"], POLICIES)
    assert len(jobs_of(rows, tmp_path, study_axes=["importance"])) == 2
    rows = read_rows(["uniform", "llm: agent=llm agent.importances=[l2]"], POLICIES)
    assert len(jobs_of(rows, tmp_path, study_axes=["importance"])) == 2
    with pytest.raises(ValueError, match="must be a list of sections among network, data"):
        jobs_of(rows, tmp_path, study_axes=["agent"])


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ({"seeds": []}, r"compare\.seeds must be whole numbers, such as \[0,1,2\], got \[\]"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"budgets": [50]}, r"compare\.budgets must be null or relative MACs in \(0, 1\]"),
    ],
)
def test_seeds_and_budgets_out_of_range_are_refused(compare, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        jobs_of(read_rows(["uniform"], POLICIES), tmp_path, **compare)


def test_a_comparison_does_what_is_missing_and_loses_nothing_to_a_failure(tmp_path, capsys):
    common = (*SMALL, f"cache_dir={tmp_path}/cache", "progress_bar=false")
    broken = "broken: agent=cmaes agent.population_size=1"
    rows = read_rows(["uniform", broken, "random"], POLICIES)
    jobs = jobs_of(rows, tmp_path / "all", *common)
    (failure,) = run_jobs(jobs, processes=1)
    assert failure.title == "broken, 0.5 of the MACs, seed 0"
    assert "population_size" in failure.message
    assert "population_size" in failure.log.read_text()

    kept, unfinished = (jobs[index].folder / "summary.json" for index in (0, 2))
    before = kept.stat().st_mtime_ns
    unfinished.unlink()  # as if it had been killed
    jobs = jobs_of(rows[::2], tmp_path / "all", *common)
    assert run_jobs(jobs, processes=2) == ()
    assert kept.stat().st_mtime_ns == before
    assert unfinished.is_file()
    assert "MACs" in (jobs[1].folder / "run.log").read_text()
    # base; uniform, which is its own yardstick; random, and uniform at the MACs of random
    assert len(list((tmp_path / "all" / "measurements").glob("*.json"))) == 4

    comparison = collect(rows, jobs, (), tmp_path / "all", common)
    assert comparison.labels == ("uniform", "random")
    kept_overrides = OmegaConf.load(jobs[1].folder / ".hydra" / "overrides.yaml")
    assert {"env=allocation", "search.keep=accuracy", "agent=random", "seed=0"} < set(
        kept_overrides
    )
    run = comparison.runs[1]
    assert run.folder == "relative_macs_0.5/random/seed_0"
    summary = json.loads(unfinished.read_text())
    assert run.reward_accuracy == summary["pruned"]["reward_accuracy"]
    assert run.reward_accuracy == comparison.curves[-1].accuracy  # kept by accuracy
    assert not any("cache" in text for text in comparison.about["overrides"])
    print_comparison(comparison)
    assert "not separated" in capsys.readouterr().out

    with pytest.raises(ValueError, match=r"other settings \(search\.evaluations\).*compare\.name"):
        run_jobs(jobs_of(rows, tmp_path / "all", *common, "search.evaluations=5"), processes=1)
    shutil.rmtree(tmp_path / "all")
    with pytest.raises(ValueError, match="No run of the comparison"):
        collect(rows, jobs, (), tmp_path / "all", common)


METRICS_CSV = """evaluations,accuracy,loss,met
1,0.5,2.0,True
2,0.9,0.1,False
3,,,True
4,0.4,1.5,True
4,0.5,2.0,True
6,0.7,1.0,True
"""


def test_a_curve_is_the_best_so_far_within_budget(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS_CSV)
    points = read_curve(tmp_path / "metrics.csv", "ppo", 0.5, 0)
    assert [(p.evaluations, p.accuracy, p.loss) for p in points] == [
        (1, 0.5, 2.0), (4, 0.5, 1.5), (6, 0.7, 1.0),
    ]  # fmt: skip
    grid = np.arange(0, 8)
    expected = [np.nan, 2.0, 2.0, 2.0, 1.5, 1.5, 1.0, 1.0]
    np.testing.assert_array_equal(curve_on_grid(points, "loss", grid), expected)


def test_a_curve_leaves_out_what_saw_a_part_of_the_images(tmp_path):
    lines = METRICS_CSV.splitlines()
    seen = ("num_samples", 100, 400, 0, 400, 400, 200)
    file = tmp_path / "metrics.csv"
    file.write_text("\n".join(f"{line},{n}" for line, n in zip(lines, seen, strict=True)))
    points = read_curve(file, "ppo", 0.5, 0)
    assert [(p.evaluations, p.accuracy, p.loss) for p in points] == [(4, 0.4, 1.5), (4, 0.5, 1.5)]


def test_a_curve_ends_no_lower_than_the_kept_plan(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS_CSV)
    points = read_curve(tmp_path / "metrics.csv", "ppo", 0.5, 0)
    kept = RunResult("ppo", 0.5, 0, "f", 9, 1.0, 0.49, True, 0.8, 1.2, 0.5, None)
    assert ending_with(points, kept)[-1] == CurvePoint("ppo", 0.5, 0, 9, 0.8, 1.0)
    worse = RunResult("ppo", 0.5, 0, "f", 9, 1.0, 0.49, True, 0.6, 1.2, 0.5, None)
    assert ending_with(points, worse) == points


def made_up(values, metric="test_accuracy"):
    runs = []
    for label, seeds in values.items():
        for seed, value in enumerate(seeds):
            fields = dict.fromkeys(("reward_accuracy", "reward_loss", "test_accuracy"), 0.5)
            fields |= {"test_accuracy_finetuned": None, metric: value}
            runs.append(RunResult(label, 0.5, seed, "f", 9, 1.0, 0.49, True, **fields))
    curves = [
        CurvePoint(run.label, 0.5, run.seed, at, run.test_accuracy * at / 9, 9 / at)
        for run in runs
        for at in (1, 5, 9)
    ]
    base = {"reward_accuracy": 0.9, "test_accuracy": 0.9}
    about = {"network": "n", "evaluations": 9, "base": base, "rows": {k: [] for k in values}}
    return Comparison(about, tuple(runs), tuple(curves))


def test_statistics_hold_every_row_against_uniform_and_random():
    found = statistics(made_up({"uniform": [0.1] * 3, "ppo": [0.2, 0.3, 0.4], "random": [0.3] * 3}))
    row = next(r for r in found if (r["label"], r["metric"]) == ("ppo", "test_accuracy"))
    assert row["mean"] == pytest.approx(0.3)
    assert row["interquartile_mean"]["value"] == pytest.approx(0.3)
    assert row["over_uniform"]["beats"] == "yes"
    assert row["over_random"]["beats"] == "not separated"
    assert row["over_random"]["probability"]["value"] == 0.5
    assert not any(r["metric"] == "test_accuracy_finetuned" for r in found)


def test_a_lower_loss_is_better():
    found = statistics(made_up({"uniform": [2.0] * 3, "ppo": [1.0, 1.1, 1.2]}, "reward_loss"))
    row = next(r for r in found if (r["label"], r["metric"]) == ("ppo", "reward_loss"))
    assert row["over_uniform"]["beats"] == "yes"


def test_files_give_back_what_was_written_and_draw_the_same_figures(tmp_path, capsys):
    comparison = made_up({"uniform": [0.1, 0.1], "ppo": [0.2, 0.4]})
    write_comparison(comparison, tmp_path / "study")
    again = read_comparison(tmp_path / "study.json")
    assert again.runs == comparison.runs
    assert again.about == comparison.about
    assert [p.evaluations for p in again.curves] == [p.evaluations for p in comparison.curves]
    draw_comparison(comparison, tmp_path / "study")
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(first) == {"study_curves.png", "study_test.png"}
    assert draw_again([str(tmp_path / "study.json")]) == 0
    assert first["study_test.png"] == (tmp_path / "study_test.png").read_bytes()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a comparison of format 1"):
        read_comparison(tmp_path / "other.json")


def test_yardsticks_look_the_same_in_every_figure():
    few, many = line_styles(["uniform", "ppo"]), line_styles(["random", "ppo", "uniform"])
    assert few["uniform"] == many["uniform"]
    assert few["ppo"] == many["ppo"]
    styles = line_styles([f"agent {index}" for index in range(20)])
    assert len({str(style) for style in styles.values()}) == 20
