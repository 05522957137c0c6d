"""Sampled input patches of convolutions and linear layers: operators as matrices."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graphs.network_graph import NetworkGraph, Operator
from pruning.scoring import undisturbed
from pruning.slim_attention import multi_head_attention

POSITIONS_PER_IMAGE = 10
"""Output positions sampled per image; the number of He et al. (2017), section 4."""

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    **{
        f"conv{rank}d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        for rank in (1, 2, 3)
    },
    **{
        f"conv_transpose{rank}d": (
            "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
        )
        for rank in (1, 2, 3)
    },
}  # fmt: skip
"""Arguments, in order, of the torch functions that operators are calls of."""

_ATTENTION = frozenset({"multi_head_attention_forward", "slim_multi_head_attention"})


@dataclass(frozen=True, eq=False)
class OperatorCall:
    """One call of a convolution or linear layer, seen as a matrix that multiplies patches.

    A linear layer is a convolution with a kernel of one over its tokens.

    Attributes:
        operator: what was called.
        weight: as given to torch; a slim network gives a slim one.
        bias: or None.
        inputs: (B, C, *spatial), a linear layer's channels moved to axis 1.
        stride: per spatial axis; so are `padding` (on the low side) and `dilation`.
        groups: blocks of channels.
        transposed: whether it is a transposed convolution.
        output_size: spatial size of the output.
    """

    operator: Operator
    weight: Tensor
    bias: Tensor | None
    inputs: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_size: tuple[int, ...]

    @classmethod
    def of(cls, operator: Operator, function: str, given: Mapping[str, Any]) -> OperatorCall:
        """The call of a torch function with named arguments."""
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        if function == "linear":
            x = x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2)
            ones = (1,)
            return cls(operator, weight, bias, x, ones, (0,), ones, 1, False, x.shape[2:])
        kernel, size = weight.shape[2:], x.shape[2:]
        rank, transposed = len(kernel), function.startswith("conv_transpose")

        def per_axis(key: str, default: int) -> tuple[int, ...]:
            value = given.get(key, default)
            values = (value,) if isinstance(value, int) else tuple(value)
            return values * rank if len(values) == 1 else values

        stride, dilation = per_axis("stride", 1), per_axis("dilation", 1)
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = given.get("padding", 0)
        if padding == "same":
            low, output = tuple(span // 2 for span in spans), tuple(size)
        else:
            low = (0,) * rank if padding == "valid" else per_axis("padding", 0)
            extra = per_axis("output_padding", 0)
            output = tuple(
                (n - 1) * s - 2 * p + span + e + 1
                if transposed
                else (n + 2 * p - span - 1) // s + 1
                for n, s, p, span, e in zip(size, stride, low, spans, extra, strict=True)
            )
        groups = int(given.get("groups", 1))
        return cls(
            operator, weight, bias, x, stride, low, dilation, groups, transposed, output
        )  # fmt: skip

    def patches(self, draws: Tensor) -> Tensor:
        """What the kernel is laid on at some output positions; zero where it is padding.

        Args:
            draws: (B, P) in [0, 1), P positions of each image. All positions are taken, once each,
                where there are no more than P.

        Returns:
            float64 (groups, samples, C / groups * kernel), samples image by image.

        Raises:
            ValueError: the operator does not read one row per image.
        """
        x = self.inputs
        if len(x) != len(draws):
            raise ValueError(
                f"Operator {self.operator.name!r} reads {len(x)} rows for {len(draws)} images, so "
                "its inputs cannot be told apart by image. Change importance.criterion (lasso) or "
                "reconstruction (least_squares) for this network."
            )
        count = math.prod(self.output_size)
        if count <= draws.shape[1]:
            positions = torch.arange(count, device=x.device).expand(len(x), count)
        else:
            positions = (draws.to(x.device) * count).long()
        index, inside = self._taps(positions)
        batch, channels = x.shape[:2]
        flat_index = index.reshape(batch, 1, -1).expand(batch, channels, -1)
        taken = x.flatten(2).gather(2, flat_index).reshape(batch, channels, *index.shape[1:])
        taken = taken.masked_fill(~inside[:, None], 0.0).double()
        blocks = taken.reshape(batch, self.groups, -1, *index.shape[1:])
        return blocks.permute(1, 0, 3, 2, 4).reshape(self.groups, positions.numel(), -1)

    def rows(self, tensor: Tensor) -> Tensor:
        """A tensor in the weight's shape as (groups, outputs / groups, patch); a view or copy."""
        if not self.transposed:
            return tensor.reshape(self.groups, tensor.shape[0] // self.groups, -1)
        blocks = tensor.reshape(self.groups, -1, tensor.shape[1], self.kernel)
        return blocks.transpose(1, 2).reshape(self.groups, tensor.shape[1], -1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`, in the weight's shape and dtype."""
        if self.transposed:
            blocks = rows.reshape(self.groups, rows.shape[1], -1, self.kernel)
            rows = blocks.transpose(1, 2)
        return rows.reshape(self.weight.shape).to(self.weight.dtype)

    @property
    def kernel(self) -> int:
        """Weights per pair of channels."""
        return math.prod(self.weight.shape[2:])

    def _taps(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Flat input index of each kernel entry at each position, (B, P, kernel), and its truth."""
        index = positions.new_zeros((*positions.shape, 1))
        inside = torch.ones_like(index, dtype=torch.bool)
        sizes = self.inputs.shape[2:]
        strides = [math.prod(self.output_size[axis + 1 :]) for axis in range(len(sizes))]
        kernel = self.weight.shape[2:] or (1,)  # of a linear layer
        for axis, size in enumerate(sizes):
            place = (positions // strides[axis] % self.output_size[axis])[..., None]
            offset = torch.arange(kernel[axis], device=place.device) * self.dilation[axis]
            if self.transposed:
                reached = place + self.padding[axis] - offset
                read = reached.div(self.stride[axis], rounding_mode="floor")
                valid = (reached % self.stride[axis] == 0) & (read >= 0) & (read < size)
            else:
                read = place * self.stride[axis] - self.padding[axis] + offset
                valid = (read >= 0) & (read < size)
            read = read.clamp(0, size - 1)
            index = (index[..., :, None] * size + read[..., None, :]).flatten(-2)
            inside = (inside[..., :, None] & valid[..., None, :]).flatten(-2)
        return index, inside


Visit = Callable[[OperatorCall], tuple[Tensor, Tensor | None] | None]
"""Sees a call before it is made; may give another weight and bias to make it with."""


class OperatorCalls(TorchFunctionMode):
    """Shows calls of operators, known by their weight, to a function while a network runs.

    Args:
        network: as it is when it runs, so that a slim network's weights are known.
        operators: those that are shown; each must name a weight.
        visit: is shown each call, in execution order.
    """

    def __init__(self, network: nn.Module, operators: Iterable[Operator], visit: Visit) -> None:
        super().__init__()
        parameters = dict(network.named_parameters(remove_duplicate=False))
        self._of_weight: dict[int, list[Operator]] = defaultdict(list)
        for operator in operators:
            self._of_weight[id(parameters[operator.weight])].append(operator)
        self._visit = visit
        self._calls: Counter[int] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _ATTENTION:
            return self._attend(*args, **kwargs)
        if name not in _ARGUMENTS:
            return func(*args, **kwargs)
        given = {**dict(zip(_ARGUMENTS[name], args, strict=False)), **kwargs}
        key = id(given["weight"])
        operators, call = self._of_weight.get(key, ()), self._calls[key]
        self._calls[key] += 1
        if call >= len(operators):
            return func(*args, **kwargs)
        other = self._visit(OperatorCall.of(operators[call], name, given))
        if other is None:
            return func(*args, **kwargs)
        return func(**{**given, "weight": other[0], "bias": other[1]})

    def _attend(self, *args: Any, head_dim: int | None = None, **kwargs: Any) -> Any:
        """nn.MultiheadAttention in steps, whose own function hides its linear layers."""
        packed = args[5]
        operators = self._of_weight.get(id(packed), ())
        parts = () if packed is None else packed.chunk(3)
        for operator, x, weight in zip(operators, args[:3], parts, strict=False):
            given = {"input": x.transpose(0, 1), "weight": weight}  # tokens come first there
            self._visit(OperatorCall.of(operator, "linear", given))
        self._calls[id(packed)] += len(operators)
        with self:  # separate projections, and the last one, are plain linear layers
            return multi_head_attention(*args, head_dim=head_dim or args[3] // args[4], **kwargs)

    def check(self) -> None:
        """Refuse a run that called an operator more or less often than the traced one."""
        for key, operators in self._of_weight.items():
            if self._calls[key] != len(operators):
                raise ValueError(
                    f"Operator {operators[0].name!r} ran {self._calls[key]} times on a sample, "
                    f"{len(operators)} times when the network was traced. Its inputs cannot be "
                    "read: change importance.criterion to l1, and reconstruction to none."
                )


class Draws:
    """The sampled output positions of every operator and image, whatever the batches.

    Args:
        graph: the traced network.
        images: number of images.
        positions: positions per image.
        seed: the same seed draws the same positions.
    """

    def __init__(self, graph: NetworkGraph, images: int, positions: int, seed: int) -> None:
        self._index = {operator.name: i for i, operator in enumerate(graph.operators)}
        self._shape, self._seed = (images, positions), seed

    def of(self, operator: Operator, start: int, stop: int) -> Tensor:
        """For images `start` to `stop`: (stop - start, positions), in [0, 1)."""
        # raw uniform numbers are the part of numpy's generators that stays equal between versions
        generator = np.random.Generator(np.random.PCG64([self._seed, self._index[operator.name]]))
        return torch.from_numpy(generator.random(self._shape)[start:stop])


def run_batches(
    network: nn.Module,
    operators: Sequence[Operator],
    batches: Iterable[Tensor],
    visit: Callable[[OperatorCall, int, int], None],
) -> None:
    """Run a network, as it is, over batches of its inputs.

    Args:
        network: left as it was: modes, buffers and torch's random state.
        operators: those whose calls are shown.
        batches: network inputs (B, ...), image after image.
        visit: is shown each call, and the numbers of the batch's first image and of the one after
            its last.

    Raises:
        ValueError: an operator ran more or less often than when the network was traced.
    """
    buffers, start = dict(network.named_buffers()), 0
    with undisturbed(network), torch.no_grad():
        for batch in batches:
            stop = start + len(batch)

            def show(call: OperatorCall, start: int = start, stop: int = stop) -> None:
                visit(call, start, stop)

            # a forward pass may write to its buffers
            state = {name: buffer.clone() for name, buffer in buffers.items()}
            with OperatorCalls(network, operators, show) as calls:
                torch.func.functional_call(network, state, (batch,))
            calls.check()
            start = stop


@dataclass
class Moments:
    """Sums over the sampled patches of one operator of the unpruned network.

    Attributes:
        gram: sum of outer products, float64 (groups, patch, patch).
        total: sum, float64 (groups, patch).
        count: number of samples.
        call: the last call, without its inputs: how its weight becomes rows.
    """

    gram: Tensor
    total: Tensor
    count: int
    call: OperatorCall

    @property
    def centred(self) -> Tensor:
        """The Gram matrix of the patches minus their mean."""
        outer = self.total[:, :, None] * self.total[:, None, :]
        return self.gram - outer / self.count


def gram_bytes(operator: Operator) -> int:
    """Bytes of `Moments.gram` of an operator."""
    patch = len(operator.in_units) // operator.groups * math.prod(operator.kernel_size)
    return 8 * operator.groups * patch**2


def chunks(operators: Iterable[Operator], most_bytes: int) -> list[list[Operator]]:
    """Operators in order, in lists whose Grams together fit, or of one operator that does not."""
    lists: list[list[Operator]] = []
    free = 0
    for operator in operators:
        size = gram_bytes(operator)
        if not lists or size > free:
            lists.append([])
            free = most_bytes
        lists[-1].append(operator)
        free -= size
    return lists


def gather_moments(
    network: nn.Module, operators: Sequence[Operator], batches: Iterable[Tensor], draws: Draws
) -> dict[str, Moments]:
    """Second moments of the sampled patches of some operators, in one run over the batches.

    Args:
        network: the unpruned network; left as it was.
        operators: with weights; calls of a shared weight are kept apart.
        batches: network inputs, image after image.
        draws: where the patches are sampled.

    Returns:
        Moments by operator name, of the operators that are called as convolution or linear layer.
        Sums are in float64, so batches change them by rounding only.
    """
    moments: dict[str, Moments] = {}

    def add(call: OperatorCall, start: int, stop: int) -> None:
        patches = call.patches(draws.of(call.operator, start, stop))
        gram, total = patches.mT @ patches, patches.sum(1)
        known = moments.get(call.operator.name)
        if known is None:
            emptied = replace(call, inputs=call.inputs.new_zeros(0))  # images are not kept alive
            moments[call.operator.name] = Moments(gram, total, patches.shape[1], emptied)
            return
        known.gram += gram
        known.total += total
        known.count += patches.shape[1]

    run_batches(network, operators, batches, add)
    return moments
