"""Masks inside the weights: built from patterns, applied once, and kept through fine-tuning."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from graphs.network_graph import FROZEN, Group, NetworkGraph
from patterns.library import PatternLibrary
from patterns.pattern import NetworkWidePattern, Pattern
from pruning.keep_set import KeepSet

MaskChoice = tuple[str, str]
"""Where ("operator@group") and which pattern (its name in the library)."""

CACHE_BYTES = 2**28
"""Masks and masked weights kept in memory; the least recently used go first."""


class _Place(NamedTuple):
    """The rows of one weight that a mask at one site of one operator may touch."""

    weight: str
    axis: int
    rows: Tensor  # positions along `axis`


class PatternMasks:
    """Masks and masked weights of every (operator, group, pattern) of one network.

    A pattern chosen for a group masks, in every producer it applies to, the rows (output channels)
    whose unit belongs to the group. Masks are those of the base weights, whatever the slim network.

    Args:
        network: holds the base weights; they are read, never written.
        graph: the traced network.
        library: the patterns that masks are named after.
        cache_bytes: most memory for masks and masked weights.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: NetworkGraph,
        library: PatternLibrary,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._graph = graph
        self._library = library
        self._weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
        self._places = _places(graph)
        self._patterns = self._fitted()
        self._cache: OrderedDict[tuple[str, tuple[MaskChoice, ...], bool], Tensor] = OrderedDict()
        self._cache_bytes = cache_bytes

    def _fitted(self) -> dict[str, Pattern]:
        """The patterns by name, with what they decide for the whole network decided."""
        operators = {operator.weight: operator for operator in self._graph.operators}
        prunable = {place.weight for place in self._places.values()}
        fitted: dict[str, Pattern] = {}
        for pattern in self._library:
            fitted[pattern.name] = pattern
            if isinstance(pattern, NetworkWidePattern):
                names = [name for name in sorted(prunable) if pattern.applies_to(operators[name])]
                fitted[pattern.name] = pattern.fitted([self._weights[name] for name in names])
        return fitted

    def where(self, group: Group, pattern: Pattern) -> tuple[str, ...]:
        """Keys "operator@group" of the producers whose weights `pattern` masks; () when none.

        A weight that several operators share is named once, by its first operator.
        """
        keys: dict[str, str] = {}
        for name in group.producers:
            operator = self._graph.operator_by_name[name]
            key = f"{name}@{group.name}"
            if key not in self._places or not pattern.applies_to(operator):
                continue
            one_row = self._weights[operator.weight][:1]  # a whole weight can take seconds to rank
            if operator.weight not in keys and pattern.mask(one_row) is not None:
                keys[operator.weight] = key
        return tuple(keys.values())

    def tensors(self, choices: Iterable[MaskChoice]) -> dict[str, Tensor]:
        """Boolean masks (True = kept) by weight name, in the shape of the base weights.

        Raises:
            ValueError: no such operator and group, or no such pattern.
        """
        return {name: self._get(name, those, False) for name, those in self._by_weight(choices)}

    def overlay(self, choices: Iterable[MaskChoice]) -> dict[str, Tensor]:
        """Base weights with masked entries exactly zero, by weight name; read-only for the caller.

        Raises:
            ValueError: no such operator and group, or no such pattern.
        """
        return {name: self._get(name, those, True) for name, those in self._by_weight(choices)}

    def _by_weight(
        self, choices: Iterable[MaskChoice]
    ) -> Iterable[tuple[str, tuple[MaskChoice, ...]]]:
        """The choices that touch each weight, in a fixed order."""
        by_weight: dict[str, list[MaskChoice]] = {}
        for key, pattern in choices:
            if key not in self._places:
                raise ValueError(
                    f"No operator and group are called {key!r}. They are: "
                    f"{', '.join(self._places)}."
                )
            by_weight.setdefault(self._places[key].weight, []).append((key, pattern))
        return [(weight, tuple(sorted(those))) for weight, those in by_weight.items()]

    def _get(self, weight: str, choices: tuple[MaskChoice, ...], masked: bool) -> Tensor:
        """The mask of a weight, or the masked weight, from the cache or made now."""
        key = (weight, choices, masked)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        base = self._weights[weight]
        if masked:
            # not a product: that would leave -0.0, and NaN where a weight is infinite
            made = base.masked_fill(~self._get(weight, choices, False), 0.0)
        else:
            made = torch.ones(base.shape, dtype=torch.bool, device=base.device)
            for place_key, name in choices:
                self._carve(made, self._places[place_key], self._pattern(name))
        self._cache[key] = made
        while len(self._cache) > 1 and self._cached_bytes() > self._cache_bytes:
            self._cache.popitem(last=False)
        return made

    def _pattern(self, name: str) -> Pattern:
        return self._patterns[self._library[self._library.index(name)].name]

    def _carve(self, mask: Tensor, place: _Place, pattern: Pattern) -> None:
        """Clear, in place, what `pattern` removes from the rows of `place`."""
        rows = place.rows.to(mask.device)
        weight_rows = self._weights[place.weight].movedim(place.axis, 0)[rows]
        kept = pattern.mask(weight_rows)
        if kept is not None:
            view = mask.movedim(place.axis, 0)
            view[rows] = view[rows] & kept

    def _cached_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._cache.values())


