import copy
import dataclasses
import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from graphs.network_graph import Fold
from graphs.tracing import trace_network
from networks.data import SampleSet
from pruning.evaluation import (
    Evaluation,
    Evaluator,
    NonFiniteAccuracy,
    cross_entropy,
    top1_accuracy,
)
from pruning.keep_set import KeepSet
from pruning.outputs import outputs_and_targets
from pruning.plan import Candidate
from pruning.recalibration import recalibrate_batch_norm
from pruning.slimming import Slimmer


class FakeSlimmer:
    """Hands out the network itself and notes how it was asked."""

    def __init__(self, network, folds=()):
        self.network = network
        self.graph = SimpleNamespace(folds=tuple(folds))
        self.calls = []

    @contextmanager
    def applied(self, keep, *, copy=False, overlay=None):
        self.calls.append((keep, copy, overlay))
        yield deep_copy(self.network) if copy else self.network


deep_copy = copy.deepcopy


@dataclasses.dataclass(frozen=True)
class FakeKeep:
    counts: tuple[int, ...]


def candidate(*counts, masks=()):
    return Candidate(FakeKeep(counts), masks)


def logits_set():
    """Four samples whose inputs are their scores: 3 of 4 are right."""
    scores = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]])
    return SampleSet(scores, torch.tensor([0, 1, 1, 1]))


EXPECTED_LOSS = (
    math.log1p(math.exp(-2))
    + math.log1p(math.exp(-1))
    + math.log1p(math.exp(3))
    + math.log1p(math.exp(-0.5))
) / 4


# ---- numbers


def test_accuracy_and_cross_entropy_equal_hand_computed_values():
    samples = logits_set()
    assert top1_accuracy(samples.inputs, samples.targets) == 0.75
    assert cross_entropy(samples.inputs, samples.targets) == pytest.approx(EXPECTED_LOSS)


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.0, 1.0), (math.log(2), 0.5), (-5.0, 1.0), (1e4, 0.0)]
)
def test_likelihood_is_a_number_between_zero_and_one(loss, expected):
    assert Evaluation(0.5, loss, 10).likelihood == pytest.approx(expected)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_an_evaluation_does_not_depend_on_the_batch_size(batch_size):
    samples = logits_set()
    evaluator = Evaluator(
        FakeSlimmer(nn.Identity()), samples, samples, recalibrate=False, batch_size=batch_size
    )
    evaluation = evaluator.evaluate(candidate(1))
    assert evaluation == Evaluation(0.75, pytest.approx(EXPECTED_LOSS), 4)
    assert evaluator.measure(nn.Identity(), samples) == evaluation


def test_a_user_metric_sees_the_whole_split_in_order_and_once():
    samples = logits_set()
    seen = []

    def metric(outputs, targets):
        seen.append((outputs.clone(), targets.clone()))
        return 42

    evaluator = Evaluator(
        FakeSlimmer(nn.Identity()), samples, samples,
        recalibrate=False, batch_size=3, metric=metric, loss=lambda outputs, targets: 0.25,
    )  # fmt: skip
    evaluation = evaluator.evaluate(candidate(1))
    assert (evaluation.accuracy, evaluation.loss) == (42.0, 0.25)
    assert len(seen) == 1
    assert torch.equal(seen[0][0], samples.inputs)
    assert torch.equal(seen[0][1], samples.targets)


# ---- counting and caching


def test_equal_candidates_are_measured_once_and_counted_once():
    slimmer = FakeSlimmer(nn.Identity())
    evaluator = Evaluator(slimmer, logits_set(), logits_set())
    first = evaluator.evaluate(candidate(3, 4))
    again = evaluator.evaluate(candidate(3, 4))
    other = evaluator.evaluate(candidate(3, 4, masks=(("conv", "2:4"),)))
    assert (first.cached, again.cached, other.cached) == (False, True, False)
    assert dataclasses.replace(again, cached=False) == first
    assert (evaluator.num_evaluations, evaluator.num_cache_hits) == (2, 1)
    assert len(slimmer.calls) == 2


def test_a_plain_measurement_is_not_counted():
    evaluator = Evaluator(FakeSlimmer(nn.Identity()), logits_set(), logits_set())
    evaluator.measure(nn.Identity(), logits_set())
    evaluator.measure(nn.Identity(), logits_set())
    assert (evaluator.num_evaluations, evaluator.num_cache_hits) == (0, 0)


def test_own_storage_is_asked_for_exactly_when_statistics_are_written():
    overlay = {"weight": torch.zeros(1)}
    for recalibrate in (True, False):
        slimmer = FakeSlimmer(nn.Identity())
        evaluator = Evaluator(slimmer, logits_set(), logits_set(), recalibrate=recalibrate)
        evaluator.evaluate(candidate(1), overlay)
        assert slimmer.calls == [(FakeKeep((1,)), recalibrate, overlay)]


