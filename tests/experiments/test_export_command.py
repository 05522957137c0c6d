import json
import os
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import export
from experiments.command_line import CONFIG_FOLDER, explain
from experiments.identity import RunIdentity
from experiments.pipeline import run_job
from graphs.tracing import trace_network
from networks.digits import digits_resnet, digits_splits
from pruning.artefact import load_pruned, save_pruned
from pruning.export import ExportMismatch
from pruning.keep_set import KeepSet
from pruning.onnx_runtime import open_onnx
from pruning.plan import Decision, PruningPlan
from pruning.slimming import Slimmer

KWARGS = {"width": 4, "blocks": [1, 1, 1]}
USER_PACKAGE = """
from networks.digits import digits_resnet, digits_splits

def build_network(width, blocks):
    return digits_resnet(width=width, blocks=blocks)

def build_data():
    return digits_splits()
"""


def needs_extra():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the optional dependencies: pip install '.[export]'")


@pytest.fixture
def make_run(tmp_path):
    """Makes the files of a finished run that the command reads."""

    def make(network="networks.digits.digits_resnet", data="networks.digits.digits_splits"):
        folder = tmp_path / "run"
        folder.mkdir()
        torch.manual_seed(0)
        base = digits_resnet(**KWARGS).eval()
        graph = trace_network(base, torch.zeros(1, 1, 8, 8))
        keep = KeepSet.from_ratios(graph, {group.name: 0.5 for group in graph.groups})
        plan = PruningPlan(
            graph=graph.fingerprint,
            decisions=tuple(Decision(group.name, ratio=0.5) for group in graph.groups),
            keep={group.name: tuple(keep.kept(group.name).tolist()) for group in graph.groups},
        )
        slim = Slimmer(base, graph).materialize(keep)
        path = folder / "pruned.safetensors"
        save_pruned(path, slim, target=network, kwargs=KWARGS, graph=graph, plan=plan)
        config = {
            "num_threads": 1,
            "data": {"_target_": data},
            "network": {"_target_": network, "checkpoint": None, **KWARGS},
            "evaluation": {
                "batch_size": 250,
                "latency": {"batch": 32, "threads": 1, "min_run_time": 0.01},
            },
        }
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
        (folder / "summary.json").write_text(json.dumps({"network": "digits_resnet"}))
        return folder

    return make


