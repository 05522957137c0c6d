"""How often and how fast an agent of whole plans reaches the MAC band, within a few proposals.

AgenticPruner (https://arxiv.org/abs/2601.12272) claims 48 % for a grid and 71 % for its agent. Here
a grid, a bisection, an analyst that follows a rule and, when a model can be asked, a language model
are counted alike: one proposal is one plan whose MACs are told; nothing is measured before the
first plan in the band, and the search ends there. Overrides are those of train_agent.py, such as
llm=openai llm.name=NAME network=vgg16_bn_cifar10.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback

from agents.llm.agent import LLMAgent
from agents.llm.provider import Provider
from agents.ratio_search import BisectionAgent, GridAgent
from agents.search import run_search
from agents.whole_plans import WholePlanAgent
from envs.pruning_env import PruningEnv
from experiments.building import build_data, own_options
from experiments.command_line import CONFIG_FOLDER, explain, run_command
from experiments.pipeline import build_task, seed_everything, trained_network
from experiments.progress import shows_progress
from experiments.rule_analyst import RuleAnalyst
from experiments.run_folder import write_text
from experiments.search_stage import build_parts
from experiments.settings import Settings
from pruning.task import PruningTask

TARGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
ROUND_TO = (1, 4, 8)

MakeAgent = Callable[[PruningEnv, int], Any]
"""Builds an agent from an environment and the number of proposals it may make."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One search for the band.

    Attributes:
        method: who proposed.
        relative_macs: the target.
        round_to: kept channels are a multiple of this.
        proposals: proposals until the first plan in the band, or all that were made.
        converged: whether there was one.
    """

    method: str
    relative_macs: float
    round_to: int
    proposals: int
    converged: bool


class UntilInBand(BaseCallback):
    """Ends a search at the first plan in the band.

    Args:
        env: the environment of the search.
    """

    def __init__(self, env: PruningEnv) -> None:
        super().__init__()
        self.env = env

    def _on_step(self) -> bool:
        return not self.env.history[-1].met


def search_for_band(env: PruningEnv, make_agent: MakeAgent, proposals: int) -> tuple[int, bool]:
    """Let an agent propose until a plan lies in the band.

    Args:
        env: a new environment; its budget is a band.
        make_agent: builds the agent.
        proposals: most proposals, refused ones included.

    Returns:
        Proposals made, and whether the last one lies in the band.
    """
    agent: WholePlanAgent = make_agent(env, proposals)
    run_search(
        agent,
        env,
        evaluations=env.num_evaluations + 1,  # cached plans count no evaluation, so also:
        max_timesteps=proposals,
        callbacks=[UntilInBand(env)],
    )
    converged = bool(env.history) and env.history[-1].met
    return agent.num_proposals, converged  # type: ignore[attr-defined]


def language_model_agent(provider: Provider) -> MakeAgent:
    """An agent that asks `provider`, without a master: it may not stop before the band anyway."""

    def make(env: PruningEnv, proposals: int) -> LLMAgent:
        return LLMAgent(
            env,
            llm=provider,
            max_proposals=proposals,
            max_calls=1 + 4 * proposals,
            max_refusals=proposals,
            master_every=proposals + 1,
        )

    return make


METHODS: dict[str, MakeAgent] = {
    "grid": lambda env, proposals: GridAgent(env, num_ratios=proposals),
    "bisection": lambda env, proposals: BisectionAgent(env),
    "rule analyst": language_model_agent(RuleAnalyst()),
}
"""What needs no key."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Search every band with every method, print the table, write all cases as CSV.

    Returns:
        0.

    Raises:
        ValueError: an option or an override is wrong.
    """
    options = _parser().parse_intermixed_args(arguments)
    if options.proposals < 1:
        raise ValueError(f"--proposals must be 1 or more, got {options.proposals}.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("agents").setLevel(logging.WARNING)  # a line per search helps nobody
    config = _config(["env=ratios", *options.overrides])
    methods = {**METHODS, **_language_model(config, options.overrides)}
    cases = []
    for round_to in options.round_to:
        task = _task([*options.overrides, f"round_to={round_to}"])
        for target in options.targets:
            parts = build_parts(
                _config(["env=ratios", *options.overrides, f"budget.relative_macs={target}"])
            )
            for method, make_agent in methods.items():
                env = PruningEnv(task, **parts)
                proposals, converged = search_for_band(env, make_agent, options.proposals)
                cases.append(Case(method, target, round_to, proposals, converged))
    write_text(options.output, to_csv(cases))
    _print(cases, options.proposals)
    print(f"Every search: {options.output}")
    return 0


def summarise(cases: Sequence[Case]) -> list[tuple[str, int, int, float | None]]:
    """For every method: searches, those that reached the band, and their mean proposals."""
    rows = []
    for method in dict.fromkeys(case.method for case in cases):
        own = [case for case in cases if case.method == method]
        needed = [case.proposals for case in own if case.converged]
        mean = sum(needed) / len(needed) if needed else None
        rows.append((method, len(own), len(needed), mean))
    return rows


def to_csv(cases: Sequence[Case]) -> str:
    """One line per search."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(Case.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(case) for case in cases)
    return file.getvalue()


def _language_model(config: DictConfig, overrides: Sequence[str]) -> dict[str, MakeAgent]:
    """The model of `llm=`, when it can be asked."""
    try:
        provider = instantiate(config.llm, _convert_="all")
    except InstantiationException as error:
        if any(override.startswith("llm") for override in overrides):
            raise
        log.info("No language model in the table: %s", explain(error))
        return {}
    return {provider.name: language_model_agent(provider)}


def _config(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train_agent", list(overrides))


def _task(overrides: Sequence[str]) -> PruningTask:
    """The task of the main job."""
    config = _config(overrides)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    for section in ("network", "data"):
        plain[section] = own_options(section, plain[section], overrides)
    settings = Settings.from_config(plain, show_progress=shows_progress(plain["progress_bar"]))
    torch.set_num_threads(settings.num_threads)
    seed_everything(settings.seed)
    data = build_data(plain["data"])
    network = trained_network(config, plain, data, settings)
    return build_task(config, plain, network, data, settings)


def _print(cases: Sequence[Case], proposals: int) -> None:
    view = Table(title=f"In the MAC band within {proposals} proposals", title_justify="left")
    for column in ("method", "searches", "in the band", "rate", "proposals needed, mean"):
        view.add_column(column, justify="left" if column == "method" else "right")
    for method, searches, reached, mean in summarise(cases):
        needed = "-" if mean is None else f"{mean:.1f}"
        view.add_row(method, str(searches), str(reached), f"{reached / searches:.0%}", needed)
    Console(width=100).print(view)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.llm_convergence", description=__doc__
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config")
    parser.add_argument(
        "--targets",
        type=_numbers(float),
        default=TARGETS,
        metavar="A,B,...",
        help="targets of the band, relative MACs; 0.2 to 0.8 by default",
    )
    parser.add_argument(
        "--round-to",
        type=_numbers(int),
        default=ROUND_TO,
        metavar="A,B,...",
        help="multiples of kept channels; 1,4,8 by default",
    )
    parser.add_argument("--proposals", type=int, default=10, help="most per search; 10 by default")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("llm_convergence.csv"),
        help="file of all searches",
    )
    return parser


def _numbers(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(kind(part) for part in text.split(","))


if __name__ == "__main__":
    run_command(main)
