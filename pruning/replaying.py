"""Running a slim network whose own code holds channel numbers.

A view to (batch, 3, 4, 8), a slice [:, 8:24] or a padding by 16 channels is written for the full
width. While a slim network runs, every torch function it calls is counted; calls that the graph has
recorded get the numbers of the slim width, all others run as they are.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graphs.network_graph import Call, NetworkGraph
from graphs.rule_registry import argument, function_name
from graphs.tracer import CORRECTED
from pruning.slim_attention import slim_multi_head_attention


@dataclass(frozen=True)
class SlimCall:
    """The numbers of one call at the slim width.

    Attributes:
        function: normalised name of the function.
        sizes: for each output, the size of the axes that carry channels.
        shapes: for each output, its whole shape as traced, but with these sizes.
        full: shape of the first output as traced.
        lead: how many leading axes of the input the first output has unchanged.
        picks: positions to take along an axis of the input, in the slim input's own numbers.
        padding: zeros before and after, by axis.
        value: see `graphs.network_graph.Call`.
    """

    function: str
    sizes: tuple[Mapping[int, int], ...]
    shapes: tuple[tuple[int, ...], ...]
    full: tuple[int, ...]
    lead: int
    picks: Mapping[int, Tensor]
    padding: Mapping[int, tuple[int, int]]
    value: float


def slim_calls(graph: NetworkGraph, mask: np.ndarray) -> dict[int, SlimCall]:
    """The recorded calls at the width of a keep-set.

    Args:
        graph: the traced network.
        mask: True for kept units, shape (num_units,).

    Returns:
        By the number of the call.
    """
    kept = np.append(mask, True)  # FROZEN is -1 and reads the appended True
    return {call.number: _slim_call(call, kept) for call in graph.calls}


def _slim_call(call: Call, kept: np.ndarray) -> SlimCall:
    sizes = tuple(
        {axis.axis: int(kept[list(axis.units)].sum()) for axis in output} for output in call.outputs
    )
    shapes = tuple(
        tuple(own.get(axis, size) for axis, size in enumerate(shape))
        for shape, own in zip(call.shapes, sizes, strict=True)
    )
    picks, padding = {}, {}
    for pick in call.picks:
        source = np.asarray(pick.source)
        left = kept[list(pick.source_units)]
        if (source < 0).any():
            first, last = np.flatnonzero(source >= 0)[[0, -1]]
            padding[pick.axis] = (int(left[:first].sum()), int(left[last + 1 :].sum()))
        else:
            new_position = np.cumsum(kept[list(pick.units)]) - 1
            picks[pick.axis] = torch.from_numpy(new_position[source[left]])
    pairs = zip(call.in_shape, call.shapes[0] if call.shapes else (), strict=False)
    lead = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    full = call.shapes[0] if call.shapes else ()
    return SlimCall(call.function, sizes, shapes, full, lead, picks, padding, call.value)


class CallsAtSlimWidth(TorchFunctionMode):
    """Gives each recorded call its numbers; one object serves one forward pass.

    Args:
        calls: the recorded calls by number.
        batch: samples now and in the trace; None when the inputs have other sizes than there.
    """

    def __init__(self, calls: Mapping[int, SlimCall], batch: tuple[int, int] | None) -> None:
        super().__init__()
        self._calls = calls
        self._batch = batch
        self._number = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the function, with other numbers where the graph says so."""
        kwargs = kwargs or {}
        name = function_name(func)
        if name not in CORRECTED:
            return func(*args, **kwargs)
        call = self._calls.get(self._number)
        self._number += 1
        if name in _ALWAYS:
            return _ALWAYS[name](func, args, kwargs, call)
        if call is None:
            return func(*args, **kwargs)
        if name != call.function:
            raise RuntimeError(
                f"The network called {name} where {call.function} was traced; its path through the "
                "code changed with the input or the mode. Trace it on such an input, or remove the "
                "channel numbers from its code."
            )
        return _HANDLERS[name](func, args, kwargs, call, self._batch)


