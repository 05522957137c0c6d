"""Runs that are killed and go on."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import signal
import subprocess
import sys
import zipfile

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.command_line import CONFIG_FOLDER
from experiments.pipeline import seed_everything
from experiments.resume import FINISHED, NEW, UNFINISHED, choose_run, leave_folder, locked
from experiments.run_folder import RunFolder
from experiments.search_stage import search
from experiments.settings import Settings
from experiments.summary import Summary
from pruning.growth import Growth

ROOT = CONFIG_FOLDER.parent


class Killed(BaseException):
    """Ends a search at once, as far as a process can do that to itself."""


# ---- the search


@pytest.fixture
def run_search(make_tiny_task, tmp_path):
    """Searches on the tiny network; returns the folder and how often something was measured."""

    def run(name, *overrides, killed_at=None, torn=False, growth=None):
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("train_agent", overrides=["budget.relative_macs=0.7", *overrides])
        plain = OmegaConf.to_container(config, resolve=True)
        settings = Settings.from_config(plain, show_progress=False)
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir(exist_ok=True)
        task = make_tiny_task(width=32)  # wide enough for many plans
        task.evaluator.growth = growth
        measured = []
        metric = task.evaluator.metric

        def counting(outputs, targets):
            if len(measured) + 1 == killed_at:
                raise Killed
            measured.append(1)
            return metric(outputs, targets)

        task.evaluator.metric = counting
        seed_everything(settings.seed)
        try:
            found = search(config, settings, task, folder, [])
        except Killed:
            if torn:
                with folder.journal.open("a") as file:
                    file.write('{"evaluation": ')
            return folder, len(measured), None
        assert task.evaluator.journal is None
        return folder, len(measured), found

    return run


def without_seconds(folder):
    with folder.metrics.open(newline="") as file:
        return [row[:-1] for row in csv.reader(file)]


def tensors_of(folder):
    """Everything the agent has learned, by name."""
    found = {}
    with zipfile.ZipFile(folder.agent) as archive:
        for name in archive.namelist():
            if name.endswith(".pth"):
                state = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                found |= _tensors(state, name)
            elif not any(other.endswith(".pth") for other in archive.namelist()):
                found[name] = archive.read(name)
    return found


def _tensors(state, prefix):
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {
        name: value
        for key, child in items
        if isinstance(child, torch.Tensor | dict | list | tuple)
        for name, value in _tensors(child, f"{prefix}/{key}").items()
    }


AGENTS = {
    "ppo": ("agent=ppo", "env=allocation", "agent.n_steps=4", "agent.batch_size=4"),
    "amc": ("agent=amc", "env=amc", "agent.warmup_episodes=2"),
    "ddpg": (
        "agent=ddpg",
        "env=allocation",
        "agent.warmup_episodes=2",
        "agent.learning_starts=2",
    ),
    "cmaes": ("agent=cmaes", "env=allocation"),
    "random": ("agent=random", "env=amc"),
}


@pytest.mark.parametrize("agent", AGENTS)
def test_a_killed_search_that_goes_on_equals_one_in_one_go(agent, run_search):
    overrides = (*AGENTS[agent], "search.evaluations=9", "search.max_timesteps=400")
    whole, num_whole, found = run_search("whole", *overrides)
    assert found.num_replayed == 0
    parts, first, _ = run_search("parts", *overrides, killed_at=4, torn=True)
    assert first == 3
    assert not parts.plan.exists()
    _, second, _ = run_search("parts", *overrides, killed_at=3)
    assert second == 2
    parts, third, resumed = run_search("parts", *overrides)
    assert first + second + third == num_whole >= 6
    assert resumed.num_replayed == 5
    assert resumed.result.evaluations == found.result.evaluations
    assert without_seconds(parts) == without_seconds(whole)
    assert parts.plan.read_text() == whole.plan.read_text()
    there, here = tensors_of(whole), tensors_of(parts)
    assert there.keys() == here.keys()
    assert there
    for name, value in there.items():
        same = torch.equal(value, here[name]) if isinstance(value, torch.Tensor) else None
        assert value == here[name] if same is None else same, name


def test_a_search_that_begins_with_fewer_images_goes_on_just_so(run_search):
    overrides = (*AGENTS["cmaes"], "search.evaluations=9")
    growth = Growth(first=0.5, whole_at=6, finalists=3)
    whole, _, found = run_search("whole", *overrides, growth=growth)
    samples = [record.num_samples for record in found.history if not record.cached]
    assert samples == sorted(samples)
    assert samples[0] < samples[-1] == found.best.num_samples
    assert 6 < found.result.evaluations == found.history[-1].evaluations <= 9
    run_search("parts", *overrides, growth=growth, killed_at=4)
    run_search("parts", *overrides, growth=growth, killed_at=5)  # among the finalists
    parts, _, resumed = run_search("parts", *overrides, growth=growth)
    assert resumed.num_replayed == 7
    assert without_seconds(parts) == without_seconds(whole)
    assert parts.plan.read_text() == whole.plan.read_text()


def test_finalists_leave_evaluations_to_the_search(run_search):
    with pytest.raises(ValueError, match=r"finalists=5 leaves none of search\.evaluations=5"):
        run_search("run", *AGENTS["random"], "search.evaluations=5", growth=Growth())


def test_the_time_before_counts_towards_the_minutes(run_search):
    overrides = (*AGENTS["random"], "search.evaluations=6")
    folder, *_ = run_search("run", *overrides, killed_at=4)
    lines = [json.loads(line) for line in folder.journal.read_text().splitlines()]
    lines[-1]["seconds"] = 1000.0
    folder.journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    _, measured, found = run_search("run", *overrides, "search.minutes=1.5")
    assert (measured, found.result.stop_reason) == (0, "minutes")
    assert found.result.seconds == pytest.approx(1000, abs=100)


# ---- which folder

CONFIG = {
    "seed": 0,
    "search": {"evaluations": 5, "minutes": None},
    "frozen": ["conv1"],
    "logger": {"wandb": {"mode": "offline"}},
    "resume": None,
    "progress_bar": "auto",
}


def make_run(path, age, summary=None, **changes):
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({**CONFIG, **changes})))
    os.utime(path / "config.yaml", (1e9 - age, 1e9 - age))
    if summary is not None:
        (path / "summary.json").write_text(json.dumps({"stop_reason": summary}))
    return path


def test_auto_takes_the_newest_run_of_the_same_config(tmp_path):
    make_run(tmp_path / "day" / "old", 9, "evaluations")
    newest = make_run(tmp_path / "day" / "new", 5, logger={}, resume="auto", progress_bar=False)
    make_run(tmp_path / "day" / "other_seed", 1, seed=1)
    make_run(tmp_path / "day" / "other_list", 1, frozen=["conv1", "conv2"])
    make_run(newest / "wandb" / "run" / "files", 0)
    start = choose_run({**CONFIG, "resume": "auto"}, tmp_path / "fresh", tmp_path)
    assert (start.run.path, start.state) == (newest, UNFINISHED)


def test_auto_begins_a_new_run_when_there_is_none(tmp_path, caplog):
    make_run(tmp_path / "day" / "other", 1, seed=1)
    with caplog.at_level(logging.INFO):
        start = choose_run({**CONFIG, "resume": "auto"}, tmp_path / "fresh", tmp_path)
    assert (start.run.path, start.state) == (tmp_path / "fresh", NEW)
    assert "no run with this config" in caplog.text


def test_without_resume_a_run_is_new(tmp_path):
    make_run(tmp_path / "old", 1)
    assert choose_run(CONFIG, tmp_path / "fresh", tmp_path).state == NEW


@pytest.mark.parametrize(
    ("summary", "state"),
    [
        (None, UNFINISHED),
        ("interrupted", UNFINISHED),
        ("evaluations", FINISHED),
        ("minutes", FINISHED),
    ],
)
def test_a_run_that_was_ended_by_ctrl_c_goes_on(summary, state, tmp_path):
    run = make_run(tmp_path / "run", 1, summary)
    start = choose_run({**CONFIG, "resume": str(run)}, tmp_path / "fresh")
    assert (start.run.path, start.state) == (run, state)


def test_a_folder_with_another_config_is_refused_by_key(tmp_path):
    run = make_run(tmp_path / "run", 1, search={"evaluations": 7, "patience": 3})
    message = (
        r"another config: seed is 0 there and 2 here; search\.evaluations is 7 there and 5 here; "
        r"search\.patience is only there and 1 more\. Give the same overrides"
    )
    with pytest.raises(ValueError, match=message):
        choose_run({**CONFIG, "seed": 2, "resume": str(run)}, tmp_path / "fresh")


@pytest.mark.parametrize("value", [True, 3, "", ["auto"]])
def test_resume_is_null_auto_or_a_folder(value, tmp_path):
    with pytest.raises(ValueError, match="resume must be null, auto or the folder of a run"):
        choose_run({**CONFIG, "resume": value}, tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not the folder of a run: it holds no config\.yaml"):
        choose_run({**CONFIG, "resume": str(tmp_path / "nowhere")}, tmp_path)


def test_a_run_is_held_by_one_process(tmp_path):
    run = RunFolder(tmp_path)
    again = locked(run)
    with locked(run), pytest.raises(ValueError, match="is still running in another process"):
        again.__enter__()
    with locked(run):
        pass


def test_hydras_folder_goes_and_its_log_goes_on(tmp_path):
    fresh, run = tmp_path / "runs" / "day" / "fresh", RunFolder(tmp_path / "runs" / "old")
    (fresh / ".hydra").mkdir(parents=True)
    run.path.mkdir()
    (run.path / "job.log").write_text("before\n")
    root = logging.getLogger()
    handlers = list(root.handlers)
    root.addHandler(logging.FileHandler(fresh / "job.log"))
    try:
        root.warning("between")
        leave_folder(fresh, run, tmp_path / "runs")
        root.warning("after")
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            handler.close()
    assert (run.path / "job.log").read_text() == "before\nbetween\nafter\n"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["old"]


def test_files_of_others_are_not_removed(tmp_path):
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "notes.txt").write_text("mine")
    leave_folder(fresh, RunFolder(tmp_path / "old"))
    assert (fresh / "notes.txt").read_text() == "mine"


# ---- the command

SMALL = (
    "+network.width=4",
    "pretrain.epochs=1",
    "search.evaluations=6",
    "fine_tune.epochs=1",
    "evaluation.latency.min_run_time=0.01",
    "evaluation.latency.onnxruntime=false",
    "logger=csv",
    "agent=random",
    "cache_dir=cache",
)
KILLER = """
import os, runpy, signal, sys
sys.path.insert(0, {root!r})
import pruning.journal as journal
write = journal._write

