"""The way in: from a network and an example of its inputs to its graph."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# rules register themselves when they are imported
from graphs import (  # noqa: F401
    assembly,
    attention_rules,
    move_rules,
    operator_rules,
    product_rules,
    regularity,
    value_rules,
)
from graphs.network_graph import NetworkGraph
from graphs.rule_registry import RULES, UnsupportedOp, class_key, rule, tensor_arguments
from graphs.tracer import ATTENTION, Tracer

__all__ = ["RULES", "UnsupportedOp", "rule", "trace_network"]


def trace_network(
    network: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    frozen: Sequence[str] = (),
    attention: str = "heads",
) -> NetworkGraph:
    """Find a network's operators, feature maps and dependency groups.

    The network runs once, in eval mode and without gradients; its mode flags, hooks and weights
    are as before afterwards.

    Args:
        network: any module whose forward uses functions that have a rule.
        example_inputs: an input with batch axis, or a tuple of inputs.
        frozen: operators whose output channels must stay, by name or shell pattern such as
            "layer1.*".
        attention: "heads" lets whole heads be removed, "head_dims" the same channels of every
            head, "none" neither.

    Returns:
        The graph; independent of the network's weights.

    Raises:
        UnsupportedOp: an operation without a rule, with the module path and source line.
        ValueError: the inputs are not tensors, the network gives no tensor, or a pattern of
            `frozen` matches no operator.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not inputs or not all(isinstance(value, Tensor) for value in inputs):
        raise ValueError("example_inputs must be a tensor or a tuple of tensors.")
    if attention not in ATTENTION:
        raise ValueError(f"attention must be one of {', '.join(ATTENTION)}, got {attention!r}.")
    tracer = Tracer(network, attention)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        for index, tensor in enumerate(inputs):
            tracer.add_input(tensor, index)
        with _followed(network, tracer), torch.no_grad(), tracer:
            output = network(*inputs)
    finally:
        for module, training in modes.items():
            module.training = training
    outputs = tensor_arguments(output)
    if not outputs:
        raise ValueError(f"The network must return tensors, got {type(output).__name__}.")
    tracer.refuse_unseen(outputs)
    for value in outputs:
        if tracer.is_traced(value):
            tracer.freeze(tracer.labels(value), "network output")
    _freeze_operators(tracer, frozen)
    regularity.tie_irregular(tracer.trace)
    return assembly.assemble(
        network,
        tracer.trace,
        tuple(tuple(x.shape) for x in inputs),
        tuple(0 if x.is_floating_point() else int(x.max()) + 1 for x in inputs),
    )


def _freeze_operators(tracer: Tracer, patterns: Sequence[str]) -> None:
    """Keep the output channels of the operators that a user names."""
    trace = tracer.trace
    names = [trace.nodes[operator.target].name for operator in trace.operators]
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ValueError(
                f"frozen names {pattern!r}, which matches no operator. The operators are: "
                f"{', '.join(names)}. Change frozen."
            )
        for name in matched:
            labels = trace.operators[names.index(name)].out_labels
            trace.frozen.append((labels, f"frozen by {pattern!r}", name))


@contextlib.contextmanager
def _followed(network: nn.Module, tracer: Tracer) -> Iterator[None]:
    """Keep the module stack up to date, and run what has a rule of its own as one call."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    handles: list[Any] = []
    wrapped: list[nn.Module] = []
    # what Function.apply calls in the end, so that an `apply` taken before is followed too
    function_base: Any = torch.autograd.Function.__mro__[1]

    def apply(cls: type, *args: Any) -> Any:
        run = super(function_base, cls).apply
        return _as_one_call(tracer, class_key(cls), cls, run)(*args)

    try:
        torch.backends.mha.set_fastpath_enabled(False)
        function_base.apply = classmethod(apply)
        for path, module in network.named_modules():

            def enter(module: nn.Module, args: Any, path: str = path) -> None:
                tracer.module_stack.append((path, module))

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                tracer.module_stack.pop()

            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave))
            key = class_key(type(module))
            if key in RULES and "forward" not in vars(module):
                module.forward = _as_one_call(tracer, key, module, module.forward)
                wrapped.append(module)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        if "apply" in vars(function_base):
            del function_base.apply
        for handle in handles:
            handle.remove()
        for module in wrapped:
            del module.forward


def _as_one_call(
    tracer: Tracer, key: str, owner: Any, run: Callable[..., Any]
) -> Callable[..., Any]:
    """`run`, hidden from the tracer and followed by the rule of `key`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            out = run(*args, **kwargs)
        tracer.see(tensor_arguments(out))
        if any(tracer.is_traced(value) for value in tensor_arguments((args, kwargs))):
            with torch._C.DisableTorchFunction():
                tracer.apply_rule(RULES.get(key), key, owner, args, kwargs, out)
        return out

    return call
