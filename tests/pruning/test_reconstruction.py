"""Least-squares reconstruction against explicit regressions, and its place in the task."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import ZOO, build

from graphs.tracing import trace_network
from networks.data import SampleSet, SearchSplits
from patterns.library import PatternLibrary
from pruning.keep_set import KeepSet
from pruning.plan import Candidate, Decision
from pruning.reconstruction import LeastSquares, Reconstructor
from pruning.slimming import Slimmer
from pruning.task import PruningTask

MODES = ("dense", "sequential")
EXACT = {"positions_per_image": 200, "ridge": 1e-12}  # more than there are: all of them


def samples_for(shape, number=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SampleSet(
        torch.randn(number, *shape, generator=generator),
        torch.randint(3, (number,), generator=generator),
    )


class Chain(nn.Module):
    """first (3 -> 6 channels), ReLU, reader."""

    def __init__(self, reader, flatten=False):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.reader, self.flatten = reader, flatten

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.reader(x.flatten(1) if self.flatten else x)


def bound(network, data, recalibrate=False, **options):
    graph = trace_network(network, data.inputs[:1])
    slimmer = Slimmer(network, graph)
    return slimmer, LeastSquares(**options).bind(slimmer, data, recalibrate=recalibrate)


def error_of(slimmer, keep, overlay, inputs):
    """|slim - dense| / |dense| of the network's outputs."""
    with torch.no_grad():
        expected = slimmer.network(inputs)
        with slimmer.applied(keep, overlay=overlay) as slim:
            return float((slim(inputs) - expected).norm() / expected.norm())


# ------------------------------------------------------------------------------ exact solutions


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bias", [False, True])
def test_channels_that_are_combinations_of_others_are_replaced_exactly(mode, bias):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, bias=bias), nn.Conv2d(5, 4, 1)
    )
    first = network[0]
    with torch.no_grad():
        for channel, (a, b) in {1: (0, 2), 4: (3, 5)}.items():
            first.weight[channel] = 0.7 * first.weight[a] - 1.3 * first.weight[b]
            first.bias[channel] = 0.7 * first.bias[a] - 1.3 * first.bias[b]
    data = samples_for((3, 7, 7))
    slimmer, reconstructor = bound(network, data, mode=mode, **EXACT)
    keep = KeepSet.from_indices(slimmer.graph, {"0": [0, 2, 3, 5]})
    overlay = reconstructor.overlay(keep)
    fresh = samples_for((3, 7, 7), seed=1).inputs
    assert error_of(slimmer, keep, {}, fresh) > 0.1
    assert error_of(slimmer, keep, overlay, fresh) < 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [n for n in ZOO if n != "TwoInputsDictOutput"])
def test_nothing_is_refitted_when_nothing_is_removed(mode, name):
    network, inputs = build(name)
    data = samples_for(inputs[0].shape[1:], 20)
    slimmer, reconstructor = bound(network, data, mode=mode)
    assert reconstructor.overlay(KeepSet.full(slimmer.graph)) == {}
    # nor is what lies before the first change: here only the last group loses channels
    group = slimmer.graph.groups[-1]
    keep = KeepSet.from_indices(slimmer.graph, {group.name: range(1, group.size)})
    before = {
        op.weight
        for op in slimmer.graph.operators
        if not {*op.in_units, *op.out_units} & set(group.units)
    }
    first = min(i for i, op in enumerate(slimmer.graph.operators) if op.name in group.producers)
    before &= {op.weight for op in slimmer.graph.operators[:first]}
    assert not before & set(reconstructor.overlay(keep))


READERS = {
    "stride 2": nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False),
    "bias": nn.Conv2d(6, 5, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(6, 5, (3, 1), padding="same", dilation=(2, 1), bias=False),
    "1x1": nn.Conv2d(6, 5, 1),
    "grouped": nn.Conv2d(6, 4, 3, padding=1, groups=2, bias=False),
    "transposed": nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, bias=False),
    "linear": nn.Linear(6 * 36, 4),
    "linear without bias": nn.Linear(6 * 36, 4, bias=False),
}


def im2col(x, conv):
    """(samples, channels, kernel) of a convolution's inputs, and how outputs become rows."""
    patches = F.unfold(x, conv.kernel_size, conv.dilation, low_padding(conv), conv.stride)
    return patches.reshape(len(x), x.shape[1], -1, patches.shape[-1]).permute(0, 3, 1, 2)


def low_padding(conv):
    return (2, 0) if conv.padding == "same" else conv.padding


