"""NetAdapt (https://arxiv.org/abs/1804.03230): one group a step, each step a little smaller.

Released code: https://github.com/denru01/netadapt. What is corrected here: candidates are scored on
the reward split, where the released code scores on the images it trains on; coupled layers are
found by tracing; a candidate that meets the step's target exactly counts.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.count_search import CountSearchAgent, CountSpace, OffRecord, Search
from pruning.carried_weights import CarriedWeights
from pruning.fine_tuning import fine_tune
from pruning.latency_table import LatencyTable
from pruning.plan import Decision

log = logging.getLogger(__name__)

RESOURCES = ("macs", "params", "latency")
SELECTIONS = ("paper", "code")
METRICS = ("accuracy", "loss")
FIRST_STEP = 0.025
"""First step of paper and code, as a fraction of the unpruned network's resource."""

TRAINING = {"learning_rate": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 128}
"""SGD of the short fine-tuning, as in the released code (its batch size depends on the script)."""

Resource = Callable[[np.ndarray], float]
"""From kept counts (S,) to what is to be saved."""


@dataclass(frozen=True)
class Iteration:
    """One network on the way, a line of `netadapt.json`.

    Attributes:
        iteration: from 1.
        group: which group was pruned.
        kept: its channels that stay.
        target: resource that the step had to meet.
        resource: resource of the network.
        relative_macs: MACs left over those of the unpruned network.
        accuracy: on the reward split, after the short fine-tuning if there is one.
        loss: likewise.
        candidates: how many networks were measured.
        on_front: whether no network of the family has fewer MACs and no lower accuracy.
        counts: kept channels per group.
    """

    iteration: int
    group: str
    kept: int
    target: float
    resource: float
    relative_macs: float
    accuracy: float
    loss: float
    candidates: int
    on_front: bool
    counts: tuple[int, ...]


