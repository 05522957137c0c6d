"""Networks whose code holds channel numbers: what their slim copies can be used for."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hard_cases import build_case
from torch import nn

from graphs.tracing import trace_network
from pruning.artefact import load_pruned, save_pruned
from pruning.export import export_onnx, export_program
from pruning.keep_set import KeepSet
from pruning.plan import PruningPlan
from pruning.replaying import is_replayed
from pruning.slimming import Slimmer


def slim_of(name, dtype=torch.float64):
    network, inputs = build_case(name)
    network = network.to(dtype)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    graph = trace_network(network, inputs)
    keep = KeepSet.random(graph, np.random.default_rng(3))
    slimmer = Slimmer(network, graph)
    return network, graph, keep, slimmer.materialize(keep), inputs


def test_networks_without_channel_numbers_run_their_own_code():
    for name in ("bottleneck", "mobilenetv3", "convnext", "mixer"):
        _, graph, _, slim, _ = slim_of(name)
        assert not graph.needs_replay
        assert not is_replayed(slim)


@pytest.mark.parametrize("name", ["vit_fused", "mha_self"])
def test_a_replayed_network_can_be_copied_pickled_and_loaded(name):
    network, graph, keep, slim, inputs = slim_of(name)
    assert is_replayed(slim)
    assert isinstance(slim, type(network))
    assert slim.state_dict().keys() == network.state_dict().keys()
    with torch.no_grad():
        expected = slim(*inputs)
        for again in (copy.deepcopy(slim), pickle.loads(pickle.dumps(slim))):
            assert torch.equal(again(*inputs), expected)
        other = Slimmer(build_case(name)[0], graph).materialize(keep)
        for parameter in other.parameters():
            parameter.zero_()
        other.load_state_dict(slim.state_dict())
        assert torch.equal(other(*inputs), expected)


def test_a_replayed_network_is_saved_and_rebuilt(tmp_path):
    network, graph, keep, slim, inputs = slim_of("vit_fused")
    kept = {group.name: tuple(keep.kept(group.name).tolist()) for group in graph.groups}
    plan = PruningPlan(graph=graph.fingerprint, decisions=(), keep=kept)
    path = tmp_path / "pruned.safetensors"
    save_pruned(path, slim, target="my.vit", kwargs={}, graph=graph, plan=plan)
    again = load_pruned(path, network=network)
    with torch.no_grad():
        assert torch.equal(again(*inputs), slim(*inputs))


@pytest.mark.parametrize("name", ["vit_fused", "swin", "mha_self", "view_numbers"])
def test_a_replayed_network_is_exported(name, tmp_path):
    pytest.importorskip("onnxruntime")
    slim, inputs = slim_of(name, torch.float32)[3:]
    assert is_replayed(slim)
    assert export_program(slim, inputs, tmp_path / "slim.pt2").difference <= 1e-5
    assert export_onnx(slim, inputs, tmp_path / "slim.onnx").difference <= 1e-5


class Branching(nn.Module):
    """Views its channels in another way once it is told to."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.flat = nn.Conv2d(3, 6, 3), nn.Linear(6 * 4, 2), False

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x.expand(-1, 6, -1, -1).flatten(1) if self.flat else x.view(-1, 24))


def test_another_path_through_the_code_is_refused():
    network, x = Branching().eval(), torch.randn(2, 3, 4, 4)
    slimmer = Slimmer(network, trace_network(network, x))
    with slimmer.applied(KeepSet.from_counts(slimmer.graph, {"conv": 3})) as slim:
        slim(x)
        slim.flat = True
        with pytest.raises(RuntimeError, match="called expand where view was traced"):
            slim(x)


def test_a_view_on_inputs_of_another_size_is_refused_where_it_would_be_a_guess():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 6, 1), nn.Linear(6, 2)

        def forward(self, x):
            x = self.conv(x).permute(2, 3, 0, 1)  # (H, W, B, C)
            return self.fc(x.reshape(-1, 2 * x.shape[0], 6).mean(0))

    network = Windows().eval()
    slimmer = Slimmer(network, trace_network(network, torch.randn(1, 3, 4, 4)))
    keep = KeepSet.from_counts(slimmer.graph, {"conv": 3})
    with slimmer.applied(keep) as slim, pytest.raises(RuntimeError, match="inputs of another size"):
        slim(torch.randn(1, 3, 6, 6))