def regression(patches, outputs, has_bias):
    """Weights (and bias) by numpy, from patches (samples, features)."""
    patches, outputs = patches.double().numpy(), outputs.double().numpy()
    if has_bias:
        patches = np.concatenate([patches, np.ones((len(patches), 1))], axis=1)
    solution = np.linalg.lstsq(patches, outputs, rcond=None)[0].T
    return (solution[:, :-1], solution[:, -1]) if has_bias else (solution, None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", READERS)
def test_the_refit_is_the_regression_on_explicit_patches(name, mode):
    torch.manual_seed(0)
    reader = copy.deepcopy(READERS[name])
    network = Chain(reader, flatten=name.startswith("linear")).eval()
    data = samples_for((3, 6, 6), 400)
    slimmer, reconstructor = bound(network, data, mode=mode, **EXACT)
    units = {"first": [0, 3, 4]} if name != "grouped" else {"first": [0, 2]}
    keep = KeepSet.from_indices(slimmer.graph, units)
    kept = np.flatnonzero(keep.mask[np.asarray(slimmer.graph.operators[1].in_units)])
    overlay = reconstructor.overlay(keep)
    has_bias = reader.bias is not None
    assert set(overlay) == {"reader.weight"} | ({"reader.bias"} if has_bias else set())
    with torch.no_grad():
        x = F.relu(network.first(data.inputs))
        y = network(data.inputs)
    found = overlay["reader.weight"]
    if name.startswith("linear"):
        expected, bias = regression(x.flatten(1)[:, kept], y, has_bias)
        np.testing.assert_allclose(found[:, kept].numpy(), expected, atol=2e-3)
    elif name == "transposed":
        # every output is linear in the kernel: one row per output, built by basis kernels
        columns = []
        for index in np.ndindex(len(kept), 3, 3):
            basis = torch.zeros(len(kept), 1, 3, 3)
            basis[index[0], 0, index[1], index[2]] = 1
            columns.append(F.conv_transpose2d(x[:, kept], basis, None, 2, 1).flatten())
        outputs = y.transpose(0, 1).flatten(1).T
        expected, bias = regression(torch.stack(columns, 1), outputs, False)
        expected = expected.reshape(4, len(kept), 3, 3).swapaxes(0, 1)
        np.testing.assert_allclose(found[kept].numpy(), expected, atol=2e-4)
    else:
        patches = im2col(x, reader)
        outputs = y.permute(0, 2, 3, 1).flatten(0, 2)
        blocks = []
        for block in range(reader.groups):
            half = [c for c in kept if c // (6 // reader.groups) == block]
            width = outputs.shape[1] // reader.groups
            rows = outputs[:, block * width : (block + 1) * width]
            weights, bias = regression(patches[:, :, half].flatten(0, 1).flatten(1), rows, has_bias)
            blocks.append(weights.reshape(width, len(half), *reader.kernel_size))
        inside = kept[: len(kept) // reader.groups]  # the same inputs of each block
        np.testing.assert_allclose(found[:, inside].numpy(), np.concatenate(blocks), atol=2e-4)
    if has_bias:
        np.testing.assert_allclose(overlay["reader.bias"].numpy(), bias, atol=5e-4)


def test_sequential_refits_a_depthwise_kernel_channel_by_channel():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 5, 1, bias=False),
        nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=False), nn.Conv2d(5, 2, 1, bias=False),
    )  # fmt: skip
    data = samples_for((3, 6, 6), 40)
    slimmer, reconstructor = bound(network, data, mode="sequential", **EXACT)
    keep = KeepSet.from_indices(slimmer.graph, {"0": [4], "1": [0, 2, 3]})
    overlay = reconstructor.overlay(keep)
    # the second convolution cannot make up for what is lost (rank 1), so its outputs differ
    with torch.no_grad():
        x = F.conv2d(network[0](data.inputs)[:, [4]], overlay["1.weight"][:, [4]])
        y = network[:3](data.inputs)
    for channel in (0, 2, 3):
        patches = F.unfold(x[:, [channel]], 3, padding=1).transpose(1, 2).flatten(0, 1)
        expected, _ = regression(patches, y[:, channel].flatten()[:, None], False)
        found = overlay["2.weight"][channel].flatten()
        np.testing.assert_allclose(found, expected[0], atol=1e-4)
        assert (found - network[2].weight[channel].flatten()).abs().max() > 1e-3
    assert torch.equal(overlay["2.weight"][1], network[2].weight[1])