def _reshape(
    func: Any, args: Any, kwargs: Any, call: SlimCall, batch: tuple[int, int] | None
) -> Tensor:
    x = argument(args, kwargs, 0, "input")
    if call.function == "unflatten":
        axis = argument(args, kwargs, 1, "dim") % x.dim()
        wanted: Sequence[Any] = [
            *x.shape[:axis],
            *argument(args, kwargs, 2, "sizes"),
            *x.shape[axis + 1 :],
        ]
    else:
        wanted = args[1:] if len(args) > 1 else next(iter(kwargs.values()))
        if len(wanted) == 1 and not isinstance(wanted[0], int):
            wanted = wanted[0].shape if isinstance(wanted[0], Tensor) else wanted[0]
    sizes = [call.sizes[0].get(axis, size) for axis, size in enumerate(wanted)]
    if call.function in ("expand", "expand_as", "broadcast_to"):
        return x.expand(sizes)
    return x.reshape([*x.shape[: call.lead], *_traced_sizes(x, sizes, wanted, call, batch)])


def _traced_sizes(
    x: Tensor,
    sizes: list[Any],
    given: Sequence[Any],
    call: SlimCall,
    batch: tuple[int, int] | None,
) -> Sequence[Any]:
    """The sizes of a view, with those of the trace where the code worked some out from channels.

    C // heads is wrong once channels are removed. The leading axes that a view leaves alone (batch
    and tokens, mostly) may have any size; of the others, only a batch that is folded in may differ
    from the trace: it is in the first axis whose size has changed as the batch has. That axis may
    hold heads as well, of which the code (`given`) may name all or only those that are left.
    """
    given = given[call.lead :]
    sizes, traced = sizes[call.lead :], call.shapes[0][call.lead :]
    if batch is None:  # other image sizes or numbers of tokens, which the trace does not know
        return _guessed_sizes(x, sizes, traced, call)
    now, then = batch
    exports = isinstance(now, torch.SymInt)  # the batch is a symbol then, and a test would fix it
    result, found = list(traced), call.lead > 0
    for axis, (size, known) in enumerate(zip(sizes, traced, strict=True)):
        if any(isinstance(each, int) and each == -1 for each in (size, given[axis])):
            result[axis] = -1
        elif not found and axis + call.lead in call.sizes[0]:
            if exports:
                found = isinstance(given[axis], torch.SymInt)
            elif math.prod(x.shape[call.lead :]) * then == math.prod(traced) * now:
                found = given[axis] * then in (known * now, call.full[axis + call.lead] * now)
            if found and (exports or now != then) and -1 not in result:
                result[axis] = -1
        elif not found:
            found = isinstance(size, torch.SymInt) if exports else size * then == known * now
            result[axis] = size if found else known
    return result


def _guessed_sizes(
    x: Tensor, sizes: list[Any], traced: tuple[int, ...], call: SlimCall
) -> Sequence[Any]:
    """The sizes that the code gives, or those of the trace, whichever hold all elements."""
    if -1 in sizes and all(a in (-1, b) for a, b in zip(sizes, traced, strict=True)):
        return sizes
    elements = math.prod(x.shape[call.lead :])
    for option in (sizes, traced):
        if -1 not in option and math.prod(option) == elements:
            return option
    raise RuntimeError(
        f"A view to {tuple(sizes)} was traced as {traced}; on inputs of another size it cannot be "
        "told which of these numbers depend on channels. Trace the network on inputs of this size."
    )


def _split(func: Any, args: Any, kwargs: Any, call: SlimCall, _: Any) -> Any:
    x, axis = argument(args, kwargs, 0, "input"), argument(args, kwargs, 2, "dim", 0)
    axis %= x.dim()
    sizes = [shape[axis] for shape in call.shapes]
    if axis not in call.sizes[0] and sum(sizes) != x.shape[axis]:  # tokens, of another number
        return func(*args, **kwargs)
    return torch.split(x, sizes, axis)


