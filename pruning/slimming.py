"""Removing channels: slices of the base weights are swapped into the user's network and back.

The base weights are never written, so undo is exact to the bit. `Slimmer.masked` is the
reference: the full-width network
with the same channels zeroed; its outputs equal those of the slim network.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphs.network_graph import NetworkGraph
from pruning.keep_set import KeepSet
from pruning.masked_norms import MaskedNorms
from pruning.replaying import replayed

EXECUTORS = ("auto", "swap", "replay")

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest difference of slim and masked outputs, relative to the largest output, by dtype."""


class SlimmingError(ValueError):
    """The slim network does not run, or does not compute what the masked network computes."""


class Slimmer:
    """Makes a network slim and whole again.

    Not re-entrant: one keep-set is applied at a time.

    Args:
        network: the user's network; it stays theirs, and is whole again after every use.
        graph: its graph from `trace_network`.
        verify: compare slim and masked outputs on two random keep-sets now.
        executor: how the network runs slim. "swap": its own code on smaller tensors. "replay": its
            own code, with the channel numbers that it holds corrected call by call. "auto": swap
            where that works, replay where not; without `verify` only what tracing saw decides.

    Attributes:
        executor: "swap" or "replay".

    Raises:
        SlimmingError: the comparison fails, with what went wrong.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: NetworkGraph,
        verify: bool = True,
        executor: str = "auto",
    ) -> None:
        if executor not in EXECUTORS:
            raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, got {executor!r}.")
        self.network = network
        self.graph = graph
        self.executor = executor
        if executor == "auto":
            self.executor = "replay" if graph.needs_replay else "swap"
        self._is_applied = False
        modules = dict(network.named_modules())
        self._locations = _tensor_locations(network)
        self._buffers = {
            name for name, [(_, kind, _), *_] in self._locations.items() if kind == "_buffers"
        }
        missing = {s.tensor for s in graph.slices} - set(self._locations)
        if missing:
            raise ValueError(
                f"The graph does not belong to this network: it has no tensor "
                f"{sorted(missing)[0]!r}. Trace the network again."
            )
        for name, parameter in network.named_parameters():
            if graph.parameters.get(name) != tuple(parameter.shape):
                raise ValueError(
                    f"The graph does not belong to this network: {name!r} has the shape "
                    f"{tuple(parameter.shape)}, the traced network's was "
                    f"{graph.parameters.get(name)}. Trace the network again."
                )
        self._patches = [(modules[p.module], p) for p in graph.patches]
        # many axes carry the same units (a whole residual stream), so their indices are
        # computed once
        self._unit_lists: list[np.ndarray] = []
        keys: dict[tuple[int, ...], int] = {}
        for units in [s.units for s in graph.slices] + [p.units for p in graph.patches]:
            if units not in keys:
                keys[units] = len(self._unit_lists)
                self._unit_lists.append(np.asarray(units))
        self._axes: dict[str, list[tuple[int, int]]] = {}
        for axis_slice in graph.slices:
            self._axes.setdefault(axis_slice.tensor, []).append(
                (axis_slice.axis, keys[axis_slice.units])
            )
        self._patch_keys = [keys[p.units] for p in graph.patches]
        self._base = [
            (name, getattr(module, kind)[local])
            for name, [(module, kind, local), *_] in self._locations.items()
        ]
        if verify:
            try:
                self.verify()
            except SlimmingError:
                if executor != "auto" or self.executor == "replay":
                    raise
                self.executor = "replay"
                self.verify()

    @contextmanager
    def applied(
        self, keep: KeepSet, *, copy: bool = False, overlay: Mapping[str, Tensor] | None = None
    ) -> Iterator[nn.Module]:
        """The network without the removed channels, for the length of a `with` block.

        Args:
            keep: the channels that stay.
            copy: give every parameter storage of its own, so that it may be written (training).
                Without it, parameters that lose nothing are the base tensors; writing to one is an
                error at the end of the block. Buffers, such as batch-norm statistics, are always
                the slim network's own.
            overlay: full-width tensors by state-dict name, used in place of the base tensors
                (masked weights).

        Yields:
            The user's own module, slim.

        Raises:
            RuntimeError: a keep-set is applied already, or a base tensor was written.
        """
        overlay = overlay or {}
        self._check_overlay(overlay)
        indices = self._indices(keep)

        def make(name: str, base: Tensor) -> Tensor:
            tensor = overlay.get(name, base)
            for axis, key in self._axes.get(name, ()):
                index = indices[key]
                if index is not None:
                    tensor = tensor.index_select(axis, index)
            shared = tensor is base or tensor is overlay.get(name)
            # batch norms write their buffers in training mode, which is easily forgotten
            return tensor.clone() if shared and (copy or name in self._buffers) else tensor

        attributes = []
        for (module, patch), key in zip(self._patches, self._patch_keys, strict=True):
            index = indices[key]
            if index is not None:
                value = len(index)
                attributes.append(
                    (module, patch.attribute, value if patch.form == "int" else (value,))
                )
        with ExitStack() as stack:
            names = None if copy else {*overlay, *self._axes, *self._buffers}
            stack.enter_context(self._swapped(make, names, attributes))
            stack.enter_context(self._unwritten())
            if self.executor == "replay" and not keep.is_full:
                stack.enter_context(replayed(self.network, self.graph, keep.mask))
            yield self.network

    @contextmanager
    def masked(
        self, keep: KeepSet, *, overlay: Mapping[str, Tensor] | None = None
    ) -> Iterator[nn.Module]:
        """The full-width network with the removed channels zeroed; norms ignore zeroed channels.

        The reference for `applied`: same outputs, no removal. Run it inside the `with` block only.
        """
        overlay = overlay or {}
        self._check_overlay(overlay)
        kept = np.append(keep.mask, True)

        def make(name: str, base: Tensor) -> Tensor:
            tensor = overlay.get(name, base)
            for axis, key in self._axes.get(name, ()):
                mask = torch.from_numpy(kept[self._unit_lists[key]]).to(tensor.device)
                if not mask.all():
                    shape = [-1 if d == axis else 1 for d in range(tensor.dim())]
                    tensor = tensor * mask.reshape(shape).to(tensor.dtype)
            return tensor

        with self._swapped(make, {*overlay, *self._axes}, []):
            # masks in the shape of the norm's weight, (channels,) or (channels, 1, 1)
            masks = {
                id(tensor): torch.from_numpy(kept[self._unit_lists[key]]).reshape(
                    [-1 if d == axis else 1 for d in range(tensor.dim())]
                )
                for name, [(axis, key), *_] in self._axes.items()
                for module, table, local in self._locations[name]
                if (tensor := getattr(module, table)[local]) is not None
            }
            with MaskedNorms(masks):
                yield self.network

    def materialize(
        self, keep: KeepSet, *, overlay: Mapping[str, Tensor] | None = None
    ) -> nn.Module:
        """An independent slim network with storage of its own, ready to train."""
        with self.applied(keep, overlay=overlay) as slim:
            return copying.deepcopy(slim)

    def verify(self, num_keep_sets: int = 2, tolerance: float | None = None) -> float:
        """Compare slim and masked outputs on random keep-sets.

        Args:
            num_keep_sets: how many keep-sets.
            tolerance: largest difference allowed, relative to the largest output; None for that
                of the network's dtype in TOLERANCE.

        Returns:
            The largest relative difference.

        Raises:
            SlimmingError: the slim network does not run, or differs.
        """
        reference = next(self.network.parameters())
        generator = torch.Generator().manual_seed(0)
        inputs = tuple(
            torch.randint(high, shape, generator=generator).to(reference.device)
            if high
            else torch.randn(shape, generator=generator).to(reference)
            for shape, high in zip(self.graph.input_shapes, self.graph.input_highs, strict=True)
        )
        if tolerance is None:
            tolerance = TOLERANCE.get(reference.dtype, 1e-4)
        rng = np.random.default_rng(0)
        modes = {module: module.training for module in self.network.modules()}
        self.network.eval()
        worst = 0.0
        try:
            for _ in range(num_keep_sets):
                keep = _removing_everywhere(self.graph, KeepSet.random(self.graph, rng))
                worst = max(worst, self._difference(keep, inputs))
        finally:
            for module, training in modes.items():
                module.training = training
        if not worst <= tolerance:
            raise SlimmingError(
                f"The slim network's outputs differ from the masked network's by {worst:.2g} "
                f"(relative), more than "
                f"{tolerance:.0e}. An operation of the network depends on channels in a way "
                f"that tracing did not see."
            )
        return worst

    def _difference(self, keep: KeepSet, inputs: tuple[Tensor, ...]) -> float:
        with torch.no_grad():
            with self.masked(keep) as network:
                expected = _flat_outputs(network(*inputs))
            try:
                with self.applied(keep) as network:
                    found = _flat_outputs(network(*inputs))
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                raise SlimmingError(
                    "The network does not run with channels removed; its own code probably "
                    "holds a channel number "
                    f"(in view, split, a slice or padding). torch says: "
                    f"{str(error).splitlines()[0]}"
                ) from error
        if [t.shape for t in expected] != [t.shape for t in found]:
            raise SlimmingError(
                f"The slim network's outputs have shapes {[tuple(t.shape) for t in found]}, "
                f"the masked network's "
                f"{[tuple(t.shape) for t in expected]}."
            )
        return max(
            float((a - b).abs().max() / (b.abs().max() + 1e-12))
            for a, b in zip(found, expected, strict=True)
        )

    def _check_overlay(self, overlay: Mapping[str, Tensor]) -> None:
        for name in overlay:
            if name not in self._locations:
                raise ValueError(f"The overlay names {name!r}, which the network does not have.")

    def _indices(self, keep: KeepSet) -> list[Tensor | None]:
        """Kept positions of every distinct list of units; None where all stay."""
        kept = np.append(keep.mask, True)  # FROZEN is -1 and reads the appended True
        indices: list[Tensor | None] = []
        for units in self._unit_lists:
            mask = kept[units]
            indices.append(None if mask.all() else torch.from_numpy(np.flatnonzero(mask)))
        return indices

    @contextmanager
    def _unwritten(self) -> Iterator[None]:
        """Refuse to end a block in which a base tensor was written.

        Raises:
            RuntimeError: one was; its values are lost.
        """
        before = [
            (name, base, base._version) for name, base in self._base if not base.is_inference()
        ]
        yield
        for name, base, version in before:
            if base._version != version:
                raise RuntimeError(
                    f"{name!r} of the unpruned network was written while a keep-set was applied. "
                    "Train inside applied(keep, copy=True), or train what materialize(keep) gives."
                )

    @contextmanager
    def _swapped(
        self,
        make: Callable[[str, Tensor], Tensor],
        names: set[str] | None,
        attributes: list[tuple[nn.Module, str, Any]],
    ) -> Iterator[None]:
        """Put made tensors and attributes into the network; put the old ones back in any case."""
        if self._is_applied:
            raise RuntimeError("A keep-set is applied already; Slimmer contexts cannot be nested.")
        self._is_applied = True
        undo: list[tuple[dict[str, Any], str, Tensor]] = []
        undo_attributes: list[tuple[nn.Module, str, Any]] = []
        try:
            with torch.no_grad():
                for name in self._locations if names is None else names:
                    locations = self._locations[name]
                    table = getattr(locations[0][0], locations[0][1])
                    base = table[locations[0][2]]
                    tensor = make(name, base)
                    if tensor is base:
                        continue
                    if locations[0][1] == "_parameters":
                        tensor = nn.Parameter(tensor.detach(), requires_grad=base.requires_grad)
                    for module, kind, local in locations:
                        undo.append((getattr(module, kind), local, base))
                        getattr(module, kind)[local] = tensor
            for module, attribute, value in attributes:
                undo_attributes.append((module, attribute, getattr(module, attribute)))
                setattr(module, attribute, value)
            yield
        finally:
            for table, local, base in undo:
                table[local] = base
            for module, attribute, value in reversed(undo_attributes):
                setattr(module, attribute, value)
            self._is_applied = False


def _removing_everywhere(graph: NetworkGraph, keep: KeepSet) -> KeepSet:
    """The keep-set with the groups that lose nothing cut to their fewest channels."""
    counts = {
        group.name: group.min_keep
        for group, count in zip(graph.groups, keep.counts, strict=True)
        if count == group.size
    }
    kept = {group.name: keep.kept(group.name).tolist() for group in graph.groups}
    for name, count in counts.items():
        kept[name] = kept[name][:count]
    return KeepSet.from_indices(graph, kept)


def _tensor_locations(network: nn.Module) -> dict[str, list[tuple[nn.Module, str, str]]]:
    """(module, "_parameters" or "_buffers", local name) of every place that holds a tensor."""
    locations: dict[str, list[tuple[nn.Module, str, str]]] = {}
    names: dict[int, str] = {}
    for path, module in network.named_modules():
        for kind in ("_parameters", "_buffers"):
            for local, tensor in getattr(module, kind).items():
                if tensor is None:
                    continue
                name = names.setdefault(id(tensor), f"{path}.{local}" if path else local)
                locations.setdefault(name, []).append((module, kind, local))
    return locations


def _flat_outputs(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in _flat_outputs(item)]
    return []
