"""From a network to its graph: run it once and follow every channel.

The network runs under a torch function mode. Each activation gets a tensor of integer labels, and
every torch function has a rule (graphs/rule_registry.py) that says what it does to labels.
Functions that only move elements are run on the labels themselves, so no formula per function is
needed; a function without a rule raises `UnsupportedOp`.
"""

from __future__ import annotations

import gc
import linecache
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CellType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graphs.labels import shrink, spread
from graphs.regularity import frozen_labels
from graphs.rule_registry import RULES, Rule, UnsupportedOp, function_name, tensor_arguments
from graphs.trace_records import (
    PICKED,
    RESIZED,
    Trace,
    TracedCall,
    TracedNode,
    TracedOperator,
)

ATTENTION = ("heads", "head_dims", "none")
"""What can be removed of an attention: whole heads, the same channels of every head, nothing."""


class Tracer(TorchFunctionMode):
    """Follows the channels of one forward pass.

    Args:
        network: the network, already in eval mode.
        attention: one of ATTENTION.

    Attributes:
        batch: samples in the traced inputs.
    """

    def __init__(self, network: nn.Module, attention: str = "heads") -> None:
        super().__init__()
        self.network = network
        self.attention = attention
        self.trace = Trace()
        self.forest = self.trace.forest
        self._labels: dict[int, Tensor] = {}
        self._token_labels: dict[int, Tensor] = {}
        self._nodes: dict[int, int] = {}
        # ids of freed tensors are reused, so every tensor stays alive until the end
        self._alive = [*network.parameters(), *network.buffers()]
        self._seen = {id(tensor) for tensor in self._alive}
        self._names: dict[int, tuple[str, tuple[int, ...]]] = {}
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():  # integers are positions and counters, never channels
                self._names.setdefault(id(tensor), (name, tuple(range(tensor.dim()))))
        self.module_stack: list[tuple[str, nn.Module]] = [("", network)]
        self._num_calls = 0
        self.batch = 1

    # ------------------------------------------------------------------ tensors and their labels

    def name_of(self, tensor: Tensor | None) -> str | None:
        """State-dict name of a parameter or buffer, or of one that was only transposed."""
        return None if tensor is None or id(tensor) not in self._names else self._axes(tensor)[0]

    def _axes(self, tensor: Tensor) -> tuple[str, tuple[int, ...]]:
        return self._names[id(tensor)]

    def name_transposed(self, tensor: Tensor, source: Tensor, axes: Iterable[int]) -> None:
        """Say that `tensor` is the named tensor `source` with its axes in another order."""
        name, order = self._axes(source)
        self._names[id(tensor)] = (name, tuple(order[axis] for axis in axes))

    def is_traced(self, value: Any) -> bool:
        """Whether the value is an activation or a named tensor."""
        return isinstance(value, Tensor) and (id(value) in self._labels or id(value) in self._names)

    def is_activation(self, value: Any) -> bool:
        """Whether the value depends on the network's input."""
        return isinstance(value, Tensor) and id(value) in self._nodes

    def labels(self, tensor: Tensor) -> Tensor:
        """Labels of an activation, a named tensor (one per element) or a constant (frozen).

        Labels of tokens, which only a few rules can follow, are frozen by this.
        """
        tokens = self._token_labels.pop(id(tensor), None)
        if tokens is not None:
            self.freeze(tokens, "hidden tokens are used by more than a multilayer perceptron")
        return self.channel_labels(tensor)

    def channel_labels(self, tensor: Tensor) -> Tensor:
        """Same as `labels`, for rules that also follow `token_labels`."""
        if id(tensor) in self._labels:
            return self._labels[id(tensor)]
        if id(tensor) in self._names:
            name, order = self._axes(tensor)
            if name not in self.trace.plain_labels:
                shape = [0] * tensor.dim()
                for size, axis in zip(tensor.shape, order, strict=True):
                    shape[axis] = size
                self.trace.plain_labels[name] = self.forest.fresh(*shape)
            return self.trace.plain_labels[name].permute(order)
        fresh = self.forest.fresh(*tensor.shape)
        self.freeze(fresh, "a constant made in the forward pass")
        self.put(tensor, fresh)
        return fresh

    def token_labels(self, tensor: Tensor) -> Tensor | None:
        """Labels of hidden tokens: a second labelling, of networks that mix tokens linearly.

        An element of such an activation goes when its channel or its token goes.
        """
        return self._token_labels.get(id(tensor))

    def put(self, tensor: Tensor, labels: Tensor, tokens: Tensor | None = None) -> None:
        """Give an activation its labels."""
        assert labels.shape == tensor.shape, f"{labels.shape} labels for {tensor.shape}"
        self._labels[id(tensor)] = labels
        if tokens is not None:
            self._token_labels[id(tensor)] = tokens

    def channels(self, tensor: Tensor, axis: int) -> Tensor:
        """One label per channel along `axis`; everything else along the axis is tied together."""
        return self.forest.tie_across(self.labels(tensor), axis)

    def axis(self, tensor: Tensor | None, axis: int, labels: Tensor) -> None:
        """Say that a parameter axis carries these labels; a tensor used twice ties both uses."""
        if tensor is None or id(tensor) not in self._names:
            return
        name, order = self._axes(tensor)
        key = (name, order[axis])
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

    def stays(self, labels: Tensor) -> bool:
        """Whether all channels that carry these labels are frozen already."""
        frozen = frozen_labels(self.trace)
        return bool(torch.isin(self.forest.roots(shrink(labels)), frozen).all())

    # ------------------------------------------------------------------ where in the network

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

    # ------------------------------------------------------------------ the graph

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
        self.trace.nodes.append(TracedNode(name, channel_labels, _spatial(output)))
        self._nodes[id(output)] = node
        seen: set[int] = set()
        for source in sources:
            origin = self.node_of(source)
            if origin is not None and origin not in seen:
                seen.add(origin)
                self.trace.edges.append((origin, node, kind, operator))
        return node

    def new_operator(
        self, operator: TracedOperator, sources: list[Tensor], output: Tensor, kind: str
    ) -> None:
        """Add an operator and the feature map it makes."""
        index = len(self.trace.operators)
        self.trace.operators.append(operator)
        channels = operator.out_labels if len(operator.out_labels) else operator.in_labels
        operator.target = self.new_node(output, channels, sources, kind, index)
        operator.output_id = id(output)

    def _unique(self, name: str) -> str:
        number = self.trace.names_used[name] = self.trace.names_used.get(name, 0) + 1
        return name if number == 1 else f"{name}#{number}"

    def add_input(self, tensor: Tensor, index: int) -> None:
        """Start from a network input; its channels are frozen."""
        if index == 0:
            self.batch = tensor.shape[0]
        axis = 1 if tensor.dim() > 3 else tensor.dim() - 1
        if tensor.dim() > 1:
            channel_labels = self.forest.fresh(tensor.shape[axis])
            labels = spread(channel_labels, tensor.shape, axis)
        else:  # one number per sample, such as a time step
            channel_labels = self.forest.fresh(1)
            labels = channel_labels.expand(tensor.shape)
        self.see([tensor])
        self.put(tensor, labels)
        self._nodes[id(tensor)] = len(self.trace.nodes)
        name = "input" if index == 0 else f"input_{index}"
        self.trace.nodes.append(TracedNode(name, channel_labels, _spatial(tensor)))
        self.freeze(channel_labels, "network input")

    def is_input(self, tensor: Tensor) -> bool:
        """Whether the tensor is a network input, or only moved since."""
        node = self.node_of(tensor)
        return node is not None and self.trace.nodes[node].name.startswith("input")

    def positions(self, output: Tensor, axis: int) -> int:
        """How many positions one sample has beside `axis`, wherever its axes are folded."""
        return output.numel() // output.shape[axis] // self.batch

    # ------------------------------------------------------------------ calls

    def record_call(self, function: str, **details: Any) -> None:
        """Keep what the replaying executor must know of the call that is being traced."""
        self.trace.calls.append(TracedCall(self._num_calls - 1, function, **details))

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
        self._num_calls += name in CORRECTED
        tensors = tensor_arguments((args, kwargs))
        self.refuse_unseen(tensors)
        inputs = [value for value in tensors if self.is_traced(value)]
        if name == "setitem" and inputs:
            raise UnsupportedOp(
                f"Assigning into a tensor (x[...] = y) {self.where()} has no channel rule; "
                "build the result with torch.cat or torch.where instead."
            )
        out = func(*args, **kwargs)
        self.see(tensor_arguments(out))
        if tensor_arguments(out) and inputs:
            self.apply_rule(RULES.get(name), _qualified(func), func, args, kwargs, out)
        return out

    def see(self, tensors: list[Tensor]) -> None:
        """Note that the tensors come from calls that the tracer follows."""
        self._alive += tensors
        self._seen.update(id(tensor) for tensor in tensors)

    def refuse_unseen(self, tensors: list[Tensor]) -> None:
        """Refuse tensors that were made in the forward pass behind the tracer's back.

        Raises:
            UnsupportedOp: one was; what it has to do with the channels cannot be known.
        """
        for tensor in tensors:
            if id(tensor) not in self._seen and not _is_held(tensor, tensors):
                raise UnsupportedOp(
                    f"A tensor of shape {tuple(tensor.shape)} {self.where()} comes from code that "
                    "tracing cannot see, such as numpy or a compiled extension. Register a rule "
                    "for its module with graphs.tracing.rule, or turn constants "
                    "into buffers."
                )

    def apply_rule(
        self,
        rule: Rule | None,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
    ) -> None:
        """Give the outputs of a call their labels.

        What is worked out from parameters and buffers alone needs no rule: the operands stay as
        they are, and the result is a constant, whose channels stay too.

        Raises:
            UnsupportedOp: there is no rule.
        """
        tensors = tensor_arguments((args, kwargs))
        for key in {id(value) for value in tensors}:
            self.trace.reads[key] = self.trace.reads.get(key, 0) + 1
        if rule is None and not any(self.is_activation(value) for value in tensors):
            for value in tensors:
                if self.is_traced(value):
                    self.freeze(self.labels(value), f"{name} {self.where()}")
            return
        if rule is None:
            raise UnsupportedOp(
                f"No channel rule for {name} {self.where()}. Topiary never guesses what an "
                "operation does to channels; register a rule with graphs.tracing.rule."
            )
        rule(self, func, args, kwargs, out)