def _getitem(func: Any, args: Any, kwargs: Any, call: SlimCall, _: Any) -> Tensor:
    x, index = args
    index = list(index) if isinstance(index, tuple) else [index]
    taken = sum(_axes_taken(entry) for entry in index if entry is not Ellipsis)
    if Ellipsis in [entry for entry in index if not isinstance(entry, Tensor)]:
        place = next(i for i, entry in enumerate(index) if entry is Ellipsis)
        index[place : place + 1] = [slice(None)] * (x.dim() - taken)
    axis = 0
    for place, entry in enumerate(index):
        if axis in call.picks and entry is not None:
            positions = call.picks[axis].to(x.device)
            if isinstance(entry, int):
                index[place] = int(positions[0])
            else:
                x, index[place] = x.index_select(axis, positions), slice(None)
        axis += _axes_taken(entry)
    return func(x, tuple(index))


def _axes_taken(entry: Any) -> int:
    if entry is None:
        return 0
    return entry.dim() if isinstance(entry, Tensor) and entry.dtype == torch.bool else 1


def _pick(func: Any, args: Any, kwargs: Any, call: SlimCall, _: Any) -> Tensor:
    """narrow, index_select, select: all that is taken lies along one axis."""
    if not call.picks:
        return func(*args, **kwargs)
    (axis,) = call.picks
    picked = _permuted(argument(args, kwargs, 0, "input"), call)
    return picked.squeeze(axis) if call.function == "select" else picked


def _flip(func: Any, args: Any, kwargs: Any, call: SlimCall, _: Any) -> Tensor:
    x = argument(args, kwargs, 0, "input")
    axes = args[1:] if len(args) > 1 else kwargs["dims"]
    axes = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
    return _permuted(x, call).flip([axis for axis in axes if axis % x.dim() not in call.picks])


def _roll(func: Any, args: Any, kwargs: Any, call: SlimCall, _: Any) -> Tensor:
    x, shifts = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "shifts")
    axes = argument(args, kwargs, 2, "dims")
    pairs = [(shifts, axes)] if isinstance(shifts, int) else list(zip(shifts, axes, strict=True))
    rest = [(shift, axis) for shift, axis in pairs if axis % x.dim() not in call.picks]
    x = _permuted(x, call)
    return x.roll([shift for shift, _ in rest], [axis for _, axis in rest]) if rest else x


def _permuted(x: Tensor, call: SlimCall) -> Tensor:
    for axis, positions in call.picks.items():
        x = x.index_select(axis, positions.to(x.device))
    return x


def _pad(func: Any, args: Any, kwargs: Any, call: SlimCall, _: Any) -> Tensor:
    x, pad = argument(args, kwargs, 0, "input"), list(argument(args, kwargs, 1, "pad"))
    for axis, zeros in call.padding.items():
        number = x.dim() - 1 - axis
        pad[2 * number : 2 * number + 2] = zeros
    rest = {key: value for key, value in kwargs.items() if key not in ("input", "pad")}
    return func(x, pad, *args[2:], **rest)


def _norm(func: Any, args: Any, kwargs: Any, call: SlimCall | None) -> Tensor:
    weight = argument(args, kwargs, 2, "weight")
    if weight is None:
        return func(*args, **kwargs)
    rest = {key: value for key, value in kwargs.items() if key not in ("input", "normalized_shape")}
    return func(argument(args, kwargs, 0, "input"), tuple(weight.shape), *args[2:], **rest)


def _conv(func: Any, args: Any, kwargs: Any, call: SlimCall | None) -> Tensor:
    weight, groups = argument(args, kwargs, 1, "weight"), argument(args, kwargs, 6, "groups", 1)
    if groups == 1 or weight.shape[1] != 1:
        return func(*args, **kwargs)
    channels = argument(args, kwargs, 0, "input").shape[1]  # depthwise: as many groups
    return func(*args[:6], **{**kwargs, "groups": channels})


