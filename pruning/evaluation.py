"""Accuracy of a pruned network on the reward split, measured fast and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from networks.data import SampleSet
from pruning.folding import channels_last_weights, folded
from pruning.growth import Growth
from pruning.memory import release_freed_memory
from pruning.outputs import device_of, forward, outputs_and_targets, takes_channels_last
from pruning.plan import Candidate
from pruning.recalibration import (
    MIN_BATCH,
    balanced_split,
    evaluation_mode,
    normalised_tensors,
    recalibrate_on_batches,
)
from pruning.slimming import Slimmer

Metric = Callable[[Tensor, Tensor], float]
"""Number from the outputs (N, ...) and the targets (N, ...) of a whole sample set."""


RELEASE_EVERY = 10
"""Evaluations after which freed memory is given back."""


class NonFiniteAccuracy(ValueError):  # noqa: N818
    """A network was measured and its accuracy or loss is NaN or infinite."""


@dataclass(frozen=True)
class Evaluation:
    """One measurement of a network.

    Attributes:
        accuracy: fraction of correct answers in [0, 1], or the value of the user's metric.
        loss: mean cross-entropy in nats, or the value of the user's loss.
        num_samples: images it was measured on.
        cached: whether it was answered from memory, at no cost.
    """

    accuracy: float
    loss: float
    num_samples: int
    cached: bool = False

    @property
    def likelihood(self) -> float:
        """exp(−loss) in [0, 1]: for cross-entropy the geometric mean probability of the truth.

        A smooth companion of `accuracy`. A user's loss below 0 counts as 0.
        """
        return math.exp(-max(self.loss, 0.0))


def top1_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Fraction of rows of `outputs` (N, classes) whose largest score is at `targets` (N,)."""
    return (outputs.argmax(dim=1) == targets).double().mean().item()


def cross_entropy(outputs: Tensor, targets: Tensor) -> float:
    """Mean cross-entropy in nats of scores `outputs` (N, classes) and classes `targets` (N,)."""
    return nn.functional.cross_entropy(outputs, targets).item()


Outcome = Evaluation | NonFiniteAccuracy
"""What came of measuring a candidate."""


class Journal(Protocol):
    """Keeps counted evaluations beyond the end of the process; see `pruning.journal`."""

    def holds(self, candidate: Candidate) -> bool:
        """Whether the measurement of a candidate is there to be replayed."""

    def replay(self, candidate: Candidate) -> Outcome | None:
        """What was measured before at this point of the search; None when it has to be measured."""

    def record(self, candidate: Candidate, outcome: Outcome) -> None:
        """Keep an evaluation that was just measured and counted."""


