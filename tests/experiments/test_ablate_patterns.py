"""The ablation of pattern libraries: rows, sizes, refusals, and one whole run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from experiments.ablate_patterns import library_rows, sub_library
from experiments.command_line import CONFIG_FOLDER
from experiments.comparison_rows import make_jobs

COMPARE = {
    "agents": ["ppo"],
    "policies": {},
    "libraries": ["channel"],
    "size_of": None,
    "sizes": [],
}
RUNS = {"seeds": [0], "budgets": None, "study_axes": []}


def jobs_of(tmp_path, *common, **changes):
    compare = {**COMPARE, **changes}
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return make_jobs(library_rows(compare), RUNS, common, tmp_path, "ablate_patterns")


def test_a_library_is_cut_down_evenly_and_smaller_ones_are_part_of_larger_ones():
    entries = [{"family": "dense"}, *({"family": "channel", "ratio": i / 8} for i in range(1, 8))]
    ratios = {
        size: [spec.get("ratio", 0.0) for spec in sub_library(entries, size)] for size in (2, 4, 8)
    }
    assert ratios == {
        2: [0.0, 0.5],
        4: [0.0, 0.25, 0.5, 0.75],
        8: [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875],
    }
    assert sub_library(entries[:7], 3) == [entries[0], entries[2], entries[4]]


@pytest.mark.parametrize("size", [1, 9, 2.0])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(ValueError, match=r"compare\.sizes must be whole numbers from 2 to the 8"):
        library_rows({**COMPARE, "size_of": "channel", "sizes": [size]})


def test_unknown_and_missing_libraries_are_refused():
    with pytest.raises(ValueError, match=r"library 'channels'\. Did you mean 'channel'\?"):
        library_rows({**COMPARE, "libraries": ["channels"]})
    with pytest.raises(ValueError, match="There is no pattern library to compare"):
        library_rows({**COMPARE, "libraries": []})


def test_rows_differ_in_their_library_alone_and_count_masks(tmp_path):
    jobs = jobs_of(
        tmp_path, libraries=["channel", "autosculpt_figure"], size_of="autosculpt_figure",
        sizes=[2, 9],
    )  # fmt: skip
    labels = ["channel", "autosculpt_figure", "autosculpt_figure 2 of 9"]
    assert [job.row.label for job in jobs] == labels
    configs = [OmegaConf.to_container(job.open_config(), resolve=True) for job in jobs]
    sizes = [len(config["patterns"].pop("specs")) for config in configs]
    assert sizes == [8, 9, 2]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0]["budget"]["cost"] == "nonzero_macs"
    assert jobs[2].open_config().patterns.specs[1] == {
        "family": "kernel_shape", "shape": "upright_t",
    }  # fmt: skip


def test_several_agents_give_a_row_for_each_pair(tmp_path):
    jobs = jobs_of(tmp_path, agents=["ppo", "random"], libraries=["channel", "n_m"])
    assert [(job.row.label, job.identity.agent) for job in jobs] == [
        ("ppo channel", "ppo"), ("ppo n_m", "ppo"), ("random channel", "random"),
        ("random n_m", "random"),
    ]  # fmt: skip


def test_the_command_compares_libraries_and_reports_dense_macs_apart(tmp_path):
    done = subprocess.run(
        [
            sys.executable, "-m", "experiments.ablate_patterns", "+network.width=4",
            "pretrain.epochs=1", "search.evaluations=2", "fine_tune.epochs=0", "compare.seeds=[0]",
            "evaluation.latency.min_run_time=0.01", "evaluation.latency.onnxruntime=false",
            "compare.agents=[random]", "compare.libraries=[n_m]", "compare.sizes=[2]",
            "budget.relative_macs=0.6", "budget.delta=0.15", f"cache_dir={tmp_path}/cache",
            f"hydra.run.dir={tmp_path}/study",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CONFIG_FOLDER.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert "dense MACs" in done.stdout
    assert "beats" not in done.stdout  # neither uniform nor random is a row of its own
    runs = json.loads((tmp_path / "study" / "comparison.json").read_text())["runs"]
    masks, channels = runs
    assert masks["label"] == "n_m"
    assert channels["label"] == "channel 2 of 8"
    assert masks["relative_dense_macs"] == 1.0
    assert masks["relative_macs"] <= 0.6
    assert channels["relative_dense_macs"] == channels["relative_macs"] <= 0.6
