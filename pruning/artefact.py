"""A pruned network as one file: slim weights and what rebuilds the network around them."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from graphs.network_graph import NetworkGraph
from pruning.plan import PruningPlan
from pruning.replaying import is_replayed
from pruning.slimming import Slimmer

ARTEFACT_FORMAT = "topiary-pruned-1"

_TARGET = re.compile(r"networks(\.[A-Za-z]\w*)+\.[A-Za-z]\w*")


def save_pruned(
    path: str | os.PathLike[str],
    network: nn.Module,
    *,
    target: str,
    kwargs: Mapping[str, Any],
    graph: NetworkGraph,
    plan: PruningPlan,
) -> None:
    """Write a pruned network as safetensors, with JSON metadata that rebuilds it.

    The file appears under its name only when it is complete; a failed write leaves nothing.

    Args:
        path: file to write; missing folders are made.
        network: the slim network, fine-tuned or not.
        target: dotted path of the function that builds the unpruned network.
        kwargs: its keyword arguments; numbers, strings, booleans, None, lists and dicts.
        graph: graph of the unpruned network.
        plan: the plan that made `network` slim.

    Raises:
        ValueError: `kwargs` are not JSON, the plan belongs to another graph, or the weights do
            not have the shapes the plan leaves.
        OSError: the file cannot be written, such as on a full disk.
    """
    path = Path(path)
    if plan.graph != graph.fingerprint:
        raise ValueError(
            f"The plan belongs to graph {plan.graph}, not to graph {graph.fingerprint}. Save a "
            "network with the plan and the graph it was pruned with."
        )
    try:
        builder = json.dumps({"target": target, "kwargs": dict(kwargs)}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The arguments of {target} cannot be written as JSON ({error}). Pass numbers, "
            "strings, booleans, None, lists and dicts in the network config."
        ) from error
    # Tied weights share storage, which safetensors refuses; loading ties them again.
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in network.state_dict().items()
    }
    _check_shapes(state, graph, plan)
    metadata = {
        "format": ARTEFACT_FORMAT,
        "builder": builder,
        "graph": graph.to_json(),
        "plan": plan.to_json(),
        "input_shapes": json.dumps(graph.input_shapes),
        "executor": "replay" if is_replayed(network) else "swap",
    }
    _write_whole(path, safetensors.torch.save(state, metadata))


def load_pruned(path: str | os.PathLike[str], network: nn.Module | None = None) -> nn.Module:
    """Rebuild a pruned network from a file of `save_pruned`.

    Nothing in the file is executed: the builder must be one of Topiary's own, in the `networks`
    package and declared to return a module; for any other, build the unpruned network yourself.

    Args:
        path: the file.
        network: the unpruned network, left unchanged; None calls the builder named in the file.

    Returns:
        The slim network on the CPU (or where `network` is), in eval mode.

    Raises:
        ValueError: the file is damaged, of another format, incomplete, names a builder outside
            Topiary, or does not fit `network`.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    file = _read(path)
    if network is None:
        with torch.random.fork_rng(devices=[]):  # its random weights are replaced anyway
            network = _build(path, file)
    try:
        _check_unpruned(network, file.graph)
        slimmer = Slimmer(network, file.graph, verify=False, executor=file.executor)
        slim = slimmer.materialize(file.plan.keep_set(file.graph))
        slim.load_state_dict(file.state, strict=True)
    except (ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{path} does not fit the {type(network).__name__}: {error} Pass the unpruned network "
            f"that {file.target}(**{file.kwargs}) builds."
        ) from error
    return slim.eval()


@dataclass(frozen=True)
class _File:
    target: str
    kwargs: dict[str, Any]
    graph: NetworkGraph
    plan: PruningPlan
    executor: str
    state: dict[str, Tensor]


def _read(path: Path) -> _File:
    if not path.is_file():
        raise FileNotFoundError(f"There is no pruned network at {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}).") from error
    if metadata.get("format") != ARTEFACT_FORMAT:
        raise ValueError(
            f"{path} is not a pruned network of format {ARTEFACT_FORMAT!r}: found "
            f"{metadata.get('format')!r}. Write it with pruning.artefact.save_pruned."
        )
    missing = [
        name for name in ("builder", "graph", "plan", "input_shapes") if name not in metadata
    ]
    if missing:
        raise ValueError(f"{path} lacks the metadata {', '.join(missing)}. Save the network again.")
    try:
        builder = json.loads(metadata["builder"])
        return _File(
            target=str(builder["target"]),
            kwargs=dict(builder["kwargs"]),
            graph=NetworkGraph.from_json(metadata["graph"]),
            plan=PruningPlan.from_json(metadata["plan"]),
            executor=metadata.get("executor", "auto"),
            state=state,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds metadata that cannot be read: {error}") from error


def _build(path: Path, file: _File) -> nn.Module:
    builder = _builder(path, file.target)
    try:
        return builder(**file.kwargs)
    except TypeError as error:
        raise ValueError(
            f"{path} names arguments that {file.target} does not take: {error}. Build the unpruned "
            "network yourself and pass it: load_pruned(path, network=...)."
        ) from error


def _builder(path: Path, target: str) -> Callable[..., nn.Module]:
    """The builder in Topiary's `networks` package that `target` names.

    The path is data of a file somebody else may have written: nothing is imported that is not a
    module of `networks`, and nothing is called but what such a module itself declares as a builder.
    """
    refusal = ValueError(
        f"{path} names the builder {target!r}, which is not a network builder of Topiary's "
        "networks package and is not run from a file. Build the unpruned network yourself and "
        "pass it: load_pruned(path, network=...)."
    )
    if not _TARGET.fullmatch(target):
        raise refusal
    module_name, name = target.rsplit(".", 1)
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        raise refusal from None
    builder: Any = vars(module).get(name)
    if not _returns_network(builder) or builder.__module__ != module_name:
        raise refusal
    return builder


def _returns_network(builder: Any) -> bool:
    """Whether it is a module class, or a function that is declared to return a module."""
    result = builder
    if inspect.isfunction(builder):
        result = typing.get_type_hints(builder).get("return")
    return inspect.isclass(result) and issubclass(result, nn.Module)


def _check_unpruned(network: nn.Module, graph: NetworkGraph) -> None:
    """Refuse a network that is not the one traced: a wider one can be sliced without an error."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, shape in graph.parameters.items():
        found = tuple(parameters[name].shape) if name in parameters else None
        if found != shape:
            raise ValueError(f"{name!r} has the shape {found}, the unpruned network had {shape}.")


def _check_shapes(state: Mapping[str, Tensor], graph: NetworkGraph, plan: PruningPlan) -> None:
    """Refuse weights that are not those of the slim network."""
    kept = np.append(plan.keep_set(graph).mask, True)  # index FROZEN (-1) reads the appended True
    for axis_slice in graph.slices:
        if axis_slice.tensor not in state:
            if axis_slice.tensor not in graph.parameters:
                continue  # a buffer that is not part of the state dict
            raise ValueError(
                f"The network has no tensor {axis_slice.tensor!r}, which the graph names."
            )
        expected = int(kept[list(axis_slice.units)].sum())
        found = state[axis_slice.tensor].shape[axis_slice.axis]
        if found != expected:
            raise ValueError(
                f"Axis {axis_slice.axis} of {axis_slice.tensor!r} has {found} positions, the plan "
                f"leaves {expected}. Save the slim network, made by plan.apply or materialize."
            )


def _write_whole(path: Path, content: bytes) -> None:
    """Write through a neighbour file, so that `path` never holds half of the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
