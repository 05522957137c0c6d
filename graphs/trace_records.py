"""What one traced run of a network leaves behind, with labels in place of units."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from graphs.labels import LabelForest

RESIZED = frozenset(
    """
    view reshape view_as reshape_as unflatten expand expand_as broadcast_to split
    split_with_sizes chunk tensor_split
    """.split()
)
"""Functions that are given sizes."""

PICKED = frozenset("getitem narrow select index_select flip roll".split())
"""Functions that take elements by their numbers, or put them in another order."""


@dataclass
class TracedOperator:
    """An operator as the tracer sees it, with labels in place of units."""

    kind: str
    module: str
    weight: str
    in_labels: Tensor
    out_labels: Tensor
    groups: int = 1
    depthwise: bool = False
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    input_size: tuple[int, ...] = ()
    output_size: tuple[int, ...] = ()
    positions: int = 1
    repeat_labels: Tensor | None = None
    target: int = -1
    output_id: int = -1


@dataclass
class TracedNode:
    """A feature map as the tracer sees it."""

    name: str
    labels: Tensor
    spatial: tuple[int, ...]


@dataclass
class TracedCall:
    """A call of a torch function whose numbers depend on channels, see network_graph.Call."""

    number: int
    function: str
    outputs: list[Tensor] = field(default_factory=list)
    before: Tensor | None = None
    sources: dict[int, tuple[int, ...]] = field(default_factory=dict)
    open_axes: tuple[int, ...] = ()
    value: float = 0.0


@dataclass
class Broadcast:
    """A parameter or constant that meets an activation, and is the same along some of its axes.

    Sines of positions, say, meet queries of several heads: (tokens, channels) beside (heads,
    tokens, channels). Where only whole heads can go the two have nothing to do with each other.

    Attributes:
        labels: labels of the activation.
        axes: axes along which the other tensor changes.
        other: its labels, in the shape of the activation; None for a constant.
        reason: why channels are frozen when they meet a constant.
        place: path of the module.
    """

    labels: Tensor
    axes: list[int]
    other: Tensor | None
    reason: str
    place: str


@dataclass
class Trace:
    """All that one run of the network has shown; assembly.py turns it into a NetworkGraph.

    Attributes:
        forest: all labels.
        axis_labels: labels along one axis of a parameter or buffer.
        plain_labels: labels of every element of a tensor that is used as it is.
        operators: in execution order.
        nodes: feature maps in execution order.
        edges: (source node, target node, kind, operator).
        patches: (module path, attribute, labels it counts, form).
        folds: (id of the tensor between, convolution, batch norm).
        reads: how often each tensor is read, by id.
        frozen: (labels, reason, place).
        head_labels: labels of attention heads.
        names_used: how often each name is taken.
        broadcasts: tensors of the network that meet an activation with more channel axes.
        boxes: labels whose removed part must be a product of axes.
        moves: labels before and after a function that picks elements, and the place.
        calls: calls that the replaying executor corrects.
        replay_only: whether the swapping executor cannot run the network.
    """

    forest: LabelForest = field(default_factory=LabelForest)
    axis_labels: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    plain_labels: dict[str, Tensor] = field(default_factory=dict)
    operators: list[TracedOperator] = field(default_factory=list)
    nodes: list[TracedNode] = field(default_factory=list)
    edges: list[tuple[int, int, str, int | None]] = field(default_factory=list)
    patches: list[tuple[str, str, Tensor, str]] = field(default_factory=list)
    folds: list[tuple[int, str, str]] = field(default_factory=list)
    reads: dict[int, int] = field(default_factory=dict)
    frozen: list[tuple[Tensor, str, str]] = field(default_factory=list)
    head_labels: list[Tensor] = field(default_factory=list)
    names_used: dict[str, int] = field(default_factory=dict)
    boxes: list[Tensor] = field(default_factory=list)
    broadcasts: list[Broadcast] = field(default_factory=list)
    moves: list[tuple[Tensor, Tensor, str]] = field(default_factory=list)
    calls: list[TracedCall] = field(default_factory=list)
    replay_only: bool = False