# ------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [n for n in ZOO if n != "TwoInputsDictOutput"])
def test_base_weights_and_modes_stay_and_outputs_come_closer(name, mode):
    network, inputs = build(name)
    data = samples_for(inputs[0].shape[1:], 40)
    network.train()
    state = {key: (value, value.clone()) for key, value in network.state_dict().items()}
    pointers = {key: value.data_ptr() for key, (value, _) in state.items()}
    slimmer, reconstructor = bound(network, data, mode=mode, recalibrate=True)
    keep = KeepSet.random(slimmer.graph, np.random.default_rng(3))
    overlay = reconstructor.overlay(keep)
    found = network.state_dict()
    assert all(torch.equal(found[key], copied) for key, (_, copied) in state.items())
    assert pointers == {key: value.data_ptr() for key, value in found.items()}
    assert all(module.training for module in network.modules())
    assert all(overlay[key].shape == found[key].shape for key in overlay)
    assert not {key: 0 for key in overlay if overlay[key].data_ptr() == pointers[key]}
    repeated = reconstructor.overlay(keep)
    assert set(repeated) == set(overlay)
    for key, tensor in overlay.items():
        torch.testing.assert_close(repeated[key], tensor, rtol=1e-4, atol=1e-5)
    network.eval()
    plain = LeastSquares(mode="sequential").bind(slimmer, data, recalibrate=False).overlay(keep)
    assert plain
    before, after = (error_of(slimmer, keep, given, data.inputs) for given in ({}, plain))
    assert after < before


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 3, padding=1)
        self.c = nn.Linear(10, 5)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_sequential_is_at_least_as_close_as_dense_which_is_closer_than_nothing(seed):
    torch.manual_seed(seed)
    network, data = Deep().eval(), samples_for((3, 6, 6), 200, seed)
    errors = {}
    for mode in MODES:
        slimmer, reconstructor = bound(network, data, mode=mode)
        keep = KeepSet.from_ratios(slimmer.graph, {"a": 0.5, "b": 0.4})
        errors[mode] = error_of(slimmer, keep, reconstructor.overlay(keep), data.inputs)
    plain = error_of(slimmer, keep, {}, data.inputs)
    assert errors["sequential"] <= errors["dense"] < plain


@pytest.mark.parametrize("mode", MODES)
def test_batches_and_the_memory_cap_change_nothing_and_seeds_do(mode, monkeypatch):
    network, _ = build("Residual")
    data = samples_for((3, 8, 8), 90)
    slimmer, reconstructor = bound(network, data, mode=mode, seed=5)
    keep = KeepSet.from_ratios(slimmer.graph, {g.name: 0.5 for g in slimmer.graph.groups})
    expected = reconstructor.overlay(keep)
    assert expected
    monkeypatch.setattr("pruning.reconstruction.BATCH_SIZE", 7)
    settings = reconstructor.settings
    small = Reconstructor(slimmer, data, settings, cache_bytes=1)
    for _ in range(2):
        found = small.overlay(keep)
        assert small._moments == {}
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-5)
    other = LeastSquares(mode=mode, seed=6).bind(slimmer, data, recalibrate=False).overlay(keep)
    assert not torch.equal(other["b.0.weight"], expected["b.0.weight"])


def test_dense_features_are_gathered_once():
    network, _ = build("Residual")
    data = samples_for((3, 8, 8), 20)
    slimmer, reconstructor = bound(network, data)
    runs = []
    network.register_forward_hook(lambda *_: runs.append(1))
    for ratio in (0.3, 0.5, 0.7):
        reconstructor.overlay(
            KeepSet.from_ratios(slimmer.graph, {g.name: ratio for g in slimmer.graph.groups})
        )
    assert len(runs) == 1


def test_only_the_wanted_number_of_images_is_used():
    network, _ = build("Residual")
    data = samples_for((3, 8, 8), 20)
    slimmer, few = bound(network, data, samples=10)
    _, same = bound(network, data.subset(range(10)))
    keep = KeepSet.from_ratios(slimmer.graph, {g.name: 0.5 for g in slimmer.graph.groups})
    for key, tensor in few.overlay(keep).items():
        torch.testing.assert_close(same.overlay(keep)[key], tensor)


@pytest.mark.parametrize("mode", MODES)
def test_shared_weights_and_masked_weights_are_left_alone(mode):
    network, _ = build("SharedConv")
    data = samples_for((3, 8, 8), 30)
    slimmer, reconstructor = bound(network, data, mode=mode)
    keep = KeepSet.from_ratios(slimmer.graph, {g.name: 0.5 for g in slimmer.graph.groups})
    found = reconstructor.overlay(keep)
    assert "head.fc.weight" in found
    assert not {"shared.weight", "shared.bias"} & set(found)
    masked = {"head.fc.weight": torch.zeros_like(network.head.fc.weight)}
    assert reconstructor.overlay(keep, masked)["head.fc.weight"] is masked["head.fc.weight"]


