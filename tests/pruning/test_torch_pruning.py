"""Our groups and slices against torch-pruning's, on networks that it handles correctly."""

import copy

import numpy as np
import pytest
import torch
from hard_cases import build_case, randomise
from torch import nn
from zoo import ZOO, build

from graphs.tracing import trace_network
from networks.mobilenet import mobilenet_v2
from networks.resnet import cifar_resnet
from networks.vgg import vgg16_bn
from pruning.keep_set import KeepSet
from pruning.slimming import Slimmer

torch_pruning = pytest.importorskip("torch_pruning")

PUBLISHED = {
    "resnet20-B": lambda: cifar_resnet(20, shortcut="B", width=8),
    "mobilenetv2": lambda: mobilenet_v2(width=0.25),
    "vgg16": lambda: vgg16_bn(width=0.125),
}
# concatenation, transposed convolution, gates, flattened positions, depthwise, shared layers
SMALL = ("DenseConcat", "TinyUNet", "SqueezeExcite", "FlattenSpatial", "Residual", "SharedConv")
HARD = ("densenet", "mobilenetv3", "bottleneck", "preactivation", "inception", "conv1d")
NETWORKS = (*PUBLISHED, *SMALL, *HARD)


def make(name):
    if name in HARD:
        network, inputs = build_case(name)
        return network.float(), tuple(x.float() for x in inputs)
    if name in ZOO:
        return build(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PUBLISHED[name]()
        randomise(network)
        return network.eval(), (torch.randn(2, 3, 32, 32),)


def dependencies(network, inputs):
    graph = torch_pruning.DependencyGraph()
    return graph.build_dependency(copy.deepcopy(network), example_inputs=inputs, verbose=False)


def pruning_group(theirs, ours, unit_positions, group):
    """Their group of the channels of our group, by position in its first producer's output."""
    module = theirs.model.get_submodule(ours.operator_by_name[group.producers[0]].module)
    prune = theirs.get_pruner_of_module(module).prune_out_channels
    return theirs.get_pruning_group(module, prune, unit_positions)


def positions(ours, group, units):
    """Where the units come out of the group's first producer."""
    out = ours.operator_by_name[group.producers[0]].out_units
    return [index for index, unit in enumerate(out) if unit in set(units)]


def their_entries(theirs, group):
    """{(tensor, axis, index)} that their group would remove."""
    names = {module: name for name, module in theirs.model.named_modules()}
    entries = set()
    for dependency, indices in group:
        module = dependency.target.module
        if module not in names or not list(module.parameters(recurse=False)):
            continue  # concatenations and element-wise operations
        is_out = theirs.is_out_channel_pruning_fn(dependency.handler)
        vectors = ["bias", "running_mean", "running_var"]
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            vectors, axis = ["weight", *vectors], None
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            axis = 1 if is_out else 0
        else:
            depthwise = getattr(module, "groups", 1) > 1
            axis = 0 if is_out or depthwise else 1
        found = set() if axis is None else {("weight", axis)}
        if is_out or axis is None:
            found |= {(v, 0) for v in vectors if getattr(module, v, None) is not None}
        entries |= {
            (f"{names[module]}.{tensor}", axis, int(i)) for tensor, axis in found for i in indices
        }
    return entries


@pytest.mark.parametrize("name", NETWORKS)
def test_a_channel_takes_the_same_entries_with_it(name):
    network, inputs = make(name)
    ours, theirs = trace_network(network, inputs), dependencies(network, inputs)
    assert ours.groups
    rng = np.random.default_rng(0)
    for group in ours.groups:
        for unit in {group.units[0], group.units[-1], int(rng.choice(group.units))}:
            expected = {
                (s.tensor, s.axis, index)
                for s in ours.slices
                for index, owner in enumerate(s.units)
                if owner == unit
            }
            coupled = pruning_group(theirs, ours, positions(ours, group, [unit]), group)
            assert their_entries(theirs, coupled) == expected, (group.name, unit)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_number_of_groups_is_the_same(name):
    network, inputs = make(name)
    ours, theirs = trace_network(network, inputs), dependencies(network, inputs)
    # the last layers' outputs are the network's: they are groups there and frozen here
    last = [
        theirs.model.get_submodule(operator.module)
        for operator in ours.operators
        if not any(unit >= 0 for unit in operator.out_units)
    ]
    assert len(list(theirs.get_all_groups(ignored_layers=last))) == len(ours.groups)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_channels_removed_give_the_same_outputs(name):
    network, inputs = make(name)
    ours = trace_network(network, inputs)
    slimmer = Slimmer(network, ours)
    for seed in range(2):
        keep = KeepSet.random(ours, np.random.default_rng(seed))
        theirs = dependencies(network, inputs)
        for group in ours.groups:
            removed = [unit for unit in group.units if not keep.mask[unit]]
            if removed:
                pruning_group(theirs, ours, positions(ours, group, removed), group).prune()
        with torch.no_grad(), slimmer.applied(keep) as slim:
            found, expected = slim(*inputs), theirs.model.eval()(*inputs)
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)
        kept = dict(slimmer.materialize(keep).named_parameters())
        for path, parameter in theirs.model.named_parameters():
            assert torch.equal(kept[path], parameter), path
