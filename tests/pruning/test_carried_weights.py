from __future__ import annotations

import torch
from classic_task import Chain

from graphs.tracing import trace_network
from pruning.carried_weights import CarriedWeights
from pruning.keep_set import KeepSet
from pruning.slimming import Slimmer


def test_trained_weights_are_sliced_for_the_next_network():
    torch.manual_seed(0)
    network = Chain().eval()
    graph = trace_network(network, torch.zeros(1, 1, 4, 4))
    base = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    carried = CarriedWeights(Slimmer(network, graph))
    wide = KeepSet.from_indices(graph, {graph.groups[1].name: [1, 2, 5]})
    slim = carried.network(wide)
    with torch.no_grad():
        for tensor in slim.state_dict().values():
            tensor.copy_(torch.randint(1, 99, tensor.shape))
    carried.take_over(wide, slim)
    again = carried.network(wide)
    for name, tensor in slim.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    narrow = carried.network(KeepSet.from_indices(graph, {graph.groups[1].name: [2, 5]}))
    assert torch.equal(narrow.b.weight, slim.b.weight[1:])
    assert torch.equal(narrow.b_norm.running_var, slim.b_norm.running_var[1:])
    assert torch.equal(narrow.c.weight, slim.c.weight[:, 1:])
    assert all(torch.equal(base[name], tensor) for name, tensor in network.state_dict().items())
