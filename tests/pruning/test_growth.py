"""A reward split of which the first evaluations see a part."""

import pytest
import torch
from torch import nn

from graphs.tracing import trace_network
from networks.data import SampleSet
from pruning.evaluation import Evaluator
from pruning.growth import Growth
from pruning.keep_set import KeepSet
from pruning.plan import Candidate
from pruning.slimming import Slimmer


def test_the_share_grows_linearly_up_to_the_whole():
    growth = Growth(first=0.2, whole_at=5)
    assert [growth.images(number, 100) for number in range(1, 8)] == [20, 40, 60, 80, 100, 100, 100]
    assert Growth(first=0.01, whole_at=3).images(1, 10) == 1
    assert Growth(first=0.3, whole_at=1).images(1, 10) == 10


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"first": 0.0}, r"growth\.first must be in \(0, 1\], got 0"),
        ({"first": 1.1}, r"growth\.first must be in \(0, 1\], got 1\.1"),
        ({"whole_at": 0}, r"growth\.whole_at must be 1 or more, got 0"),
        ({"finalists": 0}, r"growth\.finalists must be 1 or more, got 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        Growth(**setting)


@pytest.fixture
def make_evaluator():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    inputs, targets = torch.randn(20, 4), torch.randint(3, (20,))
    graph = trace_network(network, inputs[:1])

    def make(images=20, **options):
        samples = SampleSet(inputs[:images], targets[:images])
        evaluator = Evaluator(Slimmer(network, graph), samples, samples, batch_size=8, **options)
        return evaluator, [Candidate(KeepSet.from_counts(graph, [n])) for n in (1, 2, 3, 4, 5, 6)]

    return make


def test_an_evaluation_uses_the_first_images_of_the_split(make_evaluator):
    evaluator, candidates = make_evaluator(growth=Growth(first=0.25, whole_at=4))
    for number, candidate in enumerate(candidates[:5]):
        expected = (5, 10, 15, 20, 20)[number]
        assert evaluator.num_images == expected
        found = evaluator.evaluate(candidate)
        assert found.num_samples == expected
        small, same = make_evaluator(images=expected)
        wanted = small.evaluate(same[number])
        assert found.accuracy == wanted.accuracy
        assert found.loss == pytest.approx(wanted.loss, rel=1e-6)


def test_a_known_plan_is_measured_again_only_when_more_images_are_used_now(make_evaluator):
    evaluator, (first, second, *_) = make_evaluator(growth=Growth(first=0.5, whole_at=3))
    assert evaluator.evaluate(first).num_samples == 10
    again = evaluator.evaluate(first)  # the second evaluation would see 15
    assert (again.num_samples, again.cached, evaluator.num_evaluations) == (15, False, 2)
    assert evaluator.evaluate(second).num_samples == 20
    assert evaluator.evaluate(second).cached
    assert (evaluator.num_evaluations, evaluator.num_cache_hits) == (3, 1)
    assert not evaluator.has(first)
    evaluator.growth = None
    assert evaluator.evaluate(first).num_samples == 20
    assert evaluator.has(first)


def test_what_was_measured_ahead_on_too_few_images_is_not_taken(make_evaluator):
    evaluator, (first, second, *_) = make_evaluator(growth=Growth(first=0.5, whole_at=3))
    assert [evaluator.images_ahead(ahead) for ahead in range(3)] == [10, 15, 20]
    evaluator.prepare({first: evaluator.outcome(first), second: evaluator.outcome(second)})
    assert evaluator.outcome(second).num_samples == 10
    assert [evaluator.evaluate(each).num_samples for each in (first, second)] == [10, 15]