CORRECTED = (
    RESIZED
    | PICKED
    | frozenset(
        """
        pad layer_norm rms_norm conv1d conv2d conv3d scaled_dot_product_attention
        multi_head_attention_forward slim_multi_head_attention
        """.split()
    )
)
"""Functions whose numbers can depend on channels; pruning/replaying.py says how."""


def _is_held(tensor: Tensor, besides: list[Tensor]) -> bool:
    """Whether an attribute, a global name, a closure or a list holds the tensor.

    Such a tensor was there before the forward pass; what was made in it is held by its frames only.
    """
    return any(
        isinstance(holder, (dict, list, CellType)) and holder is not besides
        for holder in gc.get_referrers(tensor)
    )


def _spatial(output: Tensor) -> tuple[int, ...]:
    return tuple(output.shape[2:]) if output.dim() > 3 else tuple(output.shape[1:-1])


def _qualified(func: Callable[..., Any]) -> str:
    module = getattr(func, "__module__", None) or "torch"
    return f"{module}.{getattr(func, '__name__', func)}"


def _user_frame(frame: FrameType | None) -> FrameType | None:
    """Innermost frame outside torch and this package."""
    hidden = (torch.__path__[0], __file__.rsplit("/", 1)[0])
    while frame is not None and frame.f_code.co_filename.startswith(hidden):
        frame = frame.f_back
    return frame
