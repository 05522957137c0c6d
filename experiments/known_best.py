"""Does an agent find the best plan where it is known: python -m experiments.known_best [KEY=VALUE].

Every plan of a small search space is measured once, so the best one is known. Then each agent
searches, with several seeds, and what it has found is ranked among all plans. In the list every
plan stands for itself; those of the agents are scaled to a band, if the budget says so. The space
is that of conf/experiment/known_best.yaml, and overrides are those of train_agent.py: frozen,
patterns.specs and budget.relative_macs make another.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.command_line import run_command

if TYPE_CHECKING:
    from rich.table import Table

    from envs.pruning_env import PruningEnv
    from experiments.composed_task import ComposedTask
    from experiments.known_best_results import Ranking, Trace

MOST_PLANS = 100_000
PRESET = "experiment=known_best"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all plans, let the agents search, print a table and write it.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        0.

    Raises:
        ValueError: an option or override is wrong, or the space is too large.
    """
    options = _parser().parse_intermixed_args(arguments)
    if options.seeds < 1:
        raise ValueError(f"--seeds must be 1 or more, got {options.seeds}.")
    agents = [agent.split() for agent in options.agents]
    if not all(agents):
        raise ValueError('Every --agents entry names an agent, such as "ppo encoder=none".')
    # Imported here: --help is instant without torch.
    from rich.console import Console

    from experiments.composed_task import ComposedTask, unscaled
    from experiments.known_best_results import Ranking, draw_ranks, to_json
    from experiments.run_folder import write_json

    preset = [] if any(o.startswith("experiment=") for o in options.overrides) else [PRESET]
    overrides = [*preset, *options.overrides]
    composed = ComposedTask.from_overrides([*preset, *unscaled(options.overrides)])
    env = composed.new_env(composed.new_task())
    scores = measure_all_plans(env)
    ranking = Ranking(scores)
    evaluations = composed.settings.evaluations
    print(
        f"{len(scores)} plans within the budget: best reward {ranking.best:.4f}, median "
        f"{np.median(ranking.scores):.4f}, worst {ranking.scores[-1]:.4f}."
    )
    traces: dict[str, list[Trace]] = {}
    for name, *changes in agents:
        of_agent = ComposedTask.from_overrides([*overrides, f"agent={name}", *changes])
        label = " ".join([name, *changes])
        traces[label] = [trace_agent(of_agent, seed) for seed in range(options.seeds)]
        print(
            f"{label}: best found after "
            + ", ".join(str(ranking.found_after(trace) or "-") for trace in traces[label])
        )
    after = sorted({count for count in options.after if count < evaluations} | {evaluations})
    Console(width=120).print(_table(ranking, traces, after))
    print(
        f"Medians over {options.seeds} seeds, smallest and largest in brackets: an interval that "
        f"holds the true median with probability {1 - 2.0 ** (1 - options.seeds):.1%}. random, "
        "expected: drawing plans without repeating one, worked out."
    )
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "known_best.json", to_json(ranking, traces, after))
    draw_ranks(ranking, traces, evaluations, folder / "known_best.png")
    print(f"Written to {folder / 'known_best.json'} and known_best.png.")
    return 0


def measure_all_plans(env: PruningEnv, advance: Callable[[], None] = lambda: None) -> list[float]:
    """Rewards of all plans within the budget, each plan assigned and measured once.

    Args:
        env: an environment of whole episodes with pattern actions.
        advance: called after every plan, within the budget or not.

    Raises:
        ValueError: actions are no patterns of all sites at once, there are more than MOST_PLANS
            plans, or none is within the budget.
    """
    from gymnasium import spaces

    if not isinstance(env.action_space, spaces.MultiDiscrete):
        raise ValueError(
            f"All plans can be listed where an action is one pattern for every site, and here it "
            f"is {env.action_space}. Set env=autosculpt, env/action=pattern and env/episode=whole."
        )
    choices = [np.flatnonzero(valid) for valid in env.task.valid]
    count = math.prod(map(len, choices))
    if count > MOST_PLANS:
        raise ValueError(
            f"There are {count:,} plans for {len(choices)} sites, more than {MOST_PLANS:,}. Freeze "
            "more groups (frozen), or give fewer patterns (patterns.specs)."
        )
    scores = []
    for plan in itertools.product(*choices):
        env.reset()
        *_, info = env.step(np.asarray(plan))
        if info["met"]:
            scores.append(float(sum(info["reward_terms"].values())))
        advance()
    if not scores:
        raise ValueError(
            f"None of {count:,} plans is within the budget. Change budget.relative_macs or "
            "budget.delta."
        )
    return scores


def trace_agent(composed: ComposedTask, seed: int) -> Trace:
    """Let the agent of the config search once, on a task of its own.

    Args:
        composed: config, network and data.
        seed: of the agent.
    """
    from agents.search import run_search
    from experiments.composed_task import new_agent
    from experiments.known_best_results import Trace, TraceCallback
    from experiments.patience import Patience
    from experiments.pipeline import seed_everything

    settings = composed.settings
    seed_everything(seed)
    env = composed.new_env(composed.new_task())
    callback = TraceCallback(env)
    run_search(
        new_agent(composed.config, env, seed=seed),
        env,
        evaluations=settings.evaluations,
        max_timesteps=settings.max_timesteps,
        minutes=settings.minutes,
        callbacks=[callback, Patience(env, settings.patience)],
    )
    env.close()
    return Trace(tuple(callback.evaluations), tuple(callback.scores))


def _table(ranking: Ranking, traces: dict[str, list[Trace]], after: Sequence[int]) -> Table:
    from rich.table import Table

    table = Table(
        title=f"Searching for the best of {len(ranking.scores)} plans", title_justify="left"
    )
    table.add_column("agent")
    for column in ("found it", "evaluations until then", *(f"rank after {n}" for n in after)):
        table.add_column(column, justify="right")
    for label, runs in traces.items():
        found = [ranking.found_after(run) or math.inf for run in runs]
        table.add_row(
            label,
            f"{sum(map(math.isfinite, found))} of {len(runs)}",
            _with_interval(found, beyond=after[-1]),
            *(
                _with_interval([ranking.rank_after(run, n) for run in runs], beyond=None)
                for n in after
            ),
        )
    table.add_row(
        "random, expected",
        f"{ranking.chance_to_find(after[-1]):.0%}",
        f"{ranking.expected_evaluations:.1f}",
        *(f"{ranking.expected_rank(n):.1f}" for n in after),
    )
    return table


def _with_interval(values: Sequence[float], *, beyond: int | None) -> str:
    def text(value: float) -> str:
        if math.isfinite(value):
            return f"{value:g}"
        return "none" if beyond is None else f"> {beyond}"

    median = text(float(np.median(values)))
    return f"{median} [{text(min(values))}, {text(max(values))}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.known_best",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config")
    parser.add_argument(
        "--agents",
        nargs="+",
        default=["ppo", "random"],
        metavar="AGENT",
        help='agents that search; "ppo encoder=none" gives one overrides of its own',
    )
    parser.add_argument("--seeds", type=int, default=5, help="searches of each agent")
    parser.add_argument(
        "--after",
        nargs="+",
        type=int,
        default=[10, 25, 50],
        help="evaluations after which what was found is ranked, besides search.evaluations",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("known_best"), help="folder of the JSON and the picture"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
