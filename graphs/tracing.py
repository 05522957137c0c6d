"""From a network to its graph: run it once and follow every channel.

The network runs under a torch function mode. Each activation gets a tensor of integer labels, and
every torch function
has a rule (graphs/rule_registry.py) that says what it does to labels. Functions that only move
elements are run on the labels
themselves, so no formula per function is needed; a function without a rule raises `UnsupportedOp`.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graphs import assembly
from graphs.labels import LabelForest, spread
from graphs.network_graph import NetworkGraph
from graphs.rule_registry import RULES, UnsupportedOp

__all__ = ["Tracer", "UnsupportedOp", "trace_network"]


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
    target: int = -1
    output_id: int = -1


@dataclass
class TracedNode:
    """A feature map as the tracer sees it."""

    name: str
    labels: Tensor
    spatial: tuple[int, ...]


@dataclass
class Trace:
    """All that one run of the network has shown; assembly.py turns it into a NetworkGraph."""

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
    calls: dict[str, int] = field(default_factory=dict)


class Tracer(TorchFunctionMode):
    """Follows the channels of one forward pass.

    Args:
        network: the network, already in eval mode.
        rules: rule of each torch function, by normalised name.
    """

    def __init__(self, network: nn.Module, rules: dict[str, Callable[..., None]]) -> None:
        super().__init__()
        self.network = network
        self.trace = Trace()
        self.forest = self.trace.forest
        self._rules = rules
        self._labels: dict[int, Tensor] = {}
        self._nodes: dict[int, int] = {}
        # ids of freed tensors are reused, so every traced tensor stays alive until the end
        self._alive: list[Tensor] = []
        self._names: dict[int, str] = {}
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            self._names.setdefault(id(tensor), name)
        self.module_stack: list[tuple[str, nn.Module]] = [("", network)]

    def name_of(self, tensor: Tensor | None) -> str | None:
        """State-dict name of a parameter or buffer, None for anything else."""
        return None if tensor is None else self._names.get(id(tensor))

    def is_traced(self, value: Any) -> bool:
        """Whether the value is an activation or a named tensor."""
        return isinstance(value, Tensor) and (id(value) in self._labels or id(value) in self._names)

    def is_activation(self, value: Any) -> bool:
        """Whether the value depends on the network's input."""
        return isinstance(value, Tensor) and id(value) in self._nodes

    def labels(self, tensor: Tensor) -> Tensor:
        """Labels of an activation, a named tensor (one per element) or a constant (frozen)."""
        if id(tensor) in self._labels:
            return self._labels[id(tensor)]
        name = self._names.get(id(tensor))
        if name is not None:
            if name not in self.trace.plain_labels:
                self.trace.plain_labels[name] = self.forest.fresh(*tensor.shape)
            return self.trace.plain_labels[name]
        fresh = self.forest.fresh(*tensor.shape)
        self.freeze(fresh, "a constant made in the forward pass")
        self.put(tensor, fresh)
        return fresh

    def put(self, tensor: Tensor, labels: Tensor) -> None:
        """Give an activation its labels."""
        assert labels.shape == tensor.shape, f"{labels.shape} labels for {tensor.shape}"
        self._alive.append(tensor)
        self._labels[id(tensor)] = labels

    def channels(self, tensor: Tensor, axis: int) -> Tensor:
        """One label per channel along `axis`; everything else along the axis is tied together."""
        return self.forest.tie_across(self.labels(tensor), axis)

    def axis(self, tensor: Tensor | None, axis: int, labels: Tensor) -> None:
        """Say that a parameter axis carries these labels; a tensor used twice ties both uses."""
        name = self.name_of(tensor)
        if name is None:
            return
        key = (name, axis)
        if key in self.trace.axis_labels:
            self.forest.union(self.trace.axis_labels[key], labels)
        else:
            self.trace.axis_labels[key] = labels.clone()

    def weight_name(self, tensor: Tensor, function: str) -> str:
        """State-dict name of an operator's weight.

        Raises:
            UnsupportedOp: the weight is computed (weight_norm, parametrisation), so it cannot be
                sliced.
        """
        name = self.name_of(tensor)
        if name is None:
            raise UnsupportedOp(
                f"The weight of {function} {self.where()} is computed in the forward pass, "
                f"not a parameter; "
                "remove the parametrisation (such as weight_norm or spectral_norm) before pruning."
            )
        return name

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Keep the channels that carry these labels."""
        self.trace.frozen.append((labels, reason, self.module_path))

    @property
    def module_path(self) -> str:
        """Path of the module that is running."""
        return self.module_stack[-1][0]

    @property
    def module(self) -> nn.Module:
        """The module that is running."""
        return self.module_stack[-1][1]

    def where(self) -> str:
        """The running module and the user's source line, for messages."""
        path, module = self.module_stack[-1]
        place = f"in module {path or '(root)'!r} ({type(module).__name__})"
        frame = _user_frame(sys._getframe(1))
        if frame is not None:
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            place += f" at {frame.f_code.co_filename}:{frame.f_lineno}"
            place += f": {line}" if line else ""
        return place

    def node_of(self, tensor: Tensor) -> int | None:
        """Feature map that the activation belongs to."""
        return self._nodes.get(id(tensor))

    def same_node(self, outputs: Iterator[Tensor] | list[Tensor], source: Tensor) -> None:
        """The outputs belong to the feature map of `source`."""
        node = self.node_of(source)
        for output in outputs:
            if node is not None:
                self._nodes[id(output)] = node

    def new_node(
        self,
        output: Tensor,
        channel_labels: Tensor,
        sources: list[Tensor],
        kind: str,
        operator: int | None = None,
    ) -> int:
        """Add a feature map with one edge from each source."""
        node = len(self.trace.nodes)
        name = self._unique(self.module_path or kind) if operator is not None else f"{kind}_{node}"
        spatial = tuple(output.shape[2:]) if output.dim() > 3 else tuple(output.shape[1:-1])
        self.trace.nodes.append(TracedNode(name, channel_labels, spatial))
        self._nodes[id(output)] = node
        seen: set[int] = set()
        for source in sources:
            origin = self.node_of(source)
            if origin is not None and origin not in seen:
                seen.add(origin)
                self.trace.edges.append((origin, node, kind, operator))
        return node

    def _unique(self, name: str) -> str:
        number = self.trace.calls[name] = self.trace.calls.get(name, 0) + 1
        return name if number == 1 else f"{name}#{number}"

    def add_input(self, tensor: Tensor, index: int) -> None:
        """Start from a network input; its channels are frozen."""
        axis = 1 if tensor.dim() > 3 else tensor.dim() - 1
        channel_labels = self.forest.fresh(tensor.shape[axis])
        self.put(tensor, spread(channel_labels, tensor.shape, axis))
        self._nodes[id(tensor)] = len(self.trace.nodes)
        name = "input" if index == 0 else f"input_{index}"
        spatial = tuple(tensor.shape[2:]) if tensor.dim() > 3 else tuple(tensor.shape[1:-1])
        self.trace.nodes.append(TracedNode(name, channel_labels, spatial))
        self.freeze(channel_labels, "network input")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the function, then its rule on the labels."""
        kwargs = kwargs or {}
        name = function_name(func)
        inputs = [value for value in _tensors((args, kwargs)) if self.is_traced(value)]
        if name == "setitem" and inputs:
            raise UnsupportedOp(
                f"Assigning into a tensor (x[...] = y) {self.where()} has no channel rule; "
                "build the result with torch.cat or torch.where instead."
            )
        out = func(*args, **kwargs)
        outputs = list(_tensors(out))
        if not outputs or not inputs:
            return out
        for value in {id(value) for value in inputs}:
            self.trace.reads[value] = self.trace.reads.get(value, 0) + 1
        rule = self._rules.get(name)
        if rule is None:
            raise UnsupportedOp(
                f"No channel rule for {_qualified(func)} {self.where()}. Topiary never "
                f"guesses what an operation does "
                "to channels."
            )
        rule(self, func, args, kwargs, out)
        return out


def function_name(func: Callable[..., Any]) -> str:
    """Name of a torch function without the marks of in-place and reflected forms."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # a property such as x.T
        name = getattr(getattr(func, "__self__", None), "__name__", name)
        return f"property_{name}"
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        for prefix in ("r", "i"):
            if name[1:] in _OPERATORS and name.startswith(prefix) and name not in _OPERATORS:
                name = name[1:]
        return name
    return name.rstrip("_")