# ---- refusals


def test_a_nan_accuracy_names_the_candidate_and_is_counted_once():
    evaluator = Evaluator(
        FakeSlimmer(nn.Identity()),
        logits_set(),
        logits_set(),
        metric=lambda outputs, targets: math.nan,
    )
    message = r"accuracy of the candidate that keeps \[3, 4\] .*conv: 2:4 is nan"
    for _ in range(2):
        with pytest.raises(NonFiniteAccuracy, match=message):
            evaluator.evaluate(candidate(3, 4, masks=(("conv", "2:4"),)))
    assert (evaluator.num_evaluations, evaluator.num_cache_hits) == (1, 1)


def test_a_nan_loss_beside_a_fine_accuracy_is_reported():
    # argmax of a row with NaN is the NaN, here at the right class
    samples = SampleSet(torch.tensor([[math.nan, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    evaluator = Evaluator(FakeSlimmer(nn.Identity()), samples, samples)
    with pytest.raises(NonFiniteAccuracy, match=r"loss .* is nan \(accuracy 1.0.*1 of 2 outputs"):
        evaluator.evaluate(candidate(1))
    with pytest.raises(NonFiniteAccuracy, match="loss of the Identity is nan"):
        evaluator.measure(nn.Identity(), samples)


def test_one_dimensional_outputs_are_checked_as_well():
    samples = SampleSet(torch.tensor([math.inf, 1.0]), torch.zeros(2))
    evaluator = Evaluator(
        FakeSlimmer(nn.Identity()), samples, samples,
        metric=lambda outputs, targets: outputs.mean(), loss=lambda outputs, targets: 0.0,
    )  # fmt: skip
    with pytest.raises(NonFiniteAccuracy, match=r"is inf .*1 of 2 outputs"):
        evaluator.evaluate(candidate(1))


def test_a_network_that_returns_a_tuple_is_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    evaluator = Evaluator(FakeSlimmer(Two()), logits_set(), logits_set())
    with pytest.raises(ValueError, match="one tensor it returns, got tuple"):
        evaluator.evaluate(candidate(1))
    assert evaluator.num_evaluations == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2}, "evaluation.batch_size must be at least 3 with recalibration, got 2"),
        ({"batch_size": 0, "recalibrate": False}, "must be at least 1, got 0"),
    ],
)
def test_batches_that_are_too_small_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Evaluator(FakeSlimmer(nn.Identity()), logits_set(), logits_set(), **options)


@pytest.mark.parametrize("split", ["reward", "calibration"])
def test_an_empty_split_is_refused_by_name(split):
    splits = {"reward": logits_set(), "calibration": logits_set()}
    splits[split] = logits_set().subset([])
    with pytest.raises(ValueError, match=f"The {split} split is empty. Raise data.{split}_size"):
        Evaluator(FakeSlimmer(nn.Identity()), **splits)
    evaluator = Evaluator(FakeSlimmer(nn.Identity()), logits_set(), logits_set())
    with pytest.raises(ValueError, match="empty sample set"):
        evaluator.measure(nn.Identity(), logits_set().subset([]))


# ---- with the real slimmer


def snapshot(network):
    return {
        name: (tensor, tensor.clone(), tensor._version)
        for name, tensor in network.state_dict(keep_vars=True).items()
    }


def half(graph):
    return KeepSet.from_ratios(graph, {group.name: 0.5 for group in graph.groups})


@pytest.mark.parametrize("recalibrate", [False, True])
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_switch_gives_the_plain_answer_and_leaves_base_weights_alone(
    network, images, recalibrate, fold, channels_last
):
    graph = trace_network(network, images.inputs[:1])
    assert set(graph.folds) == {Fold("conv1", "norm1"), Fold("conv2", "norm2")}
    slimmer = Slimmer(network, graph)
    keep = half(graph)
    calibration = images.subset(range(20))
    plain = slimmer.materialize(keep).eval()
    if recalibrate:
        recalibrate_batch_norm(plain, calibration, batch_size=16)
    with torch.no_grad():
        outputs = plain(images.inputs)
    evaluator = Evaluator(
        slimmer, calibration, images,
        recalibrate=recalibrate, fold=fold, channels_last=channels_last, batch_size=16,
    )  # fmt: skip
    network.train()
    before = snapshot(network)
    evaluation = evaluator.evaluate(Candidate(keep))
    assert evaluation.accuracy == top1_accuracy(outputs, images.targets)
    assert evaluation.loss == pytest.approx(cross_entropy(outputs, images.targets), abs=1e-5)
    after = network.state_dict(keep_vars=True)
    for name, (tensor, values, version) in before.items():
        assert after[name] is tensor, name
        assert torch.equal(tensor, values), name
        assert tensor._version == version, name
    assert all(module.training for module in network.modules())


