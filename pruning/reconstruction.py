"""Least-squares reconstruction: kept weights are refitted to what the unpruned network computed.

The second step of He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks"
(https://arxiv.org/abs/1707.06168), equation 2 for W. No training, and no labels: a few
hundred images and one linear system per operator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphs.network_graph import Operator
from networks.data import SampleSet
from pruning.evaluation import Evaluator, Outcome
from pruning.keep_set import KeepSet
from pruning.least_squares import outputs_of, refitted, ridge_solve
from pruning.masks import output_axes
from pruning.patches import (
    POSITIONS_PER_IMAGE,
    Draws,
    Moments,
    OperatorCall,
    OperatorCalls,
    chunks,
    gather_moments,
    gram_bytes,
    run_batches,
)
from pruning.plan import Candidate
from pruning.scoring import undisturbed
from pruning.slimming import Slimmer

MODES = ("dense", "sequential")

BATCH_SIZE = 128
"""Images in one forward pass of the unpruned network."""

CACHE_BYTES = 2**30
"""Most memory for the Gram matrices of the dense mode that are kept, and for those being gathered.

Those that do not fit are gathered again for every keep-set: VGG-16 for CIFAR-10 takes about 1 GB,
ResNet-56 60 MB."""


class Reconstruction(Protocol):
    """How weights are refitted; bound to one network and its calibration images by `bind`."""

    def bind(self, slimmer: Slimmer, samples: SampleSet, *, recalibrate: bool) -> Reconstructor:
        """What refits the weights of `slimmer.network`."""


@dataclass(frozen=True)
class LeastSquares:
    """Least-squares refit of every convolution and linear layer that lost inputs.

    Attributes:
        mode: "dense": inputs X and outputs Y are the unpruned network's; their Gram matrices are
            summed up once, and a keep-set costs one linear system per operator. "sequential": X is
            what the slim network itself computes, with all earlier operators refitted, in one
            forward pass per keep-set; corrects errors that add up over the layers, and depthwise
            convolutions, whose own inputs are never removed.
        samples: calibration images used, at least 1; None for all. Sequential mode holds the
            activations of all of them at once.
        positions_per_image: output positions sampled per image and operator, at least 1.
        ridge: penalty on the change of a weight, relative to the mean square of its inputs, above
            0. Weights stay at their base value where the samples say nothing; a few hundred images
            leave many such directions, so much less than the default fits their noise.
        seed: of the sampled positions.

    Raises:
        ValueError: a value is out of range.
    """

    mode: str = "dense"
    samples: int | None = None
    positions_per_image: int = POSITIONS_PER_IMAGE
    ridge: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(
                f"reconstruction.mode must be one of {', '.join(MODES)}, got {self.mode!r}."
            )
        if self.samples is not None and self.samples < 1:
            raise ValueError(
                f"reconstruction.samples must be 1 or more, or null for all, got {self.samples}."
            )
        if self.positions_per_image < 1:
            raise ValueError(
                f"reconstruction.positions_per_image must be 1 or more, "
                f"got {self.positions_per_image}."
            )
        if not 0.0 < self.ridge < float("inf"):
            raise ValueError(f"reconstruction.ridge must be a number above 0, got {self.ridge}.")

    def bind(self, slimmer: Slimmer, samples: SampleSet, *, recalibrate: bool) -> Reconstructor:
        """What refits the weights of `slimmer.network` on some of its calibration images."""
        return Reconstructor(slimmer, samples, self, recalibrate=recalibrate)


class Reconstructor:
    """Refits weights for keep-sets; the base weights are only read.

    Left alone: weights that an overlay replaces (masks), weights that several operators or names
    share, attentions, and operators whose outputs are right already.
    Biases are refitted with their weights (by centring inputs and outputs); an operator without
    bias gets none.

    Args:
        slimmer: makes slim networks of the network that is pruned.
        samples: calibration images.
        settings: how.
        recalibrate: whether batch norms will be recalibrated after pruning; sequential mode then
            normalises by the statistics of its own images, as the recalibrated network will.
        cache_bytes: see CACHE_BYTES.

    Raises:
        ValueError: no images, or a network that takes more than one input.
    """

    def __init__(
        self,
        slimmer: Slimmer,
        samples: SampleSet,
        settings: LeastSquares,
        *,
        recalibrate: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        graph = slimmer.graph
        if len(samples) == 0 or len(graph.input_shapes) != 1:
            found = "no images" if len(samples) == 0 else f"{len(graph.input_shapes)} inputs"
            raise ValueError(
                "reconstruction=least_squares runs a network of one input on calibration images, "
                f"got {found}. Raise data.calibration_size, or change reconstruction to none."
            )
        self.settings = settings
        self.recalibrate = recalibrate
        self._slimmer = slimmer
        count = min(len(samples), settings.samples or len(samples))
        self._samples = samples.subset(range(count))
        self._draws = Draws(graph, count, settings.positions_per_image, settings.seed)
        uses = Counter(operator.weight for operator in graph.operators)
        self._tied = set(graph.aliases.values())
        self._operators = [
            operator
            for operator in graph.operators
            if operator.weight and uses[operator.weight] == 1 and operator.weight not in self._tied
        ]
        units = {(piece.tensor, piece.axis): piece.units for piece in graph.slices}
        self._units = {place: np.asarray(listed) for place, listed in units.items()}
        self._output_axes = output_axes(graph)
        self._cache_bytes = cache_bytes
        self._moments: dict[str, Moments] = {}
        self._targets: dict[str, Tensor] = {}

    def overlay(
        self, keep: KeepSet, overlay: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Refitted weights of one keep-set.

        Args:
            keep: the channels that stay.
            overlay: weights that replace base weights in any case (masks), by state-dict name.

        Returns:
            Full-width weights and biases by state-dict name, those of `overlay` among them;
            operators that need no correction are not. Entries of removed channels mean nothing.

        Raises:
            ValueError: an operator runs more or less often than when the network was traced.
        """
        given = dict(overlay or {})
        if keep.is_full and not given:
            return {}
        refit = self._sequential if self.settings.mode == "sequential" else self._dense
        return {**refit(keep, given), **given}

    # ------------------------------------------------------------------------------------ dense

    def _dense(self, keep: KeepSet, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every operator for itself, from the Gram matrices of the unpruned network."""
        made: dict[str, Tensor] = {}
        kept_inputs: dict[str, np.ndarray] = {}
        for operator in self._operators:
            # a depthwise convolution has no input axis: its channels go as inputs and outputs
            kept = self._kept(keep, operator.weight, 1 - self._output_axes[operator.weight])
            if kept is not None and not kept.all() and operator.weight not in given:
                kept_inputs[operator.name] = kept
        wanted = [operator for operator in self._operators if operator.name in kept_inputs]
        for operator in wanted:
            if operator.name in self._moments:
                moments, kept = self._moments[operator.name], kept_inputs[operator.name]
                made.update(self._solve(operator, moments, kept, given))
        missing = [operator for operator in wanted if operator.name not in self._moments]
        for operators in chunks(missing, self._cache_bytes):
            network = self._slimmer.network
            gathered = gather_moments(network, operators, self._batches(), self._draws)
            for operator in operators:
                moments, kept = gathered.pop(operator.name), kept_inputs[operator.name]
                made.update(self._solve(operator, moments, kept, given))
                # what fits stays; dropping the oldest would drop all, since all are read in turn
                used = sum(known.gram.numel() * 8 for known in self._moments.values())
                if used + gram_bytes(operator) <= self._cache_bytes:
                    self._moments[operator.name] = moments
        return made

    def _solve(
        self, operator: Operator, moments: Moments, kept: np.ndarray, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """W' = W + W[:, lost] G[lost, kept] (G[kept, kept] + ridge)^-1, on the kept inputs."""
        call = moments.call
        bias_name = self._own_bias(self._slimmer.network, call.bias, given)
        gram = moments.gram if bias_name is None else moments.centred
        rows = call.rows(call.weight.detach()).double()
        kept = kept[: rows.shape[2] // call.kernel]  # blocks keep the same inputs
        stays = torch.from_numpy(kept).repeat_interleave(call.kernel).to(gram.device)
        lost = rows[:, :, ~stays] @ gram[:, ~stays][:, :, stays]
        change = torch.zeros_like(rows)
        change[:, :, stays] = ridge_solve(gram[:, stays][:, :, stays], lost, self.settings.ridge)
        made = {operator.weight: call.from_rows(rows + change)}
        if bias_name is not None:
            assert call.bias is not None, "it has a name"
            # the mean output stays: b' = b + (W - W') mean(x), where W' is zero on lost inputs
            moved = torch.where(stays, -change, rows) * (moments.total / moments.count)[:, None]
            made[bias_name] = call.bias.detach() + moved.sum(2).flatten().to(call.bias.dtype)
        return made

    # ------------------------------------------------------------------------------- sequential

    def _sequential(self, keep: KeepSet, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One forward pass of the slim network; each operator is refitted when it is reached."""
        made: dict[str, Tensor] = {}
        targets = self._dense_outputs()
        base = self._parameters(self._slimmer.network)
        inputs = torch.cat(list(self._batches()))
        operators = [op for op in self._operators if op.weight not in given]

        def refit(call: OperatorCall) -> tuple[Tensor, Tensor | None] | None:
            name = call.operator.weight
            bias_name = self._own_bias(slim, call.bias, given)
            target = targets[call.operator.name].to(call.weight.device)
            kept = self._kept(keep, name, self._output_axes[name])
            if kept is not None:  # a transposed convolution's output axis is that of one block
                kept = np.tile(kept, target.shape[1] // len(kept))
                target = target[:, torch.from_numpy(kept).to(target.device)]
            patches = call.patches(self._draws.of(call.operator, 0, len(inputs)))
            fitted = refitted(call, patches, target, bias_name is not None, self.settings.ridge)
            if fitted is None:
                return None
            made[name] = self._widened(keep, name, base[name], fitted[0])
            if bias_name is not None and fitted[1] is not None:
                made[bias_name] = self._widened(keep, bias_name, base[bias_name], fitted[1])
            return fitted

        with self._slimmer.applied(keep, copy=True, overlay=given) as slim:
            with undisturbed(slim), torch.no_grad(), OperatorCalls(slim, operators, refit) as calls:
                if self.recalibrate and len(inputs) > 1:
                    for module in slim.modules():
                        module.training = isinstance(module, _BatchNorm)
                slim(inputs)
            calls.check()
        return made

    def _dense_outputs(self) -> Mapping[str, Tensor]:
        """What the unpruned network computes at the sampled positions, (samples, outputs)."""
        if self._targets:
            return self._targets
        parts: dict[str, list[Tensor]] = {operator.name: [] for operator in self._operators}

        def read(call: OperatorCall, start: int, stop: int) -> None:
            patches = call.patches(self._draws.of(call.operator, start, stop))
            parts[call.operator.name].append(outputs_of(call, patches).float())

        run_batches(self._slimmer.network, self._operators, self._batches(), read)
        self._targets = {name: torch.cat(found) for name, found in parts.items() if found}
        return self._targets

    def _widened(self, keep: KeepSet, name: str, base: Tensor, slim: Tensor) -> Tensor:
        """A copy of the base tensor with the entries of kept channels replaced."""
        wide = base.detach().clone()
        index = []
        for axis, size in enumerate(wide.shape):
            kept = self._kept(keep, name, axis)
            index.append(np.arange(size) if kept is None else np.flatnonzero(kept))
        wide[np.ix_(*index)] = slim.to(wide.dtype)
        return wide

    # ----------------------------------------------------------------------------------- shared

    def _batches(self) -> Iterator[Tensor]:
        reference = next(self._slimmer.network.parameters())
        for inputs, _ in self._samples.batches(BATCH_SIZE):
            yield inputs.to(reference)

    def _kept(self, keep: KeepSet, name: str, axis: int) -> np.ndarray | None:
        """Which positions of a tensor's axis stay; None for an axis without units."""
        units = self._units.get((name, axis))
        return None if units is None else np.append(keep.mask, True)[units]

    def _own_bias(
        self, network: nn.Module, bias: Tensor | None, given: Mapping[str, Tensor]
    ) -> str | None:
        """Name of a bias that may be refitted."""
        if bias is None:
            return None
        for name, parameter in self._parameters(network).items():
            if parameter is bias:
                return None if name in given or name in self._tied else name
        return None

    @staticmethod
    def _parameters(network: nn.Module) -> dict[str, nn.Parameter]:
        return dict(network.named_parameters())


class ReconstructingEvaluator(Evaluator):
    """An evaluator that refits a candidate it is given no overlay for.

    Args:
        overlay_of: from a candidate to all the tensors it replaces; asked only for candidates that
            are measured.
        arguments: of `Evaluator`.
        options: of `Evaluator`.
    """

    def __init__(
        self,
        overlay_of: Callable[[Candidate], Mapping[str, Tensor]],
        *arguments: Any,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._overlay_of = overlay_of

    def outcome(
        self,
        candidate: Candidate,
        overlay: Mapping[str, Tensor] | None = None,
        *,
        images: int | None = None,
    ) -> Outcome:
        """See `Evaluator.outcome`; no overlay stands for the candidate's own."""
        if overlay is None:
            overlay = self._overlay_of(candidate)
        return super().outcome(candidate, overlay, images=images)