class NetAdaptAgent(CountSearchAgent):
    """Shrinks the network iteration by iteration until the budget is met.

    Every iteration has a target: the resource now, minus a step that decays. For every group, the
    largest width that meets the target with this group alone is a candidate; each candidate is
    measured, after a short fine-tuning where there is one; the one that the selection likes best
    goes on. The channels that stay are the task's most important ones (importance=l2 in paper and
    code). Ends when the budget is met. When it cannot go on before (no candidate meets the target,
    or evaluations run out), the last evaluation measures the network so far, shrunk to the budget
    by one common factor, and the log says so.

    `netadapt.json` and `netadapt/*.json` in the run folder are the networks of all iterations:
    a table, and one replayable plan each.

    Args:
        env: an environment with ratio (or allocation) actions and a budget.
        resource: "macs", "params", or "latency" by a table; one of RESOURCES.
        relative_resource: fraction of the resource that may be left, in (0, 1), on top of the
            environment's budget of MACs; None for no further bound.
        first_step: resource of the first step over the unpruned network's, in (0, 1); None for the
            smallest with which all candidates fit `evaluations`.
        decay: of the step per iteration, in (0, 1].
        round_to: widths are multiples of this, at least 1; unless the group keeps all.
        selection: "paper": the best metric. "code": the least (drop + 1e-6) / (saving + 1e-5).
        metric: "accuracy", where a tie goes to the lower loss, or "loss".
        iterations: optimiser steps of the short fine-tuning per candidate, on images of the train
            split; 0 for none. A candidate goes on from the weights of the network it comes from,
            and the learning rate follows a cosine (the released code's is constant). Above one pass
            over the split, whole passes. The plan that is kept is measured without them at the end,
            as every other agent's: one more evaluation.
        training: learning_rate, momentum, weight_decay and batch_size of it; see TRAINING.
        latency_table: file of the latency table, for resource="latency".
        latency_batch: samples per batch it must be measured for.
        latency_threads: CPU threads it must be measured for.
        evaluations: how many the search has in total; None when not known.
        policy: not used; accepted so that every agent takes the same arguments.
        seed: same seed, same plans.
        verbose: not used.

    Raises:
        ValueError: a setting is out of range, or the environment has pattern actions or no budget.
    """

    def __init__(
        self,
        env: Any,
        *,
        resource: str = "macs",
        relative_resource: float | None = None,
        first_step: float | None = FIRST_STEP,
        decay: float = 0.96,
        round_to: int = 8,
        selection: str = "code",
        metric: str = "accuracy",
        iterations: int = 0,
        training: Mapping[str, Any] | None = None,
        latency_table: str | None = None,
        latency_batch: int = 1,
        latency_threads: int = 1,
        evaluations: int | None = None,
        policy: Any = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.training = {**TRAINING, **(training or {})}
        checks = (
            ("resource", resource, resource in RESOURCES, f"one of {', '.join(RESOURCES)}"),
            ("selection", selection, selection in SELECTIONS, f"one of {', '.join(SELECTIONS)}"),
            ("metric", metric, metric in METRICS, f"one of {', '.join(METRICS)}"),
            (
                "relative_resource",
                relative_resource,
                relative_resource is None or 0.0 < relative_resource < 1.0,
                "a number in (0, 1), or null",
            ),
            (
                "first_step",
                first_step,
                first_step is None or 0.0 < first_step < 1.0,
                "a number in (0, 1), or null",
            ),
            ("decay", decay, 0.0 < decay <= 1.0, "a number in (0, 1]"),
            ("round_to", round_to, round_to >= 1, "1 or more"),
            ("iterations", iterations, iterations >= 0, "0 or more"),
            (
                "training",
                self.training,
                set(self.training) == set(TRAINING),
                f"a mapping with the keys {', '.join(TRAINING)}",
            ),
            (
                "latency_table",
                latency_table,
                (latency_table is not None) == (resource == "latency"),
                "a file with agent.resource=latency, and null without",
            ),
        )
        for name, value, holds, wanted in checks:
            if not holds:
                raise ValueError(f"{name}={value!r}: wanted is {wanted}. Change agent.{name}.")
        self.resource = resource
        self.relative_resource = relative_resource
        self.first_step = first_step
        self.decay = decay
        self.round_to = round_to
        self.selection = selection
        self.metric = metric
        self.iterations = iterations
        self.latency_table = latency_table
        self.latency_batch = latency_batch
        self.latency_threads = latency_threads
        super().__init__(env, seed=seed, evaluations=evaluations)

    def _search(self, space: CountSpace, rng: np.random.Generator) -> Search:
        self._findings = {}
        family: list[Iteration] = []
        resource = self._resource(space)
        base, counts = resource(space.sizes), space.sizes
        floor = self._floor(space, base)
        quality = (space.task.base.accuracy, space.task.base.loss)
        carried = CarriedWeights(space.task.slimmer) if self.iterations else None
        step, num_asked = self._first_step(space, base, floor) * base, 0
        reserve = 1 if carried is None else 2  # the plan itself is measured at the end
        while not (space.fits(counts) and resource(counts) <= floor):
            now = resource(counts)
            target = max(floor if floor < base else 0.0, now - step * self.decay ** len(family))
            if space.fits(counts):  # the MACs are met, another resource is not
                target = min(target, now - 1e-9 * base)
            proposals = self._proposals(space, counts, resource, target)
            stop = self._cannot_go_on(proposals, num_asked, reserve)
            if stop:
                log.warning(
                    "NetAdapt stops at iteration %d with %.3f of the MACs: %s. The rest of the way "
                    "is uniform.", len(family) + 1, space.macs(counts) / space.macs(space.sizes),
                    stop,
                )  # fmt: skip
                break
            best: tuple[Any, int, tuple[float, float], nn.Module | None] | None = None
            for group, proposed in proposals.items():
                network = None
                if carried is None and space.fits(proposed) and resource(proposed) > floor:
                    measured = yield OffRecord(proposed)  # the environment knows MACs only
                elif carried is None:
                    measured = yield proposed
                else:
                    network = carried.network(space.candidate(proposed).keep)
                    self._train(network, space, rng)
                    measured = yield OffRecord(proposed, network)
                num_asked += 1
                found = (measured.accuracy, measured.loss)
                rank = self._rank(quality, found, now - resource(proposed))
                if best is None or rank < best[0]:
                    best = (rank, group, found, network)
            assert best is not None, "there are proposals"
            _, group, quality, network = best
            counts = proposals[group]
            if carried is not None and network is not None:
                carried.take_over(space.candidate(counts).keep, network)
            family.append(
                Iteration(
                    iteration=len(family) + 1,
                    group=space.task.graph.groups[group].name,
                    kept=int(counts[group]),
                    target=float(target),
                    resource=float(resource(counts)),
                    relative_macs=space.macs(counts) / space.macs(space.sizes),
                    accuracy=quality[0],
                    loss=quality[1],
                    candidates=len(proposals),
                    on_front=True,
                    counts=tuple(int(count) for count in counts),
                )
            )
            self._note(space, family)
        if carried is not None or not space.fits(counts):
            yield space.shrunk(counts)

    def _proposals(
        self, space: CountSpace, counts: np.ndarray, resource: Resource, target: float
    ) -> dict[int, np.ndarray]:
        """Kept counts by pruned group: the largest width of each group that meets the target."""
        found = {}
        for group, levels in enumerate(space.levels):
            widths = levels[(levels < counts[group]) & (levels % self.round_to == 0)]
            for width in widths[::-1]:
                proposed = space.replaced(counts, group, int(width))
                if resource(proposed) <= target:
                    found[group] = proposed
                    break
        return found

    def _rank(
        self, before: tuple[float, float], after: tuple[float, float], saving: float
    ) -> tuple[float, float]:
        """What the selection wants small; ties go to the lower loss, then to the earlier group."""
        accuracy, loss = after
        if self.selection == "paper":
            return (-accuracy if self.metric == "accuracy" else loss), loss
        drop = before[0] - accuracy if self.metric == "accuracy" else loss - before[1]
        return (drop + 1e-6) / (saving + 1e-5), loss

    def _train(self, network: nn.Module, space: CountSpace, rng: np.random.Generator) -> None:
        """The short fine-tuning of one candidate, in place, on images of the train split."""
        train, batch_size = space.task.search.train, int(self.training["batch_size"])
        wanted, epochs = self.iterations * batch_size, 1
        order = rng.permutation(len(train))
        if wanted <= len(train):
            train = train.subset(order[:wanted].tolist())
        else:
            epochs = math.ceil(self.iterations / max(1, len(train) // batch_size))
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            fine_tune(
                network,
                train,
                epochs=epochs,
                nesterov=False,
                label_smoothing=0.0,
                seed=int(rng.integers(2**31)),
                **self.training,
            )

    def _resource(self, space: CountSpace) -> Resource:
        cost = space.task.cost
        if self.resource == "params":
            return lambda counts: float(cost.params_of_counts(counts))
        if self.resource == "latency":
            assert self.latency_table is not None, "checked by __init__"
            table = LatencyTable.load(
                self.latency_table,
                space.task.graph,
                batch=self.latency_batch,
                threads=self.latency_threads,
            )
            return lambda counts: float(table.latency_of_counts(counts))
        return lambda counts: float(space.macs(counts))

    def _floor(self, space: CountSpace, base: float) -> float:
        """The resource that is to be met at the end; infinite where only the MACs are bounded."""
        bound = math.inf if self.relative_resource is None else self.relative_resource * base
        if self.resource == "macs":
            return min(bound, float(space.max_macs))
        return bound

    def _first_step(self, space: CountSpace, base: float, floor: float) -> float:
        """Fraction of the resource that the first step saves."""
        if self.first_step is not None:
            return self.first_step
        if self.evaluations is None:
            return FIRST_STEP
        way = max(1.0 - floor / base, 1.0 - space.max_macs / space.macs(space.sizes))
        # the last iteration may need a second try: what rounding leaves over is a step of its own
        affordable = max(1, (self.evaluations - 2) // len(space.levels) - 1)
        if self.decay == 1.0:
            return way / affordable
        return min(0.999, way * (1.0 - self.decay) / (1.0 - self.decay**affordable))

    def _cannot_go_on(
        self, proposals: Mapping[int, np.ndarray], num_asked: int, reserve: int
    ) -> str:
        """Why there is no further iteration, or ""."""
        if not proposals:
            return "no group can meet the step's target (lower agent.round_to, raise env.max_ratio)"
        if self.evaluations is None or num_asked + len(proposals) <= self.evaluations - reserve + 1:
            return ""
        return (
            f"{len(proposals)} candidates are more than the evaluations that are left (raise "
            f"search.evaluations, or set agent.first_step=null)"
        )

    def _note(self, space: CountSpace, family: list[Iteration]) -> None:
        """Write the family as it is now into the findings."""
        task, last = space.task, family[-1]
        ratios = 1.0 - np.asarray(last.counts) / space.sizes
        decisions = [
            Decision(site.name, None, float(ratio))
            for site, ratio in zip(task.sites, ratios, strict=True)
        ]
        plan = task.plan(decisions, space.candidate(np.asarray(last.counts)))
        self._findings[f"netadapt/iteration_{last.iteration:03d}.json"] = plan.to_json()
        rows = [
            {**asdict(row), "on_front": not any(_dominates(other, row) for other in family)}
            for row in family
        ]
        table = {"resource": self.resource, "iterations": rows}
        self._findings["netadapt.json"] = json.dumps(table, indent=1) + "\n"

    def _settings(self) -> dict[str, Any]:
        names = (
            "resource", "relative_resource", "first_step", "decay", "round_to", "selection",
            "metric", "iterations", "training", "latency_table", "latency_batch",
            "latency_threads",
        )  # fmt: skip
        return {**super()._settings(), **{name: getattr(self, name) for name in names}}


def _dominates(one: Iteration, other: Iteration) -> bool:
    """Whether a network is smaller or equal and better or equal, and not equal in both."""
    first, second = (one.relative_macs, -one.accuracy), (other.relative_macs, -other.accuracy)
    return first != second and first[0] <= second[0] and first[1] <= second[1]
