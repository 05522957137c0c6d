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
    from graphs.tracer import Tracer

Rule = Callable[["Tracer", Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]
RULES: dict[str, Rule] = {}
"""Rule of each torch function by its normalised name, of other things by `class_key`."""


class UnsupportedOp(ValueError):  # noqa: N818 - the name is part of the interface
    """An operation whose effect on channels is not known; guessing would give wrong networks."""


def rule(*targets: str | type | Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register a rule; the way for users to teach the tracer an operation of theirs.

    A rule gives the outputs of one call their labels, with `Tracer.put`:

        @rule(my_ops.swish)                 # a function that torch functions modes see
        @rule(MyFunction)                   # a torch.autograd.Function
        @rule(MyBlock)                      # a module class: its forward becomes one call
        def unary(tracer, func, args, kwargs, out):
            tracer.put(out, tracer.labels(args[0]))
            tracer.same_node([out], args[0])

    An operation that works on every channel by itself can take the rule of a built-in one:
    `rule(my_ops.swish)(RULES["relu"])`; import both from graphs.tracing, which knows all rules.

    Args:
        targets: names of torch functions (see `function_name`), the functions themselves, or
            subclasses of torch.autograd.Function or torch.nn.Module. The last rule of a target
            counts.
    """

    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target if isinstance(target, str) else _key(target)] = function
        return function

    return register


def class_key(cls: type) -> str:
    """Key of the rule of a module or of an autograd function."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _key(target: Any) -> str:
    return class_key(target) if isinstance(target, type) else function_name(target)


_OPERATORS = frozenset("add sub mul truediv pow floordiv mod and or xor matmul".split())


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


def patch_attribute(tracer: Tracer, attribute: str, labels: Tensor, form: str = "int") -> bool:
    """Record a module attribute that counts these channels; False where the module has none."""
    value = getattr(tracer.module, attribute, None)
    expected: Any = len(labels) if form == "int" else (len(labels),)
    if value != expected or isinstance(value, bool):
        return False
    tracer.trace.patches.append((tracer.module_path, attribute, labels, form))
    return True
