"""From the labels of one traced run to a NetworkGraph: its units, and which form a group."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from graphs.labels import shrink, varying_axes
from graphs.network_graph import (
    FROZEN,
    AttributePatch,
    AxisSlice,
    AxisUnits,
    Call,
    Edge,
    FeatureMap,
    Fold,
    Group,
    NetworkGraph,
    Operator,
    Pick,
)
from graphs.trace_records import RESIZED, Trace, TracedCall


def assemble(
    network: nn.Module,
    trace: Trace,
    input_shapes: tuple[tuple[int, ...], ...],
    input_highs: tuple[int, ...],
) -> NetworkGraph:
    """Build the graph of a finished trace.

    Units with the same set of (tensor, axis, number of positions) belong to one group.
    """
    slices = _root_slices(trace)
    producers = _operator_names(trace)
    frozen_roots, reasons = _frozen_roots(trace)

    signature: dict[int, Counter[tuple[str, int]]] = defaultdict(Counter)
    for key, roots in slices.items():
        for root, positions in zip(*np.unique(roots, return_counts=True), strict=True):
            signature[int(root)][key] += int(positions)
    by_signature: dict[tuple[tuple[tuple[str, int], int], ...], list[int]] = defaultdict(list)
    operator_roots = [
        (_roots(trace, operator.in_labels), _roots(trace, operator.out_labels))
        for operator in trace.operators
    ]
    order = _first_appearance([outs for _, outs in operator_roots])
    for root in sorted(signature, key=lambda root: order.get(root, (len(order), root))):
        if root not in frozen_roots:
            by_signature[tuple(sorted(signature[root].items()))].append(root)

    unit_of: dict[int, int] = {}
    groups: list[Group] = []
    names: Counter[str] = Counter()
    head_roots = {int(r) for labels in trace.head_labels for r in _roots(trace, labels)}
    for sig, members_in_order in sorted(
        by_signature.items(), key=lambda item: order.get(item[1][0], (1 << 30, 0))
    ):
        members = set(members_in_order)
        made_by = [
            producers[i]
            for i, (_, outs) in enumerate(operator_roots)
            if members & set(outs.tolist())
        ]
        if len(members) < 2 or not made_by:
            reason = (
                "all channels are tied together" if made_by else "no operator produces the channels"
            )
            for (tensor, _), _ in sig:
                reasons.setdefault(tensor, reason)
            continue
        name = made_by[0]
        names[name] += 1
        if names[name] > 1:
            name = f"{name}@{names[name]}"
        new_units = tuple(range(len(unit_of), len(unit_of) + len(members)))
        unit_of.update(zip(members_in_order, new_units, strict=True))
        groups.append(
            Group(
                name=name,
                kind="heads" if members & head_roots else "channel",
                units=new_units,
                min_keep=1,
                producers=tuple(made_by),
                consumers=tuple(
                    producers[i]
                    for i, (ins, _) in enumerate(operator_roots)
                    if members & set(ins.tolist())
                ),
            )
        )

    def units(roots: np.ndarray) -> tuple[int, ...]:
        return tuple(unit_of.get(int(root), FROZEN) for root in roots)

    return NetworkGraph(
        input_shapes=input_shapes,
        parameters={name: tuple(p.shape) for name, p in network.named_parameters()},
        aliases=_aliases(network),
        groups=tuple(groups),
        slices=tuple(
            AxisSlice(tensor, axis, units(roots))
            for (tensor, axis), roots in slices.items()
            if _any_unit(units(roots))
        ),
        operators=tuple(
            Operator(
                name=producers[index],
                kind=operator.kind,
                module=operator.module,
                weight=operator.weight,
                in_units=units(operator_roots[index][0]),
                out_units=units(operator_roots[index][1]),
                groups=operator.groups,
                depthwise=operator.depthwise,
                kernel_size=operator.kernel_size,
                stride=operator.stride,
                input_size=operator.input_size,
                output_size=operator.output_size,
                positions=operator.positions,
                repeat_units=()
                if operator.repeat_labels is None
                else units(_roots(trace, operator.repeat_labels)),
            )
            for index, operator in enumerate(trace.operators)
        ),
        feature_maps=tuple(
            FeatureMap(node.name, units(_roots(trace, node.labels)), node.spatial)
            for node in trace.nodes
        ),
        edges=tuple(Edge(*edge) for edge in trace.edges),
        patches=tuple(
            AttributePatch(module, attribute, units(_roots(trace, labels)), form)
            for module, attribute, labels, form in trace.patches
            if _any_unit(units(_roots(trace, labels)))
        ),
        folds=_folds(trace),
        frozen=reasons,
        input_highs=input_highs,
        calls=tuple(
            call for traced in trace.calls if (call := _call(trace, traced, units)) is not None
        ),
        replay_only=trace.replay_only,
    )


def _call(
    trace: Trace, traced: TracedCall, units: Callable[[np.ndarray], tuple[int, ...]]
) -> Call | None:
    """The record of a call, or None when its numbers depend on no unit."""
    outputs = tuple(_axis_units(trace, labels, units) for labels in traced.outputs)
    if len(outputs) > 1:  # a split needs every size, also of the parts that stay whole
        cut = sorted({axis.axis for output in outputs for axis in output})
        outputs = tuple(
            tuple(AxisUnits(axis, _line(trace, labels, axis, units)) for axis in cut)
            for labels in traced.outputs
        )
    before = () if traced.before is None else _axis_units(trace, traced.before, units)
    picks = []
    for here in before:
        source = traced.sources.get(here.axis)
        if source is not None:
            taken = tuple(here.units[position] if position >= 0 else FROZEN for position in source)
            picks.append(Pick(here.axis, here.units, source, taken))
    if traced.function == "pad":  # zeros that are added belong to units of their own
        picks = [
            replace(pick, source_units=axis.units)
            for pick in picks
            for axis in outputs[0]
            if axis.axis == pick.axis
        ]
    resizes = traced.function in RESIZED and any(outputs)
    if not resizes and not picks and not traced.value:
        return None
    shapes = tuple(tuple(labels.shape) for labels in traced.outputs)
    is_open = not traced.value and (
        (
            all(axis.axis in traced.open_axes for output in outputs for axis in output)
            and all(pick.axis in traced.open_axes for pick in picks)
        )
        or (traced.function == "chunk" and len(set(outputs)) == 1)
    )
    return Call(
        number=traced.number,
        function=traced.function,
        outputs=outputs,
        shapes=shapes,
        in_shape=() if traced.before is None else tuple(traced.before.shape),
        picks=tuple(picks),
        is_open=is_open,
        value=traced.value,
    )


def _axis_units(
    trace: Trace, labels: Tensor, units: Callable[[np.ndarray], tuple[int, ...]]
) -> tuple[AxisUnits, ...]:
    """Axes of an activation along which units change."""
    small = shrink(labels)
    every = units(_roots(trace, small))
    if not _any_unit(every):
        return ()
    varying = varying_axes(torch.tensor(every).reshape(small.shape))
    return tuple(AxisUnits(axis, _line(trace, labels, axis, units)) for axis in varying)


def _line(
    trace: Trace, labels: Tensor, axis: int, units: Callable[[np.ndarray], tuple[int, ...]]
) -> tuple[int, ...]:
    """Unit of each position along one axis, at the start of all others."""
    line = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)[:, 0]
    return units(_roots(trace, line))


def _any_unit(units: tuple[int, ...]) -> bool:
    return any(unit != FROZEN for unit in units)


def _roots(trace: Trace, labels: Tensor) -> np.ndarray:
    return trace.forest.find(labels.reshape(-1).numpy())


def _root_slices(trace: Trace) -> dict[tuple[str, int], np.ndarray]:
    """Root of every position of every parameter axis that carries channels."""
    slices = {key: _roots(trace, labels) for key, labels in trace.axis_labels.items()}
    for name, labels in trace.plain_labels.items():
        for axis, roots in _channel_axes(trace, labels).items():
            slices[name, axis] = roots
    return slices


def _channel_axes(trace: Trace, labels: Tensor) -> dict[int, np.ndarray]:
    """Root of each position, for the axes along which a plain tensor follows channels."""
    roots = trace.forest.roots(labels)
    axes = {}
    for axis in range(labels.dim()):
        rows = roots.movedim(axis, 0).reshape(labels.shape[axis], -1)
        # a channel axis has one label per position, whatever the other axes are
        if rows.shape[0] > 1 and bool((rows == rows[:, :1]).all()):
            axes[axis] = rows[:, 0].numpy()
    return axes


def _operator_names(trace: Trace) -> list[str]:
    return [trace.nodes[operator.target].name for operator in trace.operators]


def _frozen_roots(trace: Trace) -> tuple[set[int], dict[str, str]]:
    """Roots that must stay, and the reason by place."""
    roots: set[int] = set()
    reasons: dict[str, str] = {}
    for labels, reason, module in trace.frozen:
        roots.update(int(root) for root in np.unique(_roots(trace, labels)))
        reasons.setdefault(module or reason, reason)
    # a plain tensor whose labels follow no axis cannot be sliced
    for name, labels in trace.plain_labels.items():
        if labels.numel() > 1 and not _channel_axes(trace, labels):
            roots.update(int(root) for root in np.unique(_roots(trace, labels)))
            reasons.setdefault(name, "no axis of the tensor follows the channels")
    return roots, reasons


def _first_appearance(outputs: list[np.ndarray]) -> dict[int, tuple[int, int]]:
    """(operator number, position) where each root first comes out of an operator."""
    order: dict[int, tuple[int, int]] = {}
    for number, roots in enumerate(outputs):
        for position, root in enumerate(roots.tolist()):
            order.setdefault(root, (number, position))
    return order


def _aliases(network: nn.Module) -> dict[str, str]:
    """Further names of tied parameters, mapped to their first name."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return aliases


def _folds(trace: Trace) -> tuple[Fold, ...]:
    """Batch norms whose input nothing else reads, of convolutions that run once."""
    modules = Counter(operator.module for operator in trace.operators)
    norms = Counter(norm for _, _, norm in trace.folds)
    return tuple(
        Fold(conv, norm)
        for tensor, conv, norm in trace.folds
        if trace.reads.get(tensor, 0) == 1 and modules[conv] == 1 and norms[norm] == 1
    )
