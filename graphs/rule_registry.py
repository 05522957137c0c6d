"""What each torch function does to channel labels: the table of rules, and what rules share.

A rule receives the tracer, the function, its arguments and its output, and gives the output its
labels. Five kinds: moving functions run on the labels themselves; element-wise functions merge
their operands position by position; producers (conv, linear) start new labels; reductions and pools
need one label over what they reduce; mixers make every output channel depend on every input
channel, so their channels are frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from graphs.tracing import Tracer

Rule = Callable[["Tracer", Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]
RULES: dict[str, Rule] = {}
"""Rule of each torch function, by its normalised name (see `tracing.function_name`)."""


class UnsupportedOp(ValueError):  # noqa: N818 - the name is part of the interface
    """An operation whose effect on channels is not known; guessing would give wrong networks."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for functions, by their normalised names."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any = None
) -> Any:
    """An argument given by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def tensor_arguments(value: Any) -> list[Tensor]:
    """Tensors among (nested) arguments, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensor_arguments(item)]
    return []


def patch_attribute(tracer: Tracer, attribute: str, labels: Tensor, form: str = "int") -> None:
    """Record a module attribute that counts these channels, where the module has it."""
    value = getattr(tracer.module, attribute, None)
    expected: Any = len(labels) if form == "int" else (len(labels),)
    if value == expected and not isinstance(value, bool):
        tracer.trace.patches.append((tracer.module_path, attribute, labels, form))
