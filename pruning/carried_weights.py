"""Weights that are trained on from one slim network to the next, slimmer one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pruning.keep_set import KeepSet
from pruning.slimming import Slimmer


class CarriedWeights:
    """Full-width weights that start as the base weights and take over what was trained.

    Entries of channels that are gone keep their last value. The base weights are never written.

    Args:
        slimmer: makes slim networks of the network that is pruned.
    """

    def __init__(self, slimmer: Slimmer) -> None:
        self._slimmer = slimmer
        self._tensors: dict[str, Tensor] = {}
        self._units = {
            (piece.tensor, piece.axis): np.asarray(piece.units) for piece in slimmer.graph.slices
        }

    def network(self, keep: KeepSet) -> nn.Module:
        """An independent slim network with the weights as they are now, ready to train."""
        return self._slimmer.materialize(keep, overlay=self._tensors)

    def take_over(self, keep: KeepSet, network: nn.Module) -> None:
        """Take over the parameters and buffers of a slim network.

        Args:
            keep: its channels.
            network: what `network(keep)` gave, trained.
        """
        whole = [*self._slimmer.network.named_parameters(), *self._slimmer.network.named_buffers()]
        trained = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        kept = np.append(keep.mask, True)  # index FROZEN (-1) reads the appended True
        for name, base in whole:
            wide = self._tensors.get(name, base).detach().clone()
            index = [
                np.flatnonzero(kept[units]) if units is not None else np.arange(size)
                for axis, size in enumerate(wide.shape)
                for units in [self._units.get((name, axis))]
            ]
            slim = trained[name].detach()
            if index:
                wide[tuple(torch.from_numpy(i) for i in np.ix_(*index))] = slim
            else:  # a scalar, such as a batch norm's count of batches
                wide = slim.clone()
            self._tensors[name] = wide
