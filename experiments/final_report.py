"""The final measurement of three networks: the only code that opens the test split."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.measurements import Measurements
from experiments.summary import LatencyConditions, NetworkReport
from networks.data import DataSplits
from pruning.evaluation import top1_accuracy
from pruning.fine_tuning import fine_tune
from pruning.keep_set import KeepSet
from pruning.latency import measure_latency, measure_latency_exported
from pruning.masks import slim_masks
from pruning.plan import Candidate
from pruning.recalibration import recalibrate_batch_norm
from pruning.slimming import Slimmer
from pruning.task import PruningTask

log = logging.getLogger(__name__)

StepProgress = Callable[[int, int, float], None]
"""Called after every training step with steps done, steps in total and the loss."""


@dataclass(frozen=True)
class ReportOptions:
    """How the three networks are measured; the same for all of them.

    Attributes:
        fine_tune: arguments of `pruning.fine_tuning.fine_tune`, `epochs` among them.
        recalibrate: whether batch norms are recalibrated before the test, as in the search.
        latency_batch: samples per batch, at least 1.
        latency_threads: CPU threads, at least 1.
        latency_seconds: seconds of repeats per network and runtime.
        latency_onnxruntime: whether to measure in onnxruntime too; None for where it is installed.
        rewound: the unpruned network with the weights that fine-tuning starts from; None for those
            that were pruned.
    """

    fine_tune: Mapping[str, Any]
    recalibrate: bool
    latency_batch: int
    latency_threads: int
    latency_seconds: float
    latency_onnxruntime: bool | None
    rewound: nn.Module | None = None


@dataclass(frozen=True)
class FinalNetwork:
    """A network as the report leaves it, and its numbers.

    Attributes:
        network: the slim network, fine-tuned when the recipe has epochs.
        report: its numbers.
        test_correct: test images it classifies correctly in this final state; None when the
            metric does not count them.
    """

    network: nn.Module
    report: NetworkReport
    test_correct: int | None


class FinalReport:
    """Measures networks side by side after the search has ended.

    Args:
        task: the task that was searched in.
        data: all splits, the test split included.
        options: how to measure.
        measurements: measures on the test split, and may know what another run measured; None
            measures everything here. Latency is measured in every run: it belongs to the machine
            and the moment, and is compared within one report.
    """

    def __init__(
        self,
        task: PruningTask,
        data: DataSplits,
        options: ReportOptions,
        measurements: Measurements | None = None,
    ) -> None:
        self.task = task
        self.data = data
        self.options = options
        self._measurements = measurements or Measurements(task, data.test)
        self._uses_onnxruntime = options.latency_onnxruntime is not False
        self._onnxruntime: str | None = None

    def base(self) -> FinalNetwork:
        """The unpruned network; neither recalibrated nor fine-tuned."""
        task = self.task
        whole = Candidate(KeepSet.full(task.graph))
        network = task.slimmer.materialize(whole.keep)
        test = self._measurements.measure(network, whole)
        report = NetworkReport(
            reward_accuracy=task.base.accuracy,
            reward_loss=task.base.loss,
            test_accuracy=test.accuracy,
            test_accuracy_finetuned=None,
            macs=task.cost.base_macs,
            nonzero_macs=task.cost.base_macs,
            params=task.cost.base_params,
            nonzero_params=task.cost.base_params,
            latency_ms=self._latency(network),
            latency_onnxruntime_ms=self._latency_onnxruntime(network),
        )
        self._check_macs(network, report.macs)
        return FinalNetwork(network, report, self._correct(test.accuracy))

    def pruned(
        self,
        candidate: Candidate,
        *,
        progress: StepProgress | None = None,
        checkpoint: Path | None = None,
        fine_tunes: bool = True,
    ) -> FinalNetwork:
        """A pruned network: tested as the search measured it, then fine-tuned and tested again.

        Args:
            candidate: what is kept.
            progress: called after every step of the fine-tuning.
            checkpoint: file that an interrupted fine-tuning goes on from; it stays.
            fine_tunes: whether it is fine-tuned where the recipe has epochs.

        Raises:
            ValueError: its accuracy is not finite, or the fine-tuning diverges.
        """
        task, search = self.task, self.data.search
        overlay, masks = task.overlay(candidate), task.mask_tensors(candidate)
        reward = task.evaluator.evaluate(candidate, overlay)
        network = task.slimmer.materialize(candidate.keep, overlay=overlay)
        if self.options.recalibrate:
            recalibrate_batch_norm(network, search.calibration, task.evaluator.batch_size)
        accuracy = self._measurements.measure(network, candidate).accuracy
        report = NetworkReport(
            reward_accuracy=reward.accuracy,
            reward_loss=reward.loss,
            test_accuracy=accuracy,
            test_accuracy_finetuned=None,
            macs=task.cost.macs(candidate.keep),
            nonzero_macs=task.cost.nonzero_macs(candidate.keep, masks),
            params=task.cost.params(candidate.keep),
            nonzero_params=task.cost.nonzero_params(candidate.keep, masks),
            latency_ms=self._latency(network),
            latency_onnxruntime_ms=self._latency_onnxruntime(network),
        )
        self._check_macs(network, report.macs)
        if fine_tunes and int(self.options.fine_tune["epochs"]) > 0:
            network = self._rewound(candidate.keep) or network
            fine_tune(
                network,
                search.train,
                masks=slim_masks(task.graph, candidate.keep, masks),
                progress=progress,
                checkpoint=checkpoint,
                teacher=self._teacher(),
                **self.options.fine_tune,
            )
            accuracy = self._measurements.measure(network, candidate).accuracy
            report = replace(report, test_accuracy_finetuned=accuracy)
        return FinalNetwork(network, report, self._correct(accuracy))

    def _rewound(self, keep: KeepSet) -> nn.Module | None:
        """The slim network with early weights, where the recipe starts from them."""
        if self.options.rewound is None:
            return None
        task = self.task
        slimmer = Slimmer(
            self.options.rewound, task.graph, verify=False, executor=task.slimmer.executor
        )
        return slimmer.materialize(keep)

    def _teacher(self) -> nn.Module | None:
        """The unpruned network, where the recipe distils from it."""
        if self.options.fine_tune.get("distillation") is None:
            return None
        return self.task.slimmer.materialize(KeepSet.full(self.task.graph))

    @property
    def latency_conditions(self) -> LatencyConditions:
        """What the latencies are measured with."""
        return LatencyConditions(
            runtime="torch eager",
            batch=self._batch.shape[0],
            threads=self.options.latency_threads,
            onnxruntime=self._onnxruntime,
        )

    @property
    def _batch(self) -> Tensor:
        """Images the latency is measured on, of the reward split."""
        inputs, _ = next(iter(self.data.search.reward.batches(self.options.latency_batch)))
        return inputs

    def _latency(self, network: nn.Module) -> float:
        return measure_latency(
            network,
            self._batch.to(next(network.parameters()).device),
            threads=self.options.latency_threads,
            min_run_time=self.options.latency_seconds,
        ).median_ms

    def _latency_onnxruntime(self, network: nn.Module) -> float | None:
        """Milliseconds in onnxruntime; None, with one line in the log, where that cannot be."""
        if not self._uses_onnxruntime:
            return None
        try:
            latency = measure_latency_exported(
                network,
                self._batch,
                threads=self.options.latency_threads,
                min_run_time=self.options.latency_seconds,
            )
        except ValueError as error:  # the search is over: a missing number, not a lost report
            self._uses_onnxruntime = False
            log.info("Latency in onnxruntime is not measured. %s", error)
            return None
        self._onnxruntime = latency.runtime
        return latency.median_ms

    def _correct(self, accuracy: float) -> int | None:
        counts_images = self.task.evaluator.metric is top1_accuracy
        return round(accuracy * len(self.data.test)) if counts_images else None

    def _check_macs(self, network: nn.Module, expected: int) -> None:
        counted = counted_macs(network, self.task.graph.input_shapes)
        assert counted == expected, (
            f"The cost model says {expected} MACs, the slim network does {counted}: "
            "the cost model or the slimming is wrong."
        )


def counted_macs(network: nn.Module, input_shapes: tuple[tuple[int, ...], ...]) -> int:
    """MACs per sample of a network as it stands, counted by torch itself on the meta device.

    Args:
        network: left unchanged.
        input_shapes: shape of each input, batch axis included.
    """
    with torch.device("meta"):
        inputs = [torch.empty((1, *shape[1:])) for shape in input_shapes]
    on_meta = copy.deepcopy(network).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        on_meta(*inputs)
    flops = counter.get_total_flops()
    assert flops % 2 == 0, "torch counts two operations per multiply-accumulate"
    return flops // 2