class MaskedWeights:
    """Keeps masked weights at exactly zero while the network that holds them is trained.

    Zeroing gradients is not enough: momentum and weight decay move a weight whose gradient is zero.
    So the weights themselves are cleared, now and after every step of the optimiser:

        masked = MaskedWeights(slim, masks)
        optimizer.register_step_post_hook(masked.after_step)   # or call masked.after_step()

    Args:
        network: the network that is trained.
        masks: boolean masks (True = kept) by parameter name, in the shape of the parameters.

    Raises:
        ValueError: a mask for a parameter the network does not have, or of another shape.
    """

    def __init__(self, network: nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(network.named_parameters(remove_duplicate=False))
        self._removed: list[tuple[Tensor, Tensor]] = []
        for name, mask in masks.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                found = tuple(parameters[name].shape) if name in parameters else "no such parameter"
                raise ValueError(
                    f"The mask of {name!r} has the shape {tuple(mask.shape)}, the network has "
                    f"{found}. Make the masks with pruning.masks.slim_masks for this plan."
                )
            parameter = parameters[name]
            self._removed.append((parameter, ~mask.to(parameter.device, torch.bool)))
        self.after_step()

    @torch.no_grad()
    def after_step(self, *_: object) -> None:
        """Clear the masked weights; takes and ignores what an optimiser hook is given."""
        for parameter, removed in self._removed:
            parameter.masked_fill_(removed, 0.0)


class _Masked(nn.Module):
    """Parametrisation of a weight: the product of a free tensor and a mask.

    Args:
        mask: True for kept entries.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(~self.get_buffer("mask"), 0.0)


def parametrize_masks(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Make masks part of a network: its weights are products of free tensors and masks.

    For training loops that Topiary does not own: no hook has to be called, the masks are buffers of
    the state dict, and copies keep them. `remove_mask_parametrizations` leaves plain weights.

    Args:
        network: the network; changed in place.
        masks: boolean masks (True = kept) by parameter name, in the shape of the parameters.

    Raises:
        ValueError: a mask for a parameter the network does not have, or of another shape.
    """
    MaskedWeights(network, masks)  # refuses what does not fit
    for name, mask in masks.items():
        path, _, local = name.rpartition(".")
        owner = network.get_submodule(path)
        parametrization = _Masked(mask.to(getattr(owner, local).device, torch.bool))
        parametrize.register_parametrization(owner, local, parametrization, unsafe=True)


def remove_mask_parametrizations(network: nn.Module) -> None:
    """Undo `parametrize_masks`; the weights keep their values, masked entries exactly zero."""
    for module in list(network.modules()):
        if not parametrize.is_parametrized(module):
            continue
        for name, those in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
            if any(isinstance(each, _Masked) for each in those):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def slim_masks(
    graph: NetworkGraph, keep: KeepSet, masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Masks of full width cut to the kept channels, to fit the slim network.

    Args:
        graph: the traced network.
        keep: the channels that stay.
        masks: boolean masks by weight name, in the shape of the base weights.

    Returns:
        Boolean masks by weight name, in the shape of the slim network's weights.
    """
    slim = dict(masks)
    kept = np.append(keep.mask, True)  # FROZEN is -1: the last entry, always kept
    for axis_slice in graph.slices:
        if axis_slice.tensor in slim:
            mask = slim[axis_slice.tensor]
            positions = torch.from_numpy(np.flatnonzero(kept[list(axis_slice.units)]))
            slim[axis_slice.tensor] = mask.index_select(axis_slice.axis, positions.to(mask.device))
    return slim


def density(mask: Tensor) -> float:
    """Fraction of the entries that a boolean mask keeps, in [0, 1]."""
    return mask.count_nonzero().item() / max(mask.numel(), 1)


def output_axes(graph: NetworkGraph) -> dict[str, int]:
    """Axis of each operator's weight that holds its output channels, by weight name.

    It is axis 0, except in transposed convolutions, which are told apart by their axes' units.
    """
    units = {(piece.tensor, piece.axis): piece.units for piece in graph.slices}
    axes = {}
    for operator in graph.operators:
        if operator.weight:
            first = units.get((operator.weight, 0))
            second = units.get((operator.weight, 1))
            # outputs that all stay are not listed, so the inputs tell them apart then
            transposed = second == operator.out_units or first == operator.in_units
            axes[operator.weight] = int(transposed and first != operator.out_units)
    return axes


def _places(graph: NetworkGraph) -> dict[str, _Place]:
    """Where a mask can be laid: by "operator@group", for operators that have a weight."""
    axes = output_axes(graph)
    units = {(piece.tensor, piece.axis): np.asarray(piece.units) for piece in graph.slices}
    owner = np.append(graph.unit_group, FROZEN)  # FROZEN is -1: the last entry
    places = {}
    for index, group in enumerate(graph.groups):
        for name in group.producers:
            weight = graph.operator_by_name[name].weight
            if weight and (weight, axes[weight]) in units:
                rows = np.flatnonzero(owner[units[weight, axes[weight]]] == index)
                place = _Place(weight, axes[weight], torch.from_numpy(rows))
                places[f"{name}@{group.name}"] = place
    return places
