"""A network as frozen data: operators, feature maps, and channels that can only go together."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

FROZEN = -1
"""Unit id of a channel that must stay, such as an input colour or a class score."""

GRAPH_FORMAT = 2


@dataclass(frozen=True)
class Group:
    """Channels of one dependency group; a unit is the smallest set of channels that can go alone.

    Attributes:
        name: stable name, the first operator that produces the group's channels.
        kind: "channel" or "heads" (one unit is one attention head).
        units: unit ids, in channel order; position i is "channel i of the group".
        min_keep: fewest units that may be left.
        producers: operators whose output carries the units, in execution order.
        consumers: operators whose input carries the units, in execution order.
        round_to: a count of kept units is a multiple of this, or all of them.
    """

    name: str
    kind: str
    units: tuple[int, ...]
    min_keep: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    round_to: int = 1

    @property
    def size(self) -> int:
        """Number of units (channels) of the unpruned group."""
        return len(self.units)


@dataclass(frozen=True)
class AxisSlice:
    """Which unit each position of one tensor axis belongs to.

    Attributes:
        tensor: state-dict name of a parameter or buffer.
        axis: the axis, counted from 0.
        units: one unit id per position; FROZEN for positions that stay.
    """

    tensor: str
    axis: int
    units: tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """One call of a conv, a linear or an attention.

    Attributes:
        name: module path; later calls of the same module get the suffix "#2", "#3", ...
        kind: "conv", "linear" or "attention".
        module: module path of the module that ran it.
        weight: state-dict name of the weight; "" for attention.
        in_units: unit of each input channel (attention: of each query channel).
        out_units: unit of each output channel (attention: of each value channel).
        groups: groups of a convolution; equals the input channels when depthwise.
        depthwise: whether every input channel is convolved alone.
        kernel_size: spatial kernel, () for linear and attention.
        stride: spatial stride, () for linear and attention.
        input_size: spatial size (or tokens) of the input.
        output_size: spatial size (or tokens) of the output.
        positions: how often the kernel is applied to one sample (attention: query tokens x key
            tokens), not counting `repeat_units`.
        repeat_units: units of a further axis whose every position the kernel is applied to, such
            as the channels of a linear layer that mixes tokens; () when there is none.
    """

    name: str
    kind: str
    module: str
    weight: str
    in_units: tuple[int, ...]
    out_units: tuple[int, ...]
    groups: int
    depthwise: bool
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    positions: int
    repeat_units: tuple[int, ...] = ()


@dataclass(frozen=True)
class FeatureMap:
    """Node of the graph: an activation after its normalisation and non-linearity.

    Attributes:
        name: name of the operation that made it ("input" for a network input).
        units: unit of each channel.
        spatial: spatial size or tokens, () when there is none.
    """

    name: str
    units: tuple[int, ...]
    spatial: tuple[int, ...]


@dataclass(frozen=True)
class Edge:
    """Edge of the graph: what leads from one feature map to another.

    Attributes:
        source: index of the feature map read.
        target: index of the feature map made.
        kind: one of EDGE_KINDS.
        operator: index into NetworkGraph.operators, or None when the edge holds no weights.
    """

    source: int
    target: int
    kind: str
    operator: int | None


EDGE_KINDS = ("conv", "depthwise", "linear", "attention", "add", "mul", "concat", "pool", "move")


@dataclass(frozen=True)
class AttributePatch:
    """A module attribute whose value is a count of kept channels, such as Conv2d.groups.

    Attributes:
        module: module path.
        attribute: attribute name.
        units: the attribute becomes the number of kept positions of this list.
        form: "int", or "tuple" for a one-element tuple (LayerNorm.normalized_shape).
    """

    module: str
    attribute: str
    units: tuple[int, ...]
    form: str = "int"


@dataclass(frozen=True)
class AxisUnits:
    """Which unit each position of one axis of an activation belongs to."""

    axis: int
    units: tuple[int, ...]


@dataclass(frozen=True)
class Pick:
    """Which input positions a call takes along one axis.

    Attributes:
        axis: axis of the input.
        units: unit of each position of the input's axis.
        source: input position of each output position; -1 where the output has a zero.
        source_units: unit of each output position.
    """

    axis: int
    units: tuple[int, ...]
    source: tuple[int, ...]
    source_units: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A call in the forward pass whose numbers (sizes, indices) depend on channels.

    The replaying executor puts the right numbers in place of those that the network's own code
    holds or works out.

    Attributes:
        number: how many calls of functions in graphs.tracer.CORRECTED came before.
        function: normalised name of the function.
        outputs: for each output, the axes that carry units.
        shapes: shape of each output when it was traced.
        in_shape: shape of the input when it was traced.
        picks: what is taken along an axis, where not everything is taken in order.
        is_open: whether the network's code gives no number that the width changes, as far as
            tracing can tell.
        value: channels of one head (multi_head_attention_forward), or the scale
            (scaled_dot_product_attention), 0 when not needed.
    """

    number: int
    function: str
    outputs: tuple[tuple[AxisUnits, ...], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    in_shape: tuple[int, ...] = ()
    picks: tuple[Pick, ...] = ()
    is_open: bool = False
    value: float = 0.0


@dataclass(frozen=True)
class Fold:
    """A batch norm that alone reads the output of one convolution, so it can be folded into it."""

    conv: str
    norm: str


@dataclass(frozen=True)
class NetworkGraph:
    """All that pruning needs to know of a network; independent of the module and of its weights.

    Attributes:
        input_shapes: shape of each traced input, batch axis included.
        parameters: shape of every parameter by state-dict name (a tied parameter once).
        aliases: further state-dict names of tied parameters, mapped to the name in `parameters`.
        groups: dependency groups in execution order.
        slices: every tensor axis that carries at least one unit.
        operators: operators in execution order.
        feature_maps: nodes; node 0 is the first input.
        edges: edges in execution order.
        patches: module attributes to set when channels are removed.
        folds: batch norms that can be folded.
        frozen: reasons why channels stay, by operator or tensor name.
        input_highs: for each input 0, or one more than its largest value when it holds integers.
        calls: calls whose numbers depend on channels.
        replay_only: whether the network's own code cannot run with fewer channels as it is.
    """

    input_shapes: tuple[tuple[int, ...], ...]
    parameters: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str]
    groups: tuple[Group, ...]
    slices: tuple[AxisSlice, ...]
    operators: tuple[Operator, ...]
    feature_maps: tuple[FeatureMap, ...]
    edges: tuple[Edge, ...]
    patches: tuple[AttributePatch, ...]
    folds: tuple[Fold, ...]
    frozen: Mapping[str, str]
    input_highs: tuple[int, ...] = ()
    calls: tuple[Call, ...] = ()
    replay_only: bool = False

    @functools.cached_property
    def num_units(self) -> int:
        """Number of units over all groups."""
        return sum(group.size for group in self.groups)

    @functools.cached_property
    def unit_group(self) -> np.ndarray:
        """Index of the group of each unit, shape (num_units,)."""
        owner = np.empty(self.num_units, dtype=np.int64)
        for index, group in enumerate(self.groups):
            owner[list(group.units)] = index
        return owner

    @functools.cached_property
    def group_index(self) -> dict[str, int]:
        """Index of each group by its name."""
        return {group.name: index for index, group in enumerate(self.groups)}

    @functools.cached_property
    def operator_by_name(self) -> dict[str, Operator]:
        """Operators by name."""
        return {operator.name: operator for operator in self.operators}

    @property
    def needs_replay(self) -> bool:
        """Whether the network's own code may hold a number that the width changes."""
        return self.replay_only or not all(call.is_open for call in self.calls)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Short hash of the graph; equal graphs have equal fingerprints.

        The reasons in `frozen` do not count: they name source files, which lie elsewhere on another
        machine.
        """
        return hashlib.sha256(replace(self, frozen={}).to_json().encode()).hexdigest()[:16]

    def group(self, name: str) -> Group:
        """The group called `name`.

        Raises:
            ValueError: no such group; the message lists the names.
        """
        try:
            return self.groups[self.group_index[name]]
        except KeyError:
            known = ", ".join(self.group_index)
            raise ValueError(f"No group is called {name!r}. The groups are: {known}.") from None

    def rounded(self, round_to: int) -> NetworkGraph:
        """The graph with channel counts that suit the hardware.

        Args:
            round_to: kept channels of every group are a multiple of this, or all of them; groups
                of attention heads are left alone. At least 1.

        Raises:
            ValueError: `round_to` is below 1.
        """
        if round_to < 1:
            raise ValueError(f"round_to must be a whole number, 1 or more, got {round_to}.")
        groups = tuple(
            group
            if group.kind == "heads"
            else replace(group, round_to=round_to, min_keep=min(group.size, round_to))
            for group in self.groups
        )
        return replace(self, groups=groups)

    def to_json(self) -> str:
        """The graph as JSON text; `from_json` gives an equal graph."""
        return json.dumps({"format": GRAPH_FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> NetworkGraph:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is not a network graph of this format.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"Not a network graph: the text is not JSON ({error}).") from error
        if not isinstance(data, dict) or data.get("format") != GRAPH_FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f"Not a network graph of format {GRAPH_FORMAT}: found {found!r}. Trace the "
                f"network again."
            )
        del data["format"]
        records: dict[str, Callable[..., Any]] = {
            "groups": Group,
            "slices": AxisSlice,
            "operators": Operator,
            "feature_maps": FeatureMap,
            "edges": Edge,
            "patches": AttributePatch,
            "folds": Fold,
            "calls": _call,
        }
        for field, record in records.items():
            data[field] = tuple(
                record(**{key: _tuples(value) for key, value in item.items()})
                for item in data[field]
            )
        data["input_shapes"] = _tuples(data["input_shapes"])
        data["input_highs"] = _tuples(data["input_highs"])
        data["parameters"] = {name: _tuples(shape) for name, shape in data["parameters"].items()}
        return cls(**data)


def _call(outputs: Any, picks: Any, **rest: Any) -> Call:
    return Call(
        outputs=tuple(tuple(AxisUnits(**axis) for axis in output) for output in outputs),
        picks=tuple(Pick(**pick) for pick in picks),
        **rest,
    )


def _tuples(value: Any) -> Any:
    """Lists, at any depth, as tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
