"""Pruning in stages: what the stages leave, what they are composed to, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from torch import nn

from experiments.command_line import CONFIG_FOLDER
from experiments.identity import RunIdentity
from experiments.iterative_stages import Schedule, print_stages, run_stages
from experiments.report import main as report
from experiments.report_stages import accuracy_over_macs
from experiments.rewinding import rewound_network
from networks.digits import digits_resnet, digits_splits
from networks.pretrained import pretrain
from networks.training import TrainingRecipe
from pruning.artefact import load_pruned
from pruning.plan import PruningPlan

SMALL = (
    "agent=uniform", "env=allocation", "+network.width=4", "+network.blocks=[1,1,1]",
    "pretrain.epochs=2", "search.evaluations=1", "fine_tune.epochs=1", "logger=csv",
    "evaluation.latency.min_run_time=0.01", "evaluation.latency.onnxruntime=false",
    "progress_bar=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache, tmp_path):
    def run(values, *overrides):
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose(
                "train_agent",
                [*SMALL, "resume=auto", f"cache_dir={cache}", *overrides],
            )
        schedule = Schedule.from_config({"relative_macs": values})
        identity = RunIdentity("digits_resnet", "digits", "uniform", "allocation")
        return run_stages(config, schedule, tmp_path, identity)

    return run


def test_stages_are_composed_to_one_plan_and_one_file(run, tmp_path, capsys):
    result = run([0.7, 0.4], "fine_tune.rewind_to=0")
    first, second = result["stages"]
    assert 0.4 < first["relative_macs"] <= 0.7
    assert 0.3 < second["relative_macs"] <= 0.4  # of the unpruned network's, not the stage's
    written = [tmp_path / f"stage_{number}" / "summary.json" for number in (1, 2)]
    summaries = [json.loads(file.read_text()) for file in written]
    assert summaries[1]["base"]["macs"] == summaries[0]["pruned"]["macs"] == first["macs"]
    # the second stage prunes what the first has fine-tuned
    assert summaries[1]["base"]["test_accuracy"] == first["test_accuracy_finetuned"]

    network = load_pruned(tmp_path / "pruned.safetensors")
    last = load_file(tmp_path / "stage_2" / "pruned.safetensors")
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in last.items())
    test = digits_splits().test
    correct = (network(test.inputs).argmax(1) == test.targets).sum().item()
    assert correct == summaries[1]["pruned_file"]["test_correct"]
    plan = PruningPlan.from_json((tmp_path / "plan.json").read_text())
    assert sum(map(len, plan.keep.values())) < sum(
        len(kept)
        for kept in json.loads((tmp_path / "stage_1" / "plan.json").read_text())["keep"].values()
    )

    # rewound: the initial weights of the channels that are left
    early = digits_resnet(width=4, blocks=[1, 1, 1])
    recipe = TrainingRecipe(epochs=2)
    pretrain(early, digits_splits().search.train, recipe, tmp_path / "cache", stop_after=0)
    kept = list(plan.keep["conv1"])
    rewound = load_file(tmp_path / "stage_2" / "rewound.safetensors")
    assert torch.equal(rewound["conv1.weight"], early.state_dict()["conv1.weight"][kept])

    page = tmp_path / "report.html"
    text = page.read_text()
    assert "Pruned in 2 stages by uniform in allocation" in text
    for stage in (first, second):
        assert f"{100 * stage['test_accuracy_finetuned']:.2f} %" in text
        assert f'href="stage_{stage["stage"]}/report.html"' in text
    assert "--network experiments.iterative_stages.build_stage" in text
    for outside in ("http:", "https:", "<script", "url(", "@import", "src="):
        assert outside not in text
    page.unlink()
    assert report([str(tmp_path)]) == 0
    assert page.read_text() == text
    with pytest.raises(ValueError, match="--csv and --picture are for runs of one"):
        report([str(tmp_path), "--csv", str(tmp_path / "runs.csv")])

    before = [file.stat().st_mtime_ns for file in written]
    assert run([0.7, 0.4], "fine_tune.rewind_to=0") == result
    assert before == [file.stat().st_mtime_ns for file in written]
    print_stages(result, tmp_path)
    assert "in 2 stages" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"other settings \(fine_tune\.epochs\)"):
        run([0.7, 0.4], "fine_tune.rewind_to=0", "fine_tune.epochs=2")


def test_stages_are_drawn_over_the_macs_of_the_unpruned_network():
    stages = [
        {
            "relative_macs": macs, "test_accuracy": before, "test_accuracy_finetuned": after,
            "uniform_test_accuracy_finetuned": uniform,
        }
        for macs, before, after, uniform in ((0.7, 0.8, 0.9, 0.85), (0.4, 0.5, 0.88, 0.7))
    ]  # fmt: skip
    chart = accuracy_over_macs({"base": {"test_accuracy": 0.92}, "stages": stages})
    assert [(mark.shape, mark.text) for mark in chart.marks if mark.style != "s1"] == [
        ("square", "unpruned: 92.00 %"),
        ("dot", "fine-tuned, 70.0 % of the MACs: 90.00 %"),
        ("dot", "fine-tuned, 40.0 % of the MACs: 88.00 %"),
        ("diamond", "uniform, fine-tuned, 70.0 % of the MACs: 85.00 %"),
        ("diamond", "uniform, fine-tuned, 40.0 % of the MACs: 70.00 %"),
    ]
    assert [line.style for line in chart.lines] == ["s1", "s0"]  # each from the unpruned network on
    assert all(line.path.count("L") == 2 for line in chart.lines)
    untuned = [
        {**stage, "test_accuracy_finetuned": None, "uniform_test_accuracy_finetuned": None}
        for stage in stages
    ]
    chart = accuracy_over_macs({"base": {"test_accuracy": 0.92}, "stages": untuned})
    assert [line.style for line in chart.lines] == ["s1"]
    assert len(chart.marks) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["patterns=n_m"], r"only remove whole channels.*Set patterns=channel"),
        (["budget=none"], "need a budget of MACs"),
        (
            ["agent=llm", "agent.proposes_fine_tune=true"],
            r"by one recipe.*Set agent\.proposes_fine_tune=false",
        ),
    ],
)
def test_what_cannot_be_pruned_in_stages_is_refused_at_once(run, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        run([0.5], *overrides)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", [[], [0.5, 0.5], [0.3, 0.5], [1.0], 0.5, ["half"]])
def test_schedules_that_do_not_fall_are_refused(values):
    with pytest.raises(ValueError, match=r"relative_macs must be falling fractions in \(0, 1\)"):
        Schedule.from_config({"relative_macs": values})


def test_a_stage_that_fails_says_why(run, tmp_path):
    with pytest.raises(ValueError, match=r"stage 1.* failed: .*rewind_to=2 is not before the end"):
        run([0.5], "fine_tune.rewind_to=2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fine_tune": {"rewind_to": -1, "epochs": 1}}, "must be null, an epoch of pretrain"),
        ({"fine_tune": {"rewind_to": 0, "epochs": 0}}, "leaves untrained weights without"),
        ({"network": {"checkpoint": "a.pt"}}, "comes from a checkpoint and was not trained here"),
        ({"fine_tune": {"rewind_to": "no.pt", "epochs": 1}}, r"no\.pt"),
    ],
)
def test_weights_that_are_not_there_are_refused(changes, message):
    plain = {"fine_tune": {"rewind_to": 0, "epochs": 1}, "network": {"checkpoint": None}, **changes}
    with pytest.raises(ValueError, match=message):
        rewound_network(nn.Linear(2, 2), plain, TrainingRecipe(epochs=2), None, None)