class Evaluator:
    """Measures pruned networks; one object is shared by everything that searches.

    A candidate is slimmed, its batch norms are recalibrated on the calibration split and folded
    away, and it runs in inference mode over the reward split. Images are normalised once and stay
    in memory. Each candidate is measured once; asked again, it is answered from memory.

    Args:
        slimmer: makes slim networks of the network that is pruned.
        calibration: images for batch-norm statistics; not read when `recalibrate` is off.
        reward: images the accuracy is measured on.
        recalibrate: whether batch-norm statistics are measured again after slimming.
        fold: whether batch norms are folded into convolutions for the measurement.
        channels_last: whether images and kernels are laid out channels last (4-d inputs only; a
            network that calls `view` across channels keeps torch's default layout).
        batch_size: most images in one forward pass.
        growth: fewer images for the first evaluations; None uses all of them in each.
        metric: from all outputs and targets to one number, higher is better; top-1 by default.
        loss: from all outputs and targets to one number, lower is better; cross-entropy by
            default. A task that is not classification needs both.

    Attributes:
        num_evaluations: candidates measured so far, the unit in which search is paid.
        num_cache_hits: candidates answered from memory so far.
        growth: as given; a search that ends sets it to None, after which all images are used.
        channels_last: whether candidates are measured channels last; off for a network that cannot.
        wants_channels_last: as given.
        journal: what counted evaluations are written to, and answered from when a search is
            resumed; an answer is counted like the measurement it stands for. None keeps none.

    Raises:
        ValueError: an empty split, or a batch size that is too small.
    """

    def __init__(
        self,
        slimmer: Slimmer,
        calibration: SampleSet,
        reward: SampleSet,
        *,
        recalibrate: bool = True,
        fold: bool = True,
        channels_last: bool = True,
        batch_size: int = 250,
        growth: Growth | None = None,
        metric: Metric | None = None,
        loss: Metric | None = None,
    ) -> None:
        smallest = MIN_BATCH if recalibrate else 1
        if batch_size < smallest:
            raise ValueError(
                f"evaluation.batch_size must be at least {smallest}"
                f"{' with recalibration' if recalibrate else ''}, got {batch_size}."
            )
        self.slimmer = slimmer
        self.recalibrate = recalibrate
        self.fold = fold
        self.channels_last = channels_last
        self.wants_channels_last = channels_last
        self.batch_size = batch_size
        self.growth = growth
        self.metric: Metric = metric if metric is not None else top1_accuracy
        self.loss: Metric = loss if loss is not None else cross_entropy
        self.num_evaluations = 0
        self.num_cache_hits = 0
        self.journal: Journal | None = None
        self._known: dict[Candidate, Outcome] = {}
        self._prepared: dict[Candidate, Outcome] = {}
        self._num_measured = 0
        self._inputs, self._targets = self._load(reward, "reward")
        if channels_last and not takes_channels_last(slimmer.network, self._inputs[0]):
            self.channels_last = False
            self._inputs = tuple(batch.contiguous() for batch in self._inputs)
        self._calibration = self._load(calibration, "calibration")[0] if recalibrate else None

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process has measured nothing yet."""
        return {**self.__dict__, "_known": {}, "_prepared": {}, "journal": None}

    @property
    def num_images(self) -> int:
        """Images of the reward split that the next counted evaluation uses."""
        return self.images_ahead(0)

    def images_ahead(self, ahead: int) -> int:
        """Images that an evaluation uses before which `ahead` others are still to be counted."""
        total = len(self._targets)
        if self.growth is None:
            return total
        return self.growth.images(self.num_evaluations + 1 + ahead, total)

    def evaluate(
        self, candidate: Candidate, overlay: Mapping[str, Tensor] | None = None
    ) -> Evaluation:
        """Accuracy and loss of `candidate` on the reward split.

        Args:
            candidate: what is kept; its value is the key of the cache.
            overlay: full-width tensors used instead of base weights, by state-dict name. It must
                follow from the candidate, since the cache does not look at it.

        Raises:
            NonFiniteAccuracy: accuracy or loss is NaN or infinite; counted (and remembered) like
                any other measurement.
        """
        known = self._known.get(candidate)
        if known is not None and self._suffices(known):
            self.num_cache_hits += 1
            if isinstance(known, NonFiniteAccuracy):
                raise NonFiniteAccuracy(*known.args)
            return replace(known, cached=True)
        replayed = None if self.journal is None else self.journal.replay(candidate)
        outcome = replayed or self._prepared.pop(candidate, None)
        if outcome is None or not (replayed or self._suffices(outcome)):
            outcome = self.outcome(candidate, overlay)
        self.num_evaluations += 1
        if self.journal is not None and replayed is None:
            self.journal.record(candidate, outcome)
        self._known[candidate] = outcome
        if isinstance(outcome, NonFiniteAccuracy):
            raise NonFiniteAccuracy(*outcome.args)
        return outcome

    def outcome(
        self,
        candidate: Candidate,
        overlay: Mapping[str, Tensor] | None = None,
        *,
        images: int | None = None,
    ) -> Outcome:
        """What `evaluate` would measure, neither counted nor remembered.

        Args:
            candidate: as there.
            overlay: as there.
            images: the first so many of the reward split; None for `num_images`.
        """
        images = self.num_images if images is None else images
        outputs = self._outputs_of(candidate, overlay, self._first_inputs(images))
        self._num_measured += 1
        if self._num_measured % RELEASE_EVERY == 0:
            release_freed_memory()
        try:
            return self._score(outputs, self._targets[:images], lambda: _describe(candidate))
        except NonFiniteAccuracy as error:
            return NonFiniteAccuracy(*error.args)

    def has(self, candidate: Candidate) -> bool:
        """Whether a candidate can be answered without measuring it now."""
        is_replayed = self.journal is not None and self.journal.holds(candidate)
        found = (self._known.get(candidate), self._prepared.get(candidate))
        return is_replayed or any(each is not None and self._suffices(each) for each in found)

    def prepare(self, outcomes: Mapping[Candidate, Outcome]) -> None:
        """Take what was measured elsewhere; each counts when it is asked for, and not before.

        Args:
            outcomes: what an evaluator with the same network, images and options measured.
        """
        self._prepared.update(outcomes)

    def evaluate_trained(self, candidate: Candidate, network: nn.Module) -> Evaluation:
        """Accuracy and loss, on the reward split, of a pruned network that was trained further.

        Counted like any other evaluation, and never answered from memory: its weights do not follow
        from the candidate.

        Args:
            candidate: what the network keeps, for messages.
            network: an independent slim network; its batch norms are recalibrated in place.

        Raises:
            NonFiniteAccuracy: accuracy or loss is NaN or infinite; counted all the same.
        """
        with evaluation_mode(network):
            if self._calibration is not None:
                recalibrate_on_batches(network, self._calibration)
            outputs = forward(network, self._inputs)
        self.num_evaluations += 1
        return self._score(outputs, self._targets, lambda: f"{_describe(candidate)}, trained")

    def measure(
        self, network: nn.Module, samples: SampleSet, *, channels_last: bool = False
    ) -> Evaluation:
        """Accuracy and loss of any network on any sample set, as it is; neither counted nor cached.

        Args:
            network: runs in eval mode without recalibration or folding; left unchanged.
            samples: any split, also the test split.
            channels_last: see `outputs_and_targets`; faster, and equal up to rounding.

        Raises:
            NonFiniteAccuracy: accuracy or loss is NaN or infinite.
            ValueError: the sample set is empty.
        """
        outputs, targets = outputs_and_targets(
            network, samples, self.batch_size, channels_last=channels_last
        )
        return self._score(outputs, targets, lambda: f"the {type(network).__name__}")

    def _load(self, samples: SampleSet, split: str) -> tuple[tuple[Tensor, ...], Tensor]:
        """Batches of normalised inputs in the memory format they are used in, and all targets."""
        if len(samples) == 0:
            raise ValueError(f"The {split} split is empty. Raise data.{split}_size.")
        inputs, targets = normalised_tensors(samples, self.batch_size)
        device = device_of(self.slimmer.network)
        inputs = inputs.to(device)
        if self.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return balanced_split(inputs, self.batch_size), targets.to(device)

    def _suffices(self, outcome: Outcome) -> bool:
        """Whether it was measured on as many images as would be used now."""
        return isinstance(outcome, NonFiniteAccuracy) or outcome.num_samples >= self.num_images

    def _first_inputs(self, images: int) -> tuple[Tensor, ...]:
        """Batches of the first images of the reward split, without a copy."""
        if images == len(self._targets):
            return self._inputs
        batches, left = [], images
        for batch in self._inputs:
            if left > 0:
                batches.append(batch[:left])
                left -= len(batch)
        return tuple(batches)

    def _outputs_of(
        self,
        candidate: Candidate,
        overlay: Mapping[str, Tensor] | None,
        inputs: tuple[Tensor, ...],
    ) -> Tensor:
        """Outputs (N, ...) of the slim network on batches of inputs."""
        with ExitStack() as stack:
            slim = stack.enter_context(
                self.slimmer.applied(candidate.keep, copy=self.recalibrate, overlay=overlay)
            )
            stack.enter_context(evaluation_mode(slim))
            if self.channels_last and self._inputs[0].dim() == 4:
                stack.enter_context(channels_last_weights(slim))
            if self._calibration is not None:
                recalibrate_on_batches(slim, self._calibration)
            if self.fold:
                stack.enter_context(folded(slim, self.slimmer.graph.folds))
            return forward(slim, inputs)

    def _score(self, outputs: Tensor, targets: Tensor, describe: Callable[[], str]) -> Evaluation:
        with torch.inference_mode():
            accuracy = float(self.metric(outputs, targets))
            loss = float(self.loss(outputs, targets))
        for name, value in (("accuracy", accuracy), ("loss", loss)):
            if not math.isfinite(value):
                rows = torch.isfinite(outputs).reshape(len(outputs), -1)
                broken = len(outputs) - int(rows.all(dim=1).sum())
                raise NonFiniteAccuracy(
                    f"The {name} of {describe()} is {value} (accuracy {accuracy}, loss {loss}); "
                    f"{broken} of {len(outputs)} outputs hold NaN or infinity. Check the weights "
                    "of the network, evaluation.recalibrate and evaluation.metric."
                )
        return Evaluation(accuracy, loss, len(targets))


def _describe(candidate: Candidate) -> str:
    counts = ", ".join(str(count) for count in candidate.keep.counts)
    masks = "".join(f", {where}: {pattern}" for where, pattern in candidate.masks)
    return f"the candidate that keeps [{counts}] channels of its groups{masks}"