_OPERATORS = {
    "add",
    "sub",
    "mul",
    "truediv",
    "pow",
    "floordiv",
    "mod",
    "and",
    "or",
    "xor",
    "matmul",
}


def trace_network(network: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> NetworkGraph:
    """Find a network's operators, feature maps and dependency groups.

    The network runs once, in eval mode and without gradients; its mode flags, hooks and weights
    are as before afterwards.

    Args:
        network: any module whose forward uses functions that have a rule.
        example_inputs: an input with batch axis, or a tuple of inputs.

    Returns:
        The graph; independent of the network's weights.

    Raises:
        UnsupportedOp: an operation without a rule, with the module path and source line.
        ValueError: the inputs are not tensors, or the network gives no tensor.
    """
    # registered on import; they import this module
    from graphs import attention_rules, move_rules, operator_rules, value_rules  # noqa: F401

    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not inputs or not all(isinstance(value, Tensor) for value in inputs):
        raise ValueError("example_inputs must be a tensor or a tuple of tensors.")
    modes = {module: module.training for module in network.modules()}
    network.eval()
    tracer = Tracer(network, RULES)
    handles = _follow_modules(network, tracer)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for index, tensor in enumerate(inputs):
            tracer.add_input(tensor, index)
        with torch.no_grad(), tracer:
            output = network(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    outputs = list(_tensors(output))
    if not outputs:
        raise ValueError(f"The network must return tensors, got {type(output).__name__}.")
    for value in outputs:
        if tracer.is_traced(value):
            tracer.freeze(tracer.labels(value), "network output")
    return assembly.assemble(network, tracer.trace, tuple(tuple(x.shape) for x in inputs))


def _follow_modules(network: nn.Module, tracer: Tracer) -> list[Any]:
    """Hooks that keep the tracer's module stack up to date."""
    handles = []
    for path, module in network.named_modules():

        def enter(module: nn.Module, args: Any, path: str = path) -> None:
            tracer.module_stack.append((path, module))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            tracer.module_stack.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    return handles


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _qualified(func: Callable[..., Any]) -> str:
    module = getattr(func, "__module__", None) or "torch"
    return f"{module}.{getattr(func, '__name__', func)}"


def _user_frame(frame: FrameType | None) -> FrameType | None:
    """Innermost frame outside torch and this package."""
    hidden = (torch.__path__[0], __file__.rsplit("/", 1)[0])
    while frame is not None and frame.f_code.co_filename.startswith(hidden):
        frame = frame.f_back
    return frame