def test_what_cannot_be_is_refused():
    for options, words in (
        ({"mode": "layerwise"}, "reconstruction.mode must be one of dense, sequential"),
        ({"samples": 0}, "reconstruction.samples must be 1 or more"),
        ({"positions_per_image": 0}, "positions_per_image must be 1 or more"),
        ({"ridge": 0.0}, "reconstruction.ridge must be a number above 0"),
        ({"ridge": float("nan")}, "reconstruction.ridge"),
    ):
        with pytest.raises(ValueError, match=words):
            LeastSquares(**options)
    network, inputs = build("TwoInputsDictOutput")
    slimmer = Slimmer(network, trace_network(network, inputs))
    with pytest.raises(ValueError, match=r"got 2 inputs.*reconstruction to none"):
        LeastSquares().bind(slimmer, samples_for((3, 8, 8), 3), recalibrate=False)


# ------------------------------------------------------------------------------------------ task


def task_for(network, **options):
    sets = [samples_for((3, 8, 8), 40, seed) for seed in range(3)]
    graph = trace_network(network, sets[0].inputs[:1])
    library = PatternLibrary.from_specs(
        [
            {"family": "dense"},
            {"family": "channel", "ratio": 0.5},
            {"family": "kernel_shape", "shape": "plus"},
        ]
    )
    return PruningTask(network, graph, SearchSplits(*sets), library=library, **options)


@pytest.mark.parametrize("mode", MODES)
def test_evaluations_with_and_without_an_overlay_measure_the_refitted_network(mode):
    network, _ = build("Residual")
    plain, task = task_for(network), task_for(network, reconstruction=LeastSquares(mode=mode))
    half = task.library.names[1]
    candidate = task.candidate([Decision("a.0", pattern=half), Decision("stem.0", pattern=half)])
    found = task.evaluator.evaluate(candidate)
    assert not found.cached
    assert task.evaluator.evaluate(candidate, task.overlay(candidate)).cached
    other = task_for(network, reconstruction=LeastSquares(mode=mode))
    assert other.evaluator.evaluate(candidate, other.overlay(candidate)).loss == pytest.approx(
        found.loss, rel=1e-5
    )
    assert plain.evaluator.evaluate(candidate, {}).loss != pytest.approx(found.loss, rel=1e-3)
    assert plain.overlay(candidate) == {}
    slim = task.slimmer.materialize(candidate.keep, overlay=task.overlay(candidate))
    kept = candidate.keep.kept("a.0")
    weight = task.overlay(candidate)["b.0.weight"][candidate.keep.kept("stem.0")][:, kept]
    torch.testing.assert_close(slim.b[0].weight.detach(), weight)


def test_the_unpruned_network_stays_itself_and_a_cached_candidate_costs_nothing():
    network, _ = build("Residual")
    task = task_for(network, reconstruction=LeastSquares(), recalibrate=False)
    full = Candidate(KeepSet.full(task.graph))
    assert task.overlay(full) == {}
    assert task.evaluator.evaluate(full).loss == pytest.approx(task.base.loss, rel=1e-5)
    asked = []
    task.evaluator._overlay_of = lambda candidate: asked.append(candidate) or {}
    assert task.evaluator.evaluate(full).cached
    assert asked == []


def test_masks_win_over_the_refit():
    network, _ = build("Residual")
    task = task_for(network, reconstruction=LeastSquares())
    channel, plus = task.library.names[1:]
    candidate = task.candidate([Decision("a.0", pattern=channel), Decision("stem.0", pattern=plus)])
    masked = set(task.mask_tensors(candidate))
    assert masked
    overlay = task.overlay(candidate)
    for name, mask in task.mask_tensors(candidate).items():
        assert (overlay[name][~mask] == 0).all()
        assert torch.equal(overlay[name][mask], network.state_dict()[name][mask])


@pytest.mark.parametrize("mode", MODES)
def test_the_last_layer_of_an_attention_module_makes_up_for_lost_heads(mode):
    network, inputs = build("EncoderLayer")
    data = samples_for(inputs[0].shape[1:])
    slimmer, reconstructor = bound(network, data, mode=mode, positions_per_image=4)
    keep = KeepSet.from_indices(slimmer.graph, {"layer.self_attn": [0, 2]})
    overlay = reconstructor.overlay(keep)
    assert "layer.self_attn.out_proj.weight" in overlay
    only = {name: overlay[name] for name in overlay if "out_proj" in name}
    before = error_of(slimmer, keep, {}, data.inputs)
    assert error_of(slimmer, keep, only, data.inputs) < 0.8 * before
