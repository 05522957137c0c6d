"""Single cases of slimming: attention, mixed channels, refusals, states of a network."""

import contextlib
import time

import pytest
import torch
from convolutional import resnet50
from hard_cases import build_case, outputs, signature, traced
from operations import MIXERS, REFUSED
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from graphs.network_graph import FROZEN
from graphs.tracing import UnsupportedOp, trace_network
from pruning.cost import CostModel
from pruning.keep_set import KeepSet
from pruning.slimming import Slimmer


def test_an_attention_unit_holds_all_that_belongs_to_the_head():
    positions = {
        # tensor axis -> positions of one unit
        "vit_fused": {"qkv.weight:0": 12, "proj.weight:1": 4},
        "gqa_repeat": {"q.weight:0": 8, "k.weight:0": 4, "v.bias:0": 4, "proj.weight:1": 8},
        "gqa_fused": {"q.weight:0": 8, "k.weight:0": 4, "v.bias:0": 4, "proj.weight:1": 8},
    }
    for name, expected in positions.items():
        graph = traced(name)[2]
        heads = [group for group in graph.groups if group.kind == "heads"]
        assert len(heads) == 2
        units = {f"{s.tensor}:{s.axis}": s.units for s in graph.slices}
        for unit in heads[0].units:
            for axis, count in expected.items():
                assert units[f"blocks.0.attention.{axis}"].count(unit) == count, (name, axis)


def test_heads_of_torchs_own_attention_are_groups_of_heads():
    for name in ("mha_self", "mha_cross_own_widths", "encoder_norm_first"):
        kinds = [group.kind for group in traced(name)[2].groups]
        assert "heads" in kinds, name


@pytest.mark.parametrize("name", MIXERS)
def test_channels_that_are_mixed_stay_with_the_reason(name):
    graph = traced(name)[2]
    assert set(graph.operator_by_name["stem.0"].out_units) == {FROZEN}
    assert MIXERS[name][1] in " ".join(graph.frozen.values())


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sliced_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(UnsupportedOp, match=message):
        trace_network(make().eval(), torch.randn(2, 3, 8, 8))


VARIATIONS = {
    "frozen": lambda network, x: (network.requires_grad_(False), x),
    "train": lambda network, x: (network.train(), x),
    "half": lambda network, x: (network.half(), x.half()),
    "bfloat16": lambda network, x: (network.bfloat16(), x.bfloat16()),
    "channels_last": lambda network, x: (
        network.to(memory_format=torch.channels_last),
        x.to(memory_format=torch.channels_last),
    ),
    "subclass": lambda network, x: (network, x.as_subclass(type("Image", (Tensor,), {}))),
    "one_sample": lambda network, x: (network, x[:1]),
    "data_parallel": lambda network, x: (nn.DataParallel(network), x),
}


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("name", ["bottleneck", "mobilenetv3", "vit_separate", "convnext"])
def test_groups_do_not_depend_on_the_state_of_the_network(name, variation):
    expected = signature(traced(name)[2])
    network, (x,) = build_case(name)
    network, x = VARIATIONS[variation](network, x)
    with torch.no_grad() if variation == "frozen" else contextlib.nullcontext():
        graph = trace_network(network, x)
    prefix = "module." if variation == "data_parallel" else ""
    assert signature(graph, prefix) == expected


def test_batch_norm_in_train_mode_never_writes_the_base_through_a_view():
    network, inputs = build_case("bottleneck")
    graph = trace_network(network, inputs)
    slimmer = Slimmer(network, graph)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with contextlib.suppress(RuntimeError), slimmer.applied(KeepSet.full(graph)) as slim:
        slim.train()
        outputs(slim, inputs)
    network.eval()
    changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == []


def test_torchs_counter_misses_fused_attention_unless_told():
    network, inputs, graph = traced("vit_fused")
    single = tuple(x[:1] for x in inputs)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*single)
    attention = sum(
        macs
        for operator, macs in CostModel(graph).macs_per_operator(KeepSet.full(graph)).items()
        if graph.operator_by_name[operator].kind == "attention"
    )
    assert attention == 2 * 2 * 5 * 5 * 12  # two blocks, two products, 5 x 5 tokens, 12 channels
    assert counter.get_total_flops() == 2 * (CostModel(graph).base_macs - attention)


@pytest.mark.slow
def test_resnet50_in_its_real_size():
    network = resnet50().eval()
    start = time.perf_counter()
    graph = trace_network(network, torch.randn(1, 3, 224, 224))
    print(f"\nResNet-50 at 224 x 224: traced in {time.perf_counter() - start:.2f} s")
    cost = CostModel(graph)
    assert (cost.base_params, cost.base_macs) == (25_557_032, 4_089_184_256)
    assert len(graph.groups) == 1 + 4 + 2 * 16  # stem, four streams, two widths in each block
