"""The report page: what it reads, what it works out, and how a browser shows it."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import yaml

from experiments.report import main
from experiments.report_charts import Scale, front, hypervolume, nice_ticks, pareto
from experiments.report_curves import reward_name, search_curves
from experiments.report_runs import find_runs
from experiments.report_structure import read_structure

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
GRAPH = {
    "groups": [
        {"name": "conv1", "units": [0, 1, 2, 3]},
        {"name": "conv2", "units": [4, 5]},
    ],
    "feature_maps": [
        {"name": "input", "units": [-1]},
        {"name": "conv1", "units": [0, 1, 2, 3]},
        {"name": "conv2", "units": [4, 5]},
        {"name": "concat", "units": [0, 1, 2, 3, 4, 5]},
        {"name": "fc", "units": [-1, -1]},
    ],
    "edges": [
        {"source": 0, "target": 1, "kind": "conv", "operator": 0},
        {"source": 1, "target": 2, "kind": "conv", "operator": 1},
        {"source": 2, "target": 3, "kind": "concat", "operator": None},
        {"source": 1, "target": 3, "kind": "concat", "operator": None},
        {"source": 3, "target": 4, "kind": "linear", "operator": 2},
    ],
}
PLAN = {
    "decisions": [
        {"site": "conv1", "pattern": "channel_0.5", "ratio": None},
        {"site": "conv2", "pattern": None, "ratio": 0.0},
    ],
    "keep": {"conv1": [1, 3]},
}


def write_run(folder, *, agent="ppo", env="autosculpt", seed=0, alpha=0.5, test=0.8, macs=500):
    folder.mkdir(parents=True)
    network = {
        "reward_accuracy": test, "reward_loss": 0.5, "test_accuracy": test,
        "test_accuracy_finetuned": test + 0.1, "macs": macs, "nonzero_macs": macs, "params": 50,
        "nonzero_params": 50, "latency_ms": 1.5, "latency_onnxruntime_ms": None,
    }  # fmt: skip
    base = network | {
        "macs": 1000, "params": 100, "test_accuracy": 0.95, "test_accuracy_finetuned": None,
    }  # fmt: skip
    summary = {
        "network": "small <net>", "data": "digits", "agent": agent, "env": env, "seed": seed,
        "evaluations": 3, "search_seconds": 2.0, "best_reward": 0.7, "base": base,
        "pruned": network, "uniform": network | {"test_accuracy": 0.7},
        "budget": {"relative_macs": 0.6, "met": True},
        "latency": {"runtime": "torch eager", "batch": 32, "threads": 1},
    }  # fmt: skip
    config = {
        "seed": seed, "agent": {"_target_": f"agents.{agent}", "seed": seed},
        "env": {"name": env}, "reward": {"alpha": alpha}, "network": {"_target_": "networks.n"},
        "data": {"_target_": "my_package.data"},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "graph.json").write_text(json.dumps(GRAPH))
    (folder / "plan.json").write_text(json.dumps(PLAN))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["evaluations", "score", "accuracy", "loss", "macs", "met"])
        writer.writerows([[1, 0.4, test - 0.2, 1.0, 550, True], [2, -1, "", "", 900, False]])
        writer.writerow([3, 0.7, test, 0.5, macs, True])
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(f"- agent={agent}\n- 'frozen=[a,b]'\n")
    return folder


@pytest.fixture
def sweep(tmp_path):
    for number, (alpha, seed) in enumerate([(0.2, 0), (0.2, 1), (0.8, 0), (0.8, 1)]):
        write_run(
            tmp_path / "sweep" / f"{number}_ppo", alpha=alpha, seed=seed,
            test=0.8 - alpha / 10 + seed / 50, macs=int(600 - 200 * alpha),
        )  # fmt: skip
    return tmp_path / "sweep"


def test_the_front_keeps_what_nothing_beats_in_both():
    points = [(0.5, 0.8), (0.5, 0.7), (0.6, 0.75), (0.3, 0.4), (0.9, 0.9)]
    assert front(points) == ((0.3, 0.4), (0.5, 0.8), (0.9, 0.9))


def test_the_hypervolume_is_the_area_of_the_union():
    # rectangles 0.7 x 0.4, 0.5 x 0.8, 0.1 x 0.9: 0.28 + 0.5 * 0.4 + 0.1 * 0.1
    points = [(0.3, 0.4), (0.5, 0.8), (0.9, 0.9), (0.6, 0.1)]
    assert hypervolume(points) == pytest.approx(0.28 + 0.2 + 0.01)
    assert hypervolume([(1.0, 0.9)]) == 0


def test_ticks_are_round_numbers_inside():
    assert nice_ticks(0.573, 0.91) == [0.6, 0.7, 0.8, 0.9]
    assert nice_ticks(0, 200) == [0, 50, 100, 150, 200]


def test_a_scale_keeps_what_is_outside_on_its_edge():
    scale = Scale(0, 10, 100, 200)
    assert [scale(value) for value in (-5, 0, 2.5, 10, 99)] == [100, 100, 125, 200, 200]


def test_runs_of_a_sweep_are_called_by_what_they_differ_in(sweep):
    runs = find_runs(sweep)
    assert [(run.label, run.summary["seed"]) for run in runs] == [
        ("alpha 0.2", 0), ("alpha 0.2", 1), ("alpha 0.8", 0), ("alpha 0.8", 1),
    ]  # fmt: skip
    write_run(sweep / "10_random", agent="random", alpha=0.2)
    labels = [run.label for run in find_runs(sweep)]
    assert labels[-1] == "random alpha 0.2"  # 10 comes after 9, not after 1
    assert labels[0] == "ppo alpha 0.2"


def test_runs_are_called_by_what_was_asked_for_where_that_explains_all(sweep):
    for folder in sweep.iterdir():
        alpha = yaml.safe_load((folder / "config.yaml").read_text())["reward"]["alpha"]
        seed = int(folder.name[0]) % 2
        overrides = [f"reward=kind_{alpha}", f"seed={seed}", "logger=csv"]
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    labels = [run.label for run in find_runs(sweep)]
    assert labels == ["reward kind_0.2", "reward kind_0.2", "reward kind_0.8", "reward kind_0.8"]
    # one of them was not asked for its alpha, so the choices do not explain the difference
    (sweep / "3_ppo" / ".hydra" / "overrides.yaml").write_text("- reward=kind_0.2\n")
    assert find_runs(sweep)[-1].label == "alpha 0.8"


def test_the_numbers_and_the_picture_of_a_sweep(sweep, tmp_path, capsys):
    numbers, picture = tmp_path / "out" / "sweep.csv", tmp_path / "out" / "sweep.png"
    assert main([str(sweep), "--csv", str(numbers), "--picture", str(picture)]) == 0
    rows = list(csv.DictReader(numbers.open(newline="")))
    assert [(row["label"], row["seed"], row["relative_macs"]) for row in rows] == [
        ("alpha 0.2", "0", "0.5600"), ("alpha 0.2", "1", "0.5600"),
        ("alpha 0.8", "0", "0.4400"), ("alpha 0.8", "1", "0.4400"),
    ]  # fmt: skip
    assert (rows[1]["test_accuracy"], rows[1]["uniform_test_accuracy"]) == ("0.8000", "0.7000")
    # seeds of alpha 0.2: test accuracies 0.78 and 0.80, sample deviation 0.02 / sqrt(2)
    printed = capsys.readouterr().out
    assert "| alpha 0.2 | 2 | 0.560 ± 0.000 | 0.700 ± 0.000 | 0.790 ± 0.014 |" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_comparison_gives_its_own_labels(tmp_path):
    write_run(tmp_path / "c" / "seed_0", agent="amc", env="amc")
    write_run(tmp_path / "c" / "old")  # not of this comparison
    about = {
        "overrides": ["budget.relative_macs=0.5"],
        "rows": {"uniform": [], "mine": ["agent=amc", "env=amc"]},
        "runs": [{"folder": "seed_0", "label": "mine"}],
    }
    (tmp_path / "c" / "comparison.json").write_text(json.dumps(about))
    (run,) = find_runs(tmp_path / "c")
    assert run.label == "mine"
    assert run.overrides == ("agent=amc", "frozen=[a,b]")  # what the run has kept of itself
    (run.folder / ".hydra" / "overrides.yaml").unlink()
    (run,) = find_runs(tmp_path / "c")
    assert run.overrides == (
        "logger=csv", "fine_tune_uniform=false", "search.keep=accuracy",
        "budget.relative_macs=0.5", "agent=amc", "env=amc", "seed=0",
    )  # fmt: skip


def test_what_is_not_finished_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run"):
        find_runs(tmp_path)


def test_runs_of_two_networks_are_refused(sweep):
    folder = write_run(sweep / "4_ppo")
    summary = json.loads((folder / "summary.json").read_text())
    summary["network"] = "other"
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="are of several networks"):
        main([str(sweep)])


def test_the_structure_counts_what_stays_in_every_feature_map(tmp_path):
    structure = read_structure({"a": write_run(tmp_path / "a")})
    kept = {row.name: row.kept[0] for row in structure.rows}
    assert (kept["conv1"].channels, kept["conv1"].share) == (2, 0.5)
    assert kept["conv1"].pattern == "channel_0.5"
    assert (kept["conv2"].channels, kept["conv2"].pattern) == (2, "")  # not named: all stay
    assert kept["concat"].channels == 4
    assert [row.name for row in structure.rows if row.is_fixed] == ["input", "fc"]
    assert [link.style for link in structure.links].count("skip") == 1


def test_the_curve_and_the_front_of_one_run(tmp_path):
    (run,) = find_runs(write_run(tmp_path / "a"))
    reward, accuracy = search_curves([run], {run.label: "s0"})
    assert reward.chart.y_label == "best reward so far"
    assert accuracy.chart.y_label == "reward-split accuracy of the kept plan"
    for curves in (reward, accuracy):
        assert curves.labels == (run.label,)
        (line,) = curves.chart.lines
        assert line.path.count("V") == 1  # one improvement, at the third evaluation
    found = pareto([run])
    np.testing.assert_allclose(found.points, [(0.5, 0.8)])
    assert found.hypervolume == pytest.approx(0.4)


@pytest.mark.parametrize("runs", ["", "0_ppo"])
def test_a_uniform_network_that_was_not_fine_tuned_is_left_out(sweep, runs, tmp_path):
    for file in sweep.glob("*/summary.json"):
        summary = json.loads(file.read_text())
        summary["uniform"]["test_accuracy_finetuned"] = None
        file.write_text(json.dumps(summary))
    assert main([str(sweep / runs), "--picture", str(tmp_path / "picture.png")]) == 0
    text = (sweep / runs / "report.html").read_text()
    assert "fine-tuned alike" not in text
    assert ("uniform, equal MACs" in text) == bool(runs)  # one run is about the reward split
    assert not re.search(r"\bnan\b|Undefined|None", text)


def heights(curves, style="s0"):
    """The first and the last height of a line; lower is higher on the page."""
    (path,) = [line.path for line in curves.chart.lines if line.style == style]
    return float(re.search(r"M[\d.]+,([\d.]+)", path)[1]), float(re.findall(r"V([\d.]+)", path)[-1])


def test_a_reward_that_pays_for_macs_may_rise_while_the_accuracy_falls(tmp_path):
    folder = write_run(tmp_path / "a", test=0.6)
    rows = ["evaluations,score,accuracy,loss,macs,met"]
    rows += ["1,0.5,0.9,0.2,600,True", "2,0.55,0.5,0.9,520,False", "3,0.7,0.6,0.5,500,True"]
    (folder / "metrics.csv").write_text("\n".join(rows))
    (run,) = find_runs(folder)
    reward, accuracy = search_curves([run], {run.label: "s0"})
    first, last = heights(reward)
    assert last < first
    first, last = heights(accuracy)
    assert last > first
    assert reward.note == "Paid by reward, alpha 0.5."
    assert "highest reward so far" in accuracy.note
    kept_by_accuracy = replace(run, config={**run.config, "search": {"keep": "accuracy"}})
    _, accuracy = search_curves([kept_by_accuracy], {run.label: "s0"})
    assert "highest accuracy so far" in accuracy.note


def test_what_was_measured_on_more_images_counts_more(tmp_path):
    folder = write_run(tmp_path / "a", test=0.6)
    rows = ["evaluations,score,accuracy,loss,macs,met,num_samples"]
    rows += ["1,0.9,0.9,0.2,600,True,100", "3,0.7,0.6,0.5,500,True,400"]
    (folder / "metrics.csv").write_text("\n".join(rows))
    (run,) = find_runs(folder)
    for curves in search_curves([run], {run.label: "s0"}):
        first, last = heights(curves)
        assert last > first


def test_rewards_of_different_kinds_get_a_chart_each(sweep):
    runs = find_runs(sweep)
    charts = search_curves(runs, {"alpha 0.2": "s0", "alpha 0.8": "s1"})
    assert [curves.labels for curves in charts] == [
        ("alpha 0.2",), ("alpha 0.8",), ("alpha 0.2", "alpha 0.8"),
    ]  # fmt: skip
    assert [line.style for line in charts[1].chart.lines] == ["s1"]
    assert len(charts[2].chart.areas) == 2  # a range over the seeds of each


def test_a_reward_is_named_with_its_settings(tmp_path):
    (run,) = find_runs(write_run(tmp_path / "a"))
    inner = {"_target_": "envs.rewards.AlphaReward", "alpha": 0.3}
    reward = {"_target_": "envs.SelfCompetitionReward", "window": 9, "inner": inner, "x": None}
    named = reward_name(replace(run, config={"reward": reward}))
    assert named == "SelfCompetitionReward, window 9, inner AlphaReward, inner alpha 0.3"


def test_the_page_is_self_contained_and_escapes_names(sweep, capsys):
    assert main([str(sweep)]) == 0
    text = (sweep / "report.html").read_text()
    assert "small &lt;net&gt;" in text
    assert "<net>" not in text
    for outside in ("http:", "https:", "<script", "url(", "@import", "src="):
        assert outside not in text
    assert text.count("<summary>alpha 0.2, seed") == 2
    assert "python train_agent.py agent=ppo &#39;frozen=[a,b]&#39;" in text
    assert "--data my_package.data" in text
    assert "Hypervolume" in text
    assert not re.search(r"\bnan\b|Undefined|None", text)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_the_page(sweep, tmp_path, width):
    colours = set()
    for number, folder in enumerate((sweep, sweep / "0_ppo")):
        main([str(folder)])
        for scheme in (0, 1):  # dark, light
            probe = tmp_path / "probe.html"
            probe.write_text(PROBE % (width, html.escape((folder / "report.html").read_text())))
            shown = subprocess.run(
                [
                    CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                    "--hide-scrollbars",
                    "--disable-background-networking", "--disable-sync", "--enable-logging=stderr",
                    f"--user-data-dir={tmp_path}/profile{number}{scheme}", "--dump-dom",
                    f"--blink-settings=preferredColorScheme={scheme}", probe.as_uri(),
                ],
                capture_output=True, text=True, timeout=120, check=True,
            )  # fmt: skip
            assert ":CONSOLE" not in shown.stderr
            result = re.search(r'<pre id="result">(.*?)</pre>', shown.stdout)
            assert result is not None
            measured = json.loads(html.unescape(result.group(1)))
            assert measured["client"] == width
            assert measured["scroll"] <= width
            assert measured["outside"] == []
            colours.add((scheme, measured["background"]))
    assert len(colours) == 2  # one per scheme
    assert len({colour for _, colour in colours}) == 2


PROBE = """<!doctype html><body><pre id="result"></pre>
<iframe width="%d" height="900" style="border:0" srcdoc="%s"></iframe>
<script>
document.querySelector("iframe").addEventListener("load", event => {
  const page = event.target.contentDocument, root = page.documentElement;
  const outside = [...page.querySelectorAll("main *")].filter(element =>
    !element.closest(".scroll, svg") &&
    element.getBoundingClientRect().right > root.clientWidth + 1);
  document.querySelector("#result").textContent = JSON.stringify({
    client: root.clientWidth, scroll: root.scrollWidth,
    outside: outside.map(element => element.tagName + "." + element.className),
    background: page.defaultView.getComputedStyle(page.body).backgroundColor,
  });
});
</script>"""
