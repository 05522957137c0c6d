"""What importance criteria share: their inputs, and how values of weights become unit scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from graphs.network_graph import AxisSlice, NetworkGraph
from networks.data import SampleSet
from pruning.masks import output_axes
from pruning.recalibration import evaluation_mode

SCOPES = ("producer", "consumer", "group")

Loss = Callable[[Tensor, Tensor], Tensor]
"""From network outputs and targets of a batch to the mean loss, differentiable."""


@dataclass(frozen=True)
class ScoringInputs:
    """What a criterion may read.

    Attributes:
        criterion: its name, for messages.
        network: the unpruned network; whoever runs it does so inside `undisturbed`.
        graph: the traced network.
        tensors: parameters and buffers by state-dict name.
        data: samples for criteria that need some; read through `samples`.
        scope: one of SCOPES, which weights count.
        seed: of criteria that draw.
        loss: of criteria that read gradients; None for cross-entropy.
    """

    criterion: str
    network: nn.Module
    graph: NetworkGraph
    tensors: Mapping[str, Tensor]
    data: SampleSet | None
    scope: str
    seed: int
    loss: Loss | None

    @property
    def samples(self) -> SampleSet:
        """The samples.

        Raises:
            ValueError: there are none, or the network needs more than one input per sample.
        """
        if self.data is None or len(self.data) == 0:
            found = "data=None" if self.data is None else "an empty sample set"
            raise ValueError(
                f"importance.criterion={self.criterion} runs the network on samples, got {found}. "
                f"Pass data=SampleSet(...), or change importance.criterion to l1."
            )
        if len(self.graph.input_shapes) != 1:
            raise ValueError(
                f"importance.criterion={self.criterion} runs the network on a sample set, which "
                f"holds one input per sample; the network takes {len(self.graph.input_shapes)}. "
                f"Change importance.criterion to l1."
            )
        return self.data

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs, in the dtype of the network, and targets; both on its device."""
        reference = next(self.network.parameters())
        for inputs, targets in self.samples.batches(batch_size):
            yield inputs.to(reference), targets.to(reference.device)


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Run the network in eval mode; its modes and torch's random state are put back at the end."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(list(devices)), evaluation_mode(network):
        yield


def sum_over_scope(inputs: ScoringInputs, values_of: Callable[[str], Tensor | None]) -> np.ndarray:
    """Sum, per unit, of values of the weights in the scope.

    Args:
        inputs: the graph and the scope.
        values_of: from a parameter's name to one value per entry; None leaves it out.

    Returns:
        float64, shape (num_units,).

    Raises:
        ValueError: a group with a unit that no value belongs to.
    """
    graph = inputs.graph
    total, covered = np.zeros(graph.num_units), np.zeros(graph.num_units)
    for piece in slices_in_scope(graph, inputs.scope):
        values = values_of(piece.tensor)
        if values is None:
            continue
        others = [axis for axis in range(values.ndim) if axis != piece.axis]
        add_to_units(
            total, piece.units, values.sum(others, dtype=torch.float64) if others else values
        )
        add_to_units(covered, piece.units, torch.ones(len(piece.units)))
    refuse_uncovered(
        graph,
        covered > 0,
        f"has no weight that importance.scope={inputs.scope} reads. "
        f"Change importance.scope to group.",
    )
    return total


def slices_in_scope(graph: NetworkGraph, scope: str) -> Iterator[AxisSlice]:
    """The tensor axes whose weights count; each parameter axis once, however often it is used."""
    axes = output_axes(graph)
    for piece in graph.slices:
        side = None
        if piece.tensor in axes:
            side = "producer" if axes[piece.tensor] == piece.axis else "consumer"
        if piece.tensor in graph.parameters and scope in ("group", side):
            yield piece


def add_to_units(total: np.ndarray, position_units: tuple[int, ...], values: Tensor) -> None:
    """Add one value per position to the units that own the positions; `total` is written."""
    units = np.asarray(position_units)
    owned = units >= 0  # FROZEN positions belong to no unit
    array = values.detach().to("cpu", torch.float64).numpy()
    np.add.at(total, units[owned], array[owned])


def refuse_uncovered(graph: NetworkGraph, covered: np.ndarray, reason: str) -> None:
    """Raise ValueError for the first group with a unit that was given no score."""
    for group in graph.groups:
        if not covered[list(group.units)].all():
            raise ValueError(f"Group {group.name!r} {reason}")