def run_command(*arguments, cwd):
    environment = {
        **os.environ,
        "PYTHONPATH": f"{CONFIG_FOLDER.parent}{os.pathsep}{cwd}",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("TOPIARY_TRACEBACK", None)
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.run(
        [sys.executable, "-m", "experiments.export", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_both_files_give_the_outputs_of_the_pruned_network(make_run, tmp_path):
    needs_extra()
    folder = make_run()
    done = run_command(str(folder), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # the exporter's own noise included
    onnx, pt2, conditions, eager, onnxruntime = done.stdout.splitlines()
    for line, name in ((onnx, "pruned.onnx"), (pt2, "pruned.pt2")):
        assert line.startswith(f"{folder / name}: {(folder / name).stat().st_size:,} bytes")
        assert line.endswith("on 250 images of the reward split and 251 random inputs")
    assert ", opset " in onnx
    assert ", opset " not in pt2
    assert conditions.startswith("latency of the pruned network, batch 32, 1 thread, ")
    assert eager.startswith(f"  torch eager {torch.__version__}: ")
    assert onnxruntime.startswith("  onnxruntime 1.")

    images = digits_splits().test.inputs[:50]
    network = load_pruned(folder / "pruned.safetensors")
    program = torch.export.load(folder / "pruned.pt2").module()
    with torch.no_grad():
        expected = network(images)
        for found in (open_onnx(folder / "pruned.onnx")(images)[0], program(images)):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.max()))


def test_a_program_alone_needs_no_onnx(make_run, monkeypatch, capsys):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    folder = make_run()
    assert export.main([str(folder), "--format", "pt2"]) == 0
    assert "onnx" not in capsys.readouterr().out
    assert (folder / "pruned.pt2").is_file()
    assert not (folder / "pruned.onnx").exists()
    with pytest.raises(ValueError, match=r"pip install -e \"\.\[export\]\"") as refused:
        export.main([str(folder), "--format=onnx"])
    assert explain(refused.value) == str(refused.value)  # a message, not a traceback


def test_a_file_with_other_outputs_is_deleted_and_the_message_says_so(make_run, monkeypatch):
    folder = make_run()
    monkeypatch.setattr(
        "pruning.export._open_program", lambda path: lambda inputs: torch.zeros(len(inputs), 10)
    )
    with pytest.raises(ExportMismatch, match=r"pruned\.pt2 gives other outputs") as refused:
        export.main([str(folder), "--format=pt2"])
    assert explain(refused.value) == str(refused.value)
    assert not (folder / "pruned.pt2").exists()


def test_a_run_that_is_not_finished_is_refused(make_run):
    folder = make_run()
    (folder / "summary.json").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        export.main([str(folder)])


def test_functions_of_the_user_run_only_when_they_are_named(make_run, tmp_path):
    folder = make_run("my_package.build_network", "my_package.build_data")
    (tmp_path / "my_package.py").write_text(USER_PACKAGE)
    arguments = [str(folder), "--format=pt2"]
    refused = run_command(*arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert len(refused.stderr.splitlines()) == 1
    assert "--data my_package.build_data" in refused.stderr
    names = ("--data=my_package.build_data", "--network=my_package.build_network")
    named = run_command(*arguments, *names, cwd=tmp_path)
    assert named.returncode == 0, named.stderr
    assert named.stderr == ""
    assert (folder / "pruned.pt2").is_file()


SMALL = (
    "agent=random", "+network.width=4", "pretrain.epochs=1", "search.evaluations=2",
    "fine_tune.epochs=1", "evaluation.latency.min_run_time=0.01",
    "evaluation.latency.onnxruntime=false", "logger=csv",
)  # fmt: skip


@pytest.fixture
def train(tmp_path):
    """Runs the main job in this process."""

    def run(folder, *overrides):
        folder.mkdir()
        overrides = (*SMALL, f"cache_dir={tmp_path}/cache", *overrides)
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("train_agent", overrides=list(overrides))
        run_job(config, folder, RunIdentity("digits_resnet", "digits", "random", "autosculpt"))

    return run


def test_a_run_exports_what_its_config_asks_for(train, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    train(folder, "export=pt2")
    assert f"{folder / 'pruned.pt2'}: " in capsys.readouterr().out
    images = digits_splits().test.inputs[:50]
    with torch.no_grad():
        expected = load_pruned(folder / "pruned.safetensors")(images)
        found = torch.export.load(folder / "pruned.pt2").module()(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not (folder / "pruned.onnx").exists()

    needs_extra()
    summary, searched = (
        (folder / name).stat().st_mtime_ns for name in ("summary.json", "plan.json")
    )
    train(tmp_path / "again", "export=[onnx,pt2]", "resume=auto")  # the run itself is done
    assert (folder / "pruned.onnx").is_file()
    assert summary == (folder / "summary.json").stat().st_mtime_ns
    assert searched == (folder / "plan.json").stat().st_mtime_ns

    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"pip install -e \"\.\[export\]\""):
        train(tmp_path / "early", "export=onnx")
    assert not list((tmp_path / "early").iterdir())  # before anything costs time


@pytest.mark.parametrize("value", ["tflite", "[onnx,tflite]", "true"])
def test_a_format_that_is_not_known_is_refused(train, tmp_path, value):
    with pytest.raises(ValueError, match="export must be null, one of onnx, pt2, or a list"):
        train(tmp_path / "run", f"export={value}")
