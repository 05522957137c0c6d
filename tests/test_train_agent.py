"""The main job, from the command line to the files it leaves."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments import evaluate_pruned
from experiments.command_line import CONFIG_FOLDER
from experiments.identity import RunIdentity
from experiments.pipeline import run_job
from graphs.network_graph import NetworkGraph

ROOT = CONFIG_FOLDER.parent
SMALL = (
    "+network.width=4",
    "pretrain.epochs=2",
    "search.evaluations=4",
    "fine_tune.epochs=1",
    "evaluation.latency.min_run_time=0.01",
    "evaluation.latency.onnxruntime=false",
    "logger=csv",
)
NETWORK_KEYS = {
    "reward_accuracy",
    "reward_loss",
    "test_accuracy",
    "test_accuracy_finetuned",
    "macs",
    "nonzero_macs",
    "params",
    "nonzero_params",
    "latency_ms",
    "latency_onnxruntime_ms",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(cache, tmp_path):
    """Runs the main job in this process and returns its folder and its best reward."""

    def run(*overrides, name="run"):
        folder = tmp_path / name
        folder.mkdir()
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("train_agent", overrides=[*SMALL, f"cache_dir={cache}", *overrides])
        identity = RunIdentity("digits_resnet", "digits", "random", "autosculpt", overrides)
        return folder, run_job(config, folder, identity)

    return run


def command(*arguments, cwd, script=ROOT / "train_agent.py"):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)
    environment.pop("TOPIARY_TRACEBACK", None)
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def without_seconds(path):
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][-1] == "seconds"
    return [row[:-1] for row in rows]


def test_a_run_leaves_every_file_of_the_design(train, capsys):
    folder, best_reward = train("agent=random")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "plan.json",
        "agent.zip",
        "pruned.safetensors",
        "splits.json",
        "metrics.csv",
        "summary.json",
        "figures/search.png",
        "figures/groups.png",
        "figures/tradeoff.png",
        "report.html",
    } <= files
    summary = json.loads((folder / "summary.json").read_text())
    assert {
        "network",
        "data",
        "agent",
        "env",
        "seed",
        "evaluations",
        "episodes",
        "wall_seconds",
        "base",
        "pruned",
        "uniform",
        "budget",
    } <= set(summary)
    for name in ("base", "pruned", "uniform"):
        assert set(summary[name]) == NETWORK_KEYS
        assert 0 <= summary[name]["test_accuracy"] <= 1
        assert isinstance(summary[name]["macs"], int)
    assert summary["base"]["test_accuracy_finetuned"] is None
    assert summary["pruned"]["test_accuracy_finetuned"] is not None
    assert summary["evaluations"] == 4
    assert summary["budget"] == {"relative_macs": 0.5, "cost": "macs", "met": True}
    assert summary["pruned"]["macs"] <= 0.5 * summary["base"]["macs"]
    assert summary["uniform"]["macs"] <= summary["pruned"]["macs"]
    assert summary["best_reward"] == best_reward
    splits = json.loads((folder / "splits.json").read_text())["indices"]
    used = [index for indices in splits.values() for index in indices]
    assert len(used) == len(set(used)) == 1797
    printed = capsys.readouterr().out
    for word in ("base", "pruned", "uniform", "latency", "after fine-tuning", "evaluate_pruned"):
        assert word in printed


def test_channel_counts_are_rounded_on_request(train):
    folder, _ = train("agent=random", "round_to=4", "+network.blocks=[1,1,1]", "network.width=8")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["budget"]["met"]
    assert summary["uniform"]["macs"] <= summary["pruned"]["macs"] <= 0.5 * summary["base"]["macs"]
    kept = json.loads((folder / "plan.json").read_text())["keep"].values()
    assert all(len(indices) % 4 == 0 for indices in kept)
    assert len({len(indices) for indices in kept}) > 1
    assert summary["latency"]["onnxruntime"] is None
    with pytest.raises(ValueError, match="round_to must be a whole number, 1 or more, got 0"):
        train("round_to=0", name="refused")


def test_a_network_of_the_users_is_named_again_when_it_is_reloaded(train, monkeypatch, capsys):
    # builds its attention from numbers, so it is replayed
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "graphs"))
    folder, _ = train(
        "agent=random", "network._target_=digits_vit.build", "pretrain.learning_rate=0.01",
        "fine_tune.learning_rate=0.01", "~network.width", name="own",
    )  # fmt: skip
    assert "own --network digits_vit.build" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"If you trust it, name it: --network digits_vit"):
        evaluate_pruned.main([str(folder)])
    assert evaluate_pruned.main([str(folder), "--network", "digits_vit.build"]) == 0
    assert "Equal to the last image." in capsys.readouterr().out


def test_plans_are_measured_side_by_side(train):
    """Processes that measure change no number."""
    side_by_side, _ = train("agent=random", "env=allocation", "vec_env=subproc", name="pool")
    alone, _ = train("agent=random", "env=allocation", "vec_env.num_envs=2", name="alone")
    assert without_seconds(side_by_side / "metrics.csv") == without_seconds(alone / "metrics.csv")
    summary = json.loads((side_by_side / "summary.json").read_text())
    assert (summary["evaluations"], summary["episodes"]) == (4, 4)
    assert summary["budget"]["met"]


def test_what_the_user_freezes_stays_and_is_reported(train):
    folder, _ = train("agent=random", "frozen=['layer1.*']", name="frozen")
    graph = NetworkGraph.from_json((folder / "graph.json").read_text())
    kept = json.loads((folder / "plan.json").read_text())["keep"]
    assert kept.keys() == {group.name for group in graph.groups}
    assert not any(name.startswith("layer1.") for group in graph.groups for name in group.producers)
    frozen = json.loads((folder / "summary.json").read_text())["frozen"]
    assert frozen["layer1.0.conv1"] == "frozen by 'layer1.*'"
    with pytest.raises(ValueError, match=r"'nope', which matches no operator.*are: conv1"):
        train("agent=random", "frozen=[nope]", name="refused")


def test_the_same_seed_gives_the_same_metrics_but_for_times(train):
    first, _ = train("agent=random", "seed=3", name="first")
    second, _ = train("agent=random", "seed=3", name="second")
    other, _ = train("agent=random", "seed=4", name="other")
    assert without_seconds(first / "metrics.csv") == without_seconds(second / "metrics.csv")
    assert without_seconds(first / "metrics.csv") != without_seconds(other / "metrics.csv")
    assert (first / "plan.json").read_text() == (second / "plan.json").read_text()


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_saved_network_gives_the_same_test_accuracy(train, epochs, capsys):
    folder, _ = train("agent=random", f"fine_tune.epochs={epochs}", "patterns=mixed")
    capsys.readouterr()
    assert evaluate_pruned.main([str(folder)]) == 0
    assert "Equal to the last image." in capsys.readouterr().out


def test_another_accuracy_is_noticed(train, capsys):
    folder, _ = train("agent=uniform")
    summary = json.loads((folder / "summary.json").read_text())
    summary["pruned_file"]["test_accuracy"] += 1 / 400
    (folder / "summary.json").write_text(json.dumps(summary))
    assert evaluate_pruned.main([str(folder)]) == 1
    assert "DIFFERENT." in capsys.readouterr().out


def test_data_that_is_not_topiarys_is_not_run_from_a_file(train):
    folder, _ = train("agent=uniform")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("networks.digits.digits_splits", "os.getcwd"))
    with pytest.raises(ValueError, match=r"built by os\.getcwd, which is not part of Topiary"):
        evaluate_pruned.main([str(folder)])


def test_a_run_that_is_stopped_never_looks_finished(train, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.final_report.fine_tune", stop)
    with pytest.raises(KeyboardInterrupt):
        train("agent=random")
    assert (tmp_path / "run" / "plan.json").is_file()
    assert not (tmp_path / "run" / "summary.json").exists()
    with pytest.raises(ValueError, match="is not finished"):
        evaluate_pruned.main([str(tmp_path / "run")])


def test_ctrl_c_during_the_search_reports_the_best_so_far(train, monkeypatch, capsys):
    from experiments.progress import SearchProgress

    def press(self, record):
        if record.evaluations == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SearchProgress, "write", press)
    folder, _ = train("agent=random", "search.evaluations=50")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stop_reason"] == "interrupted"
    assert summary["evaluations"] < 5
    assert "ended early by Ctrl-C" in capsys.readouterr().out


def test_a_search_that_finds_nothing_says_so(train, tmp_path):
    with pytest.raises(ValueError, match=r"met the budget.*Raise search\.evaluations"):
        train(
            "agent=random",
            "env.max_steps=1",
            "budget.delta=0.000001",
            "search.max_timesteps=3",
        )
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_budget_that_cannot_be_reached_is_refused(train, tmp_path):
    with pytest.raises(ValueError, match=r"budget of 0\.001 .* cannot be reached"):
        train("agent=random", "budget.relative_macs=0.001")
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_help_and_cfg_need_no_torch():
    code = (
        "import sys; sys.argv = ['train_agent.py', '--cfg', 'job']; import runpy\n"
        "try: runpy.run_path('train_agent.py', run_name='__main__')\n"
        "except SystemExit as left: assert not left.code, left.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "seed: 0" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("agent=ppoo",), "There is no agent 'ppoo'. Did you mean 'ppo'?"),
        (
            ("search.evaluation=3",),
            "There is no key 'search.evaluation'. Did you mean 'evaluations'?",
        ),
        (("seed=abc",), "seed must be a whole number"),
        (("network=resnet56_cifar10", "data.root=nowhere"), "No CIFAR-10 python files in"),
        (("network.checkpoint=missing.pt",), "No checkpoint file"),
        (("network._target_=no_such_module.build",), "no module 'no_such_module'"),
    ],
)
def test_a_wrong_command_is_one_clear_error(arguments, message, tmp_path):
    done = command(*arguments, "logger=csv", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.rglob("summary.json"))


def test_a_failing_job_does_not_stop_the_sweep(cache, tmp_path):
    done = command(
        "-m", "reward.alpha=3,0.5", "agent=random", *SMALL, f"cache_dir={cache}", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "alpha" in done.stderr
    assert "This was job 0; the others go on." in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    summaries = list(tmp_path.rglob("summary.json"))
    assert [path.parent.name.split("_")[0] for path in summaries] == ["1"]


USER_PACKAGE = """
import torch
from networks.data import DataSplits, SampleSet, SearchSplits