def tear(descriptor, data):
    if b'"evaluation": 4' in data and not os.path.exists("killed"):
        open("killed", "w").close()
        os.write(descriptor, data[:40])
        os.kill(os.getpid(), signal.SIGKILL)
    write(descriptor, data)

journal._write = tear
sys.argv[0] = "train_agent.py"
runpy.run_path({script!r}, run_name="__main__")
"""


def command(*arguments, cwd):
    script = KILLER.format(root=str(ROOT), script=str(ROOT / "train_agent.py"))
    (cwd / "killer.py").write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "killer.py", *arguments, *SMALL],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_sweep_killed_half_way_does_only_what_is_missing(tmp_path):
    sweep = ("-m", "seed=0,1", "resume=auto")
    (tmp_path / "killed").touch()
    assert command(*sweep, cwd=tmp_path).returncode == 0
    (tmp_path / "runs").rename(tmp_path / "whole")
    whole = {path.parent.name: path for path in tmp_path.glob("whole/*/*/*/metrics.csv")}
    assert len(whole) == 2
    (tmp_path / "killed").unlink()
    assert command("-m", "seed=0", "resume=auto", cwd=tmp_path).returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("runs/**/summary.json"))
    done = command(*sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 evaluations are in evaluations.jsonl and are not measured again" in done.stdout
    again = command(*sweep, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is finished, nothing is left to do") == 2
    parts = list(tmp_path.glob("runs/*/*/*/metrics.csv"))
    assert len(parts) == 2
    for path in parts:
        assert without_seconds(RunFolder(path.parent)) == without_seconds(
            RunFolder(whole[path.parent.name].parent)
        )
        summary = json.loads((path.parent / "summary.json").read_text())
        assert summary["replayed_evaluations"] == (3 if summary["seed"] == 0 else 0)
        assert Summary.from_dict(summary).to_dict() == summary
        assert summary["wall_seconds"] >= summary["search_seconds"]
        there = json.loads((whole[path.parent.name].parent / "summary.json").read_text())
        for name in ("pruned", "uniform"):
            key = "test_accuracy_finetuned"
            assert summary[name][key] == there[name][key]
        assert not list(path.parent.glob("fine_tuning_*"))
