"""Every network of the test list, built the same way for all tests."""

import functools

import numpy as np
import torch
from convolutional import CONVOLUTIONAL, convolutional_inputs
from foreign_networks import FOREIGN, foreign_inputs
from operations import OPERATIONS, operation_inputs
from torch import Tensor, nn
from transformer_networks import TRANSFORMERS, transformer_inputs

from graphs.tracing import trace_network
from pruning.keep_set import KeepSet
from pruning.slimming import Slimmer

HARD_CASES = {**TRANSFORMERS, **CONVOLUTIONAL, **OPERATIONS, **FOREIGN}

NORM_OVER_CHANNELS = (
    *(name for name in TRANSFORMERS if not name.startswith("mha_cross")),
    "layer_norm_chw",
    "uneven_norm_groups",
    "wide_layer_norm",
    "llama",
    "bert",
    "diffusion",
)
"""Networks with layer or group norm over channels: removing a zero changes the statistics."""


def build_case(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network in eval mode and float64, with random norms and statistics, and its inputs."""
    family, inputs = next(
        (family, inputs)
        for family, inputs in (
            (TRANSFORMERS, transformer_inputs),
            (CONVOLUTIONAL, convolutional_inputs),
            (OPERATIONS, operation_inputs),
            (FOREIGN, foreign_inputs),
        )
        if name in family
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = family[name]()
        randomise(network)
    examples = inputs(name, torch.Generator().manual_seed(0))
    examples = tuple(x.double() if x.is_floating_point() else x for x in examples)
    return network.double().eval(), examples


@functools.cache
def traced(name):
    """Network, inputs and graph, once for all tests; every test leaves them as they were."""
    network, inputs = build_case(name)
    return network, inputs, trace_network(network, inputs)


@functools.cache
def slimmer_of(name):
    network, _, graph = traced(name)
    return Slimmer(network, graph)


def random_keep(graph, seed):
    return KeepSet.random(graph, np.random.default_rng(seed))


def randomise(network: nn.Module) -> None:
    """Norm parameters, statistics and biases that are neither zero nor one."""
    for module in network.modules():
        for name, tensor in module.named_parameters(recurse=False):
            if isinstance(module, (nn.PReLU, nn.MultiheadAttention)) or "Norm" in str(type(module)):
                nn.init.normal_(tensor, std=1.0 if tensor.dim() == 1 else 0.3)
            elif "bias" in name:
                nn.init.normal_(tensor)
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)


def flat(output):
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in flat(value)]


def outputs(network, inputs):
    with torch.no_grad():
        return flat(network(*inputs))


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        scale = max(1e-12, float(b.abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def members_of(graph, group, prefix=""):
    """{(tensor, axis)} that carry units of the group."""
    units = set(group.units)
    return {(s.tensor.removeprefix(prefix), s.axis) for s in graph.slices if units & set(s.units)}


def signature(graph, prefix=""):
    """The groups of a graph, in a form that can be compared."""
    return {
        (g.name.removeprefix(prefix), g.size, frozenset(members_of(graph, g, prefix)))
        for g in graph.groups
    }