def build_network():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(6, 2),
    )


def build_data():
    def samples(count):
        return SampleSet(torch.rand(count, 1, 8, 8), torch.arange(count) % 2)
    torch.manual_seed(7)
    train, calibration, reward, test = (samples(n) for n in (40, 10, 20, 30))
    indices = {
        "train": tuple(range(40)),
        "calibration": tuple(range(40, 50)),
        "reward": tuple(range(50, 70)),
    }
    return DataSplits("mine", 2, SearchSplits(train, calibration, reward), test, indices)
"""


def test_a_network_and_data_of_the_user_run_from_the_current_folder(tmp_path):
    (tmp_path / "my_package.py").write_text(USER_PACKAGE)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(6, 2),
    )
    torch.save(network.state_dict(), tmp_path / "my.pt")
    done = command(
        "network._target_=my_package.build_network",
        "network.checkpoint=my.pt",
        "data._target_=my_package.build_data",
        "agent=uniform",
        "logger=csv",
        "fine_tune.epochs=1",
        "evaluation.latency.min_run_time=0.01",
        "evaluation.latency.onnxruntime=false",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (summary_file,) = tmp_path.rglob("summary.json")
    summary = json.loads(summary_file.read_text())
    assert summary["network"] == "my_package.build_network"
    assert summary["data"] == "mine"
    run = summary_file.parent
    needs_names = run_evaluation(run, cwd=tmp_path)
    assert needs_names.returncode == 2
    assert "--data my_package.build_data" in needs_names.stderr
    named = run_evaluation(
        run, "--data=my_package.build_data", "--network=my_package.build_network", cwd=tmp_path
    )
    assert named.returncode == 0, named.stderr
    assert "Equal to the last image." in named.stdout


def run_evaluation(run: Path, *arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}"}
    return subprocess.run(
        [sys.executable, "-m", "experiments.evaluate_pruned", str(run), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