def test_the_unpruned_candidate_without_recalibration_is_the_network_itself(network, images):
    graph = trace_network(network, images.inputs[:1])
    evaluator = Evaluator(Slimmer(network, graph), images, images, recalibrate=False)
    evaluation = evaluator.evaluate(Candidate(KeepSet.full(graph)))
    plain = evaluator.measure(network, images)
    assert evaluation.accuracy == plain.accuracy
    assert evaluation.loss == pytest.approx(plain.loss, abs=1e-6)


def test_an_overlay_is_measured_in_place_of_the_base_weights(network, images):
    graph = trace_network(network, images.inputs[:1])
    evaluator = Evaluator(Slimmer(network, graph), images, images, recalibrate=False)
    overlay = {"fc.weight": torch.zeros(4, 12), "fc.bias": torch.tensor([0.0, 0.0, 9.0, 0.0])}
    evaluation = evaluator.evaluate(Candidate(KeepSet.full(graph)), overlay)
    assert evaluation.accuracy == pytest.approx((images.targets == 2).double().mean().item())


def test_equal_keep_sets_built_apart_hit_the_cache(network, images):
    graph = trace_network(network, images.inputs[:1])
    evaluator = Evaluator(Slimmer(network, graph), images, images)
    evaluator.evaluate(Candidate(half(graph)))
    assert evaluator.evaluate(Candidate(half(graph))).cached
    assert evaluator.num_evaluations == 1


def test_a_failing_measurement_leaves_the_network_whole(network, images):
    graph = trace_network(network, images.inputs[:1])
    network.train()
    before = snapshot(network)

    def metric(outputs, targets):
        raise RuntimeError("user's metric")

    evaluator = Evaluator(Slimmer(network, graph), images, images, metric=metric)
    with pytest.raises(RuntimeError, match="user's metric"):
        evaluator.evaluate(Candidate(half(graph)))
    network.fc.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("hook")))
    with pytest.raises(RuntimeError, match="hook"):
        evaluator.evaluate(Candidate(KeepSet.full(graph)))
    after = network.state_dict(keep_vars=True)
    assert all(after[name] is tensor for name, (tensor, _, _) in before.items())
    assert isinstance(network.norm1, nn.BatchNorm2d)
    assert all(module.training for module in network.modules())


def test_images_are_normalised_once_and_kept_channels_last(images):
    raw = SampleSet(
        torch.full((4, 3, 2, 2), 51, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64),
        mean=(0.1, 0.2, 0.0), std=(0.1, 1.0, 0.2),
    )  # fmt: skip
    seen = []

    class Watcher(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.mean((2, 3))

    evaluator = Evaluator(FakeSlimmer(Watcher()), raw, raw, recalibrate=False, batch_size=2)
    seen.clear()  # the layout was tried on two images
    evaluator.evaluate(candidate(1))
    evaluator.evaluate(candidate(2))
    assert len(seen) == 4
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    # 51 / 255 = 0.2
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([1.0, 0.0, 1.0]))
    assert seen[0].data_ptr() == seen[2].data_ptr()


def test_a_network_that_views_across_channels_is_measured_in_the_default_layout():
    from zoo import build

    network, inputs = build("FlattenSpatial")
    images = SampleSet(torch.randn(12, 3, 8, 8), torch.randint(0, 5, (12,)))
    slimmer = Slimmer(network, trace_network(network, inputs))
    evaluator = Evaluator(slimmer, images, images)
    assert not evaluator.channels_last
    keep = KeepSet.from_ratios(slimmer.graph, {"a.0": 0.5})
    assert evaluator.evaluate(Candidate(keep)).num_samples == 12


def test_a_test_runs_channels_last_where_the_network_takes_it(network, images):
    layouts = []
    network.train()
    network.norm1.register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    outputs, targets = outputs_and_targets(network, images, 16, channels_last=True)
    plain, _ = outputs_and_targets(network, images, 16, channels_last=False)
    assert layouts[0]
    assert not layouts[-1]
    torch.testing.assert_close(outputs, plain)
    assert torch.equal(targets, images.targets)
    assert all(module.training for module in network.modules())


def test_a_network_that_views_across_channels_is_tested_in_the_default_layout():
    from zoo import build

    network, _ = build("FlattenSpatial")
    images = SampleSet(torch.randn(12, 3, 8, 8), torch.randint(0, 5, (12,)))
    outputs, _ = outputs_and_targets(network, images, 5, channels_last=True)
    plain, _ = outputs_and_targets(network, images, 5, channels_last=False)
    assert torch.equal(outputs, plain)