def _attention(func: Any, args: Any, kwargs: Any, call: SlimCall | None) -> Tensor:
    return func(*args, **kwargs) if call is None else func(*args, **{**kwargs, "scale": call.value})


def _multi_head(func: Any, args: Any, kwargs: Any, call: SlimCall | None) -> Any:
    if call is None:
        return func(*args, **kwargs)
    return slim_multi_head_attention(*args, **{**kwargs, "head_dim": round(call.value)})


_ALWAYS: dict[str, Callable[..., Any]] = {
    "layer_norm": _norm,
    "rms_norm": _norm,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
    "slim_multi_head_attention": _multi_head,
}
_HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        "view reshape view_as reshape_as unflatten expand expand_as broadcast_to".split(), _reshape
    ),
    **dict.fromkeys("split split_with_sizes chunk tensor_split".split(), _split),
    **dict.fromkeys("narrow select index_select".split(), _pick),
    "getitem": _getitem,
    "flip": _flip,
    "roll": _roll,
    "pad": _pad,
}


@dataclass(frozen=True)
class Replay:
    """What a replayed network carries: its calls, and the shapes of the inputs it was traced on."""

    calls: Mapping[int, SlimCall]
    input_shapes: tuple[tuple[int, ...], ...]

    def mode(self, inputs: tuple[Any, ...]) -> CallsAtSlimWidth:
        """The mode of one forward pass."""
        shapes = [tuple(value.shape) for value in inputs if isinstance(value, Tensor)]
        alike = len(shapes) == len(self.input_shapes) and all(
            found[1:] == traced[1:] for found, traced in zip(shapes, self.input_shapes, strict=True)
        )
        batch = (shapes[0][0], self.input_shapes[0][0]) if alike else None
        return CallsAtSlimWidth(self.calls, batch)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def replayed_class(cls: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose forward runs at the slim width; state-dict names stay what they are.

    A network that is pruned twice has two of them, each with a record of its own.
    """
    if cls in _CLASSES:
        return _CLASSES[cls]
    depth = getattr(cls, "replay_depth", 0) + 1

    @functools.wraps(cls.forward)  # exporters read the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with getattr(self, f"replay_{depth}").mode((*args, *kwargs.values())):
            return cls.forward(self, *args, **kwargs)

    base = cls if depth == 1 else vars(cls)["replay_base"]

    def reduce(self: Any, protocol: Any) -> Any:  # a class made here is not found by its name
        return _revive, (base, depth), self.__dict__

    members = {
        "forward": forward,
        "__doc__": cls.__doc__,
        "__reduce_ex__": reduce,
        "replay_depth": depth,
        "replay_base": base,
    }
    _CLASSES[cls] = type(f"Replayed{cls.__name__}", (cls,), members)
    return _CLASSES[cls]


def _revive(base: type[nn.Module], depth: int) -> nn.Module:
    """An empty network of the class, for copies and pickles."""
    cls = base
    for _ in range(depth):
        cls = replayed_class(cls)
    return cls.__new__(cls)


@contextmanager
def replayed(network: nn.Module, graph: NetworkGraph, mask: np.ndarray) -> Iterator[None]:
    """Run a network at the slim width for the length of a `with` block; copies of it keep that.

    Args:
        network: the network, with slim tensors.
        graph: its trace.
        mask: True for kept units, shape (num_units,).
    """
    cls = type(network)
    slim = replayed_class(cls)
    attribute = f"replay_{vars(slim)['replay_depth']}"
    network.__class__ = slim
    setattr(network, attribute, Replay(slim_calls(graph, mask), graph.input_shapes))
    try:
        yield
    finally:
        network.__class__ = cls
        delattr(network, attribute)


def is_replayed(network: nn.Module) -> bool:
    """Whether a slim network runs by replaying."""
    return hasattr(type(network), "replay_depth")
