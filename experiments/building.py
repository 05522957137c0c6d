"""From config to data and network, with errors that name the key."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from experiments.command_line import CONFIG_FOLDER, closest
from experiments.settings import Settings
from graphs.network_graph import NetworkGraph
from graphs.tracing import trace_network
from networks.checkpoints import load_checkpoint
from networks.data import DataSplits


def own_options(
    section: str, options: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """The keys of a section that belong to its function.

    When `_target_` itself is given on the command line, the other keys of the chosen YAML belong to
    another function: only those given on the command line stay, and Topiary's own `checkpoint`.

    Args:
        section: name of the section.
        options: the section as plain data.
        overrides: the overrides of the command line, as Hydra lists them.
    """
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if f"{section}._target_" not in given:
        return dict(options)
    return {
        key: value
        for key, value in options.items()
        if key in ("_target_", "checkpoint")
        or any(f"{name}.".startswith(f"{section}.{key}.") for name in given)
    }


def call_target(section: str, options: Mapping[str, Any]) -> Any:
    """Call the function a section of the config names, with the other keys of the section.

    Args:
        section: name of the section, for messages.
        options: the section as plain data, with `_target_`.

    Returns:
        What the function returns.

    Raises:
        ValueError: there is no such function, or it does not take these arguments.
    """
    target = locate(section, options.get("_target_"))
    arguments = {key: value for key, value in options.items() if key != "_target_"}
    _check_arguments(section, target, options["_target_"], arguments)
    return target(**arguments)


def locate(section: str, path: Any) -> Callable[..., Any]:
    """The function or class at a dotted path such as "my_package.build_network".

    Raises:
        ValueError: the path is not dotted, cannot be imported, or names nothing that can be called.
    """
    key = f"{section}._target_"
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"{key} must be a dotted path such as my_package.build, got {path!r}.")
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ValueError(
            f"{key}={path} names no module: write it as module.function, such as my_package.{path}."
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise ValueError(
                f"{key}={path}: no module {error.name!r} in the current folder or among the "
                "installed packages."
            ) from error
        raise ValueError(
            f"{key}={path}: {module_name} needs the module {error.name!r}, which is not installed."
        ) from error
    if not hasattr(module, name):
        names = [known for known in vars(module) if not known.startswith("_")]
        raise ValueError(f"{key}={path}: {module_name} has no {name!r}.{closest(name, names)}")
    target = getattr(module, name)
    if not callable(target):
        raise ValueError(f"{key}={path} is a {type(target).__name__}, not something to call.")
    return target


def _check_arguments(
    section: str, target: Callable[..., Any], path: str, arguments: Mapping[str, Any]
) -> None:
    """Refuse arguments that the function does not take, before its code runs."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some builtins tell nothing
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        names = [name for name in signature.parameters if name != "self"]
        raise ValueError(
            f"{path} cannot be called with the keys of {section} "
            f"({', '.join(arguments) or 'none'}): {error}. It takes: "
            f"{', '.join(names) or 'nothing'}. "
            f"Set one with +{section}.KEY=VALUE, remove one with ~{section}.KEY."
        ) from error


def build_data(options: Mapping[str, Any]) -> DataSplits:
    """The four splits.

    Args:
        options: the section `data` as plain data.

    Raises:
        ValueError: the data is missing or damaged, or the function returns something else.
    """
    splits = call_target("data", options)
    if not isinstance(splits, DataSplits):
        raise ValueError(
            f"data._target_={options['_target_']} must return networks.data.DataSplits, "
            f"got {type(splits).__name__}."
        )
    return splits


def build_network(options: Mapping[str, Any]) -> nn.Module:
    """The network with the weights of its checkpoint, or with random ones when there is none.

    Args:
        options: the section `network` as plain data; `checkpoint` is Topiary's own key.

    Raises:
        ValueError: the function returns something else, or the checkpoint does not fit.
    """
    arguments = {key: value for key, value in options.items() if key != "checkpoint"}
    network = call_target("network", arguments)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"network._target_={options['_target_']} must return a torch.nn.Module, "
            f"got {type(network).__name__}."
        )
    checkpoint = options.get("checkpoint")
    if checkpoint is not None:
        load_checkpoint(network, checkpoint)
    return network.eval()


def importance_options(names: Any) -> dict[str, dict[str, Any]]:
    """The options of conf/importance by name, for `PruningTask`.

    Args:
        names: `agent.importances`: a list of names, or None for none.

    Raises:
        ValueError: it is no list of names, or there is no such option.
    """
    folder = CONFIG_FOLDER / "importance"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if not isinstance(names or [], list) or not all(name in known for name in names or []):
        raise ValueError(
            f"agent.importances must be null or a list among {', '.join(known)}, got {names!r}."
        )
    options = {name: OmegaConf.load(folder / f"{name}.yaml") for name in names or []}
    return {name: OmegaConf.to_container(option) for name, option in options.items()}  # type: ignore[misc]


def example_inputs(data: DataSplits) -> Tensor:
    """One normalised sample, of the calibration split, to trace a network with."""
    inputs, _ = next(iter(data.search.calibration.batches(1)))
    return inputs


def trace(network: nn.Module, data: DataSplits, settings: Settings) -> NetworkGraph:
    """The graph of the network, with what the user froze and rounded.

    Raises:
        UnsupportedOp: the network does something the tracer does not know.
        ValueError: `frozen` names no operator.
    """
    graph = trace_network(
        network, example_inputs(data), frozen=settings.frozen, attention=settings.attention
    )
    return graph.rounded(settings.round_to)


def check_outputs(network: nn.Module, data: DataSplits) -> None:
    """Refuse a network that does not fit the data, before anything is built on it.

    Raises:
        ValueError: the network cannot read the images, or gives another number of classes.
    """
    inputs = example_inputs(data)
    try:
        with torch.inference_mode():
            outputs = network(inputs)
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(
            f"The network cannot read one sample of {data.name}, of shape {tuple(inputs.shape)}: "
            f"{str(error).splitlines()[0].rstrip('.')}. Choose a network and data that fit."
        ) from error
    classes = data.num_classes
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] != classes:
        raise ValueError(
            f"The network scores {outputs.shape[1]} classes and {data.name} has {classes}. "
            "Choose a network and data that fit together (often network.num_classes)."
        )
