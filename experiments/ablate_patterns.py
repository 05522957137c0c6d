"""Which patterns, and how many: python -m experiments.ablate_patterns network=digits_resnet.

The open question of the AutoSculpt paper: what should a pattern library hold, and how large should
it be? Every row is the same agent with another library: whole libraries of conf/patterns
(`compare.libraries`), and sub-libraries of growing size of one of them (`compare.size_of`,
`compare.sizes`). The runs are those of `experiments.compare_policies`: same network, weights,
splits, importance, fine-tuning, evaluations and seeds, each in a folder of its own; the same
command again does only what is missing.

Budgets count the weights that are not masked (`budget.cost=nonzero_macs`), because a mask leaves
the MACs of dense hardware as they are; the table has both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from experiments.command_line import CONFIG_FOLDER, closest, guard_job, run_hydra_command
from experiments.study_overrides import as_override

if TYPE_CHECKING:
    from experiments.comparison_rows import Row


@hydra.main(version_base="1.3", config_path="../conf", config_name="ablate_patterns")
@guard_job
def main(config: DictConfig) -> float:
    """Run what is missing, then write table, data and figures."""
    # Imported here: --help, --cfg and tab completion stay instant.
    from experiments.compare_policies import run_comparison

    compare: dict[str, Any] = OmegaConf.to_container(config.compare, resolve=True)  # type: ignore[assignment]
    return run_comparison(library_rows(compare), compare, "ablate_patterns")


def library_rows(compare: Mapping[str, Any]) -> tuple[Row, ...]:
    """A row for every library, and one for every size of the library that is cut down.

    Args:
        compare: the section `compare` as plain data.

    Raises:
        ValueError: a library or agent is unknown, a size is out of range, or there is no row.
    """
    from experiments.comparison_rows import read_rows

    rows: dict[str, tuple[str, ...]] = {}
    for name in compare["libraries"]:
        _specs(name)  # refuses one that is not there
        rows[name] = (f"patterns={name}",)
    largest = compare["size_of"]
    if largest is not None:
        specs = _specs(largest)
        for size in compare["sizes"]:
            part = sub_library(specs, size)
            if part == specs and largest in rows:
                continue  # it is there already
            label = f"{largest} {size} of {len(specs)}"
            rows[label] = (f"patterns={largest}", f"patterns.specs={as_override(part)}")
    agents = read_rows(compare["agents"], compare["policies"])
    labels = [
        {label if len(agents) == 1 else f"{agent.label} {label}": [*agent.overrides, *overrides]}
        for agent in agents
        for label, overrides in rows.items()
    ]
    if not labels:
        raise ValueError(
            "There is no pattern library to compare. Name some, such as "
            "'compare.libraries=[channel,n_m]', or cut one down with compare.size_of=channel."
        )
    return read_rows(labels, compare["policies"])


def sub_library(specs: Sequence[Mapping[str, Any]], size: int) -> list[Mapping[str, Any]]:
    """So many entries of a library, evenly spread over it; its first, dense, is always among them.

    Of sizes that double, the smaller is part of the larger where the whole has a power of two.

    Args:
        specs: entries of the whole library, the dense pattern first.
        size: entries to keep, 2 to len(specs).

    Raises:
        ValueError: the size is out of range.
    """
    if type(size) is not int or not 2 <= size <= len(specs):
        raise ValueError(
            f"compare.sizes must be whole numbers from 2 to the {len(specs)} entries of "
            f"compare.size_of, got {size!r}."
        )
    return [specs[index * len(specs) // size] for index in range(size)]


def _specs(name: str) -> list[Mapping[str, Any]]:
    """The entries of a library of conf/patterns."""
    known = sorted(path.stem for path in (CONFIG_FOLDER / "patterns").glob("*.yaml"))
    if name not in known:
        raise ValueError(
            f"There is no pattern library {name!r}.{closest(str(name), known)} "
            f"The choices are: {', '.join(known)}."
        )
    config: Any = OmegaConf.to_container(
        OmegaConf.load(CONFIG_FOLDER / "patterns" / f"{name}.yaml")
    )
    return list(config["specs"])


if __name__ == "__main__":
    run_hydra_command(main)
