import copy

import pytest
import torch
from torch import nn

from graphs.tracing import trace_network
from networks.data import SampleSet
from pruning.fine_tuning import fine_tune
from pruning.keep_set import KeepSet
from pruning.masks import slim_masks
from pruning.slimming import Slimmer

RECIPE = {
    "epochs": 3,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "batch_size": 16,
    "nesterov": True,
    "label_smoothing": 0.0,
    "seed": 0,
}


@pytest.fixture
def samples():
    """Two classes that one linear boundary tells apart."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 6, generator=generator)
    return SampleSet(inputs, (inputs[:, 0] > inputs[:, 1]).long())


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def accuracy(network, samples):
    return (network(samples.inputs).argmax(1) == samples.targets).double().mean().item()


def test_it_learns_and_leaves_the_network_in_eval_mode(network, samples):
    before = accuracy(network, samples)
    fine_tune(network, samples, **{**RECIPE, "epochs": 20, "weight_decay": 0.0})
    assert before < 0.8 < 0.95 < accuracy(network, samples)
    assert not any(module.training for module in network.modules())


def test_the_first_step_is_sgd_with_the_given_recipe():
    network = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.zero_()
    samples = SampleSet(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    fine_tune(network, samples, **{**RECIPE, "epochs": 1, "momentum": 0.0, "nesterov": False})
    # softmax of equal scores is 1/2 each, so the gradient is (-0.5, 0.5) x (1, 2); one step at 0.1
    expected = torch.tensor([[0.05, 0.10], [-0.05, -0.10]])
    torch.testing.assert_close(network.weight.detach(), expected)


def test_same_seed_gives_the_same_weights_and_another_seed_does_not(network, samples):
    twin, other = copy.deepcopy(network), copy.deepcopy(network)
    fine_tune(network, samples, **RECIPE)
    fine_tune(twin, samples, **RECIPE)
    fine_tune(other, samples, **{**RECIPE, "seed": 1})
    assert torch.equal(network[0].weight, twin[0].weight)
    assert not torch.equal(network[0].weight, other[0].weight)


def test_masked_weights_are_exactly_zero_after_every_step_and_the_rest_learns(network, samples):
    masks = {"0.weight": torch.rand(8, 6, generator=torch.Generator().manual_seed(1)) < 0.5}
    before = network[0].weight.detach().clone()
    seen = []

    def progress(step, total, loss):
        seen.append(bool((network[0].weight[~masks["0.weight"]] == 0).all()))

    fine_tune(network, samples, **RECIPE, masks=masks, progress=progress)
    assert seen == [True] * 12  # 3 epochs of 64 / 16 steps
    kept = network[0].weight[masks["0.weight"]]
    assert (kept != 0).all()
    assert not torch.equal(kept, before[masks["0.weight"]])


def test_a_killed_fine_tuning_that_goes_on_equals_one_in_one_go(
    network, samples, tmp_path, monkeypatch
):
    monkeypatch.setattr("networks.epoch_checkpoint.MOST_SHARE", 1e9)  # after every epoch
    masks = {"0.weight": torch.rand(8, 6, generator=torch.Generator().manual_seed(1)) < 0.5}
    whole, parts = copy.deepcopy(network), copy.deepcopy(network)
    fine_tune(whole, samples, **RECIPE, masks=masks)
    path = tmp_path / "state.safetensors"
    seen = []

    def progress(step, total, loss):
        seen.append(step)
        if len(seen) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(parts, samples, **RECIPE, masks=masks, progress=progress, checkpoint=path)
    fine_tune(network, samples, **RECIPE, masks=masks, progress=progress, checkpoint=path)
    assert seen == [*range(1, 11), *range(9, 13)]  # 2 of 3 epochs of 4 steps were whole
    assert not network[0].weight[~masks["0.weight"]].any()
    assert all(
        torch.equal(value, network.state_dict()[name]) for name, value in whole.state_dict().items()
    )


def test_zero_epochs_change_nothing_but_masked_weights(network, samples):
    before = copy.deepcopy(network.state_dict())
    fine_tune(network, samples, **{**RECIPE, "epochs": 0})
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[0, 3] = False
    fine_tune(network, samples, **{**RECIPE, "epochs": 0}, masks={"2.weight": mask})
    assert network[2].weight[0, 3] == 0.0
    assert torch.equal(network[2].weight[mask], before["2.weight"][mask])


def test_a_slim_network_learns_apart_from_the_network_it_was_cut_from(network, samples):
    graph = trace_network(network, samples.inputs[:1])
    keep = KeepSet.from_ratios(graph, {graph.groups[0].name: 0.5})
    full_mask = torch.ones(8, 6, dtype=torch.bool)
    full_mask[:, ::2] = False
    slim = Slimmer(network, graph).materialize(keep)
    before = copy.deepcopy(network.state_dict())
    masks = slim_masks(graph, keep, {"0.weight": full_mask})
    fine_tune(slim, samples, **RECIPE, masks=masks)
    assert slim[0].weight.shape == (4, 6)
    assert (slim[0].weight[:, ::2] == 0).all()
    assert (slim[0].weight[:, 1::2] != 0).all()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"9.weight": torch.ones(8, 6, dtype=torch.bool)}, "no such parameter"),
        ({"0.weight": torch.ones(4, 6, dtype=torch.bool)}, r"'0.weight' has the shape \(4, 6\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(network, samples, masks, message):
    with pytest.raises(ValueError, match=message):
        fine_tune(network, samples, **RECIPE, masks=masks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0.*fine_tune"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"momentum": 0.0}, "nesterov=true needs a positive momentum"),
        ({"learning_rate": 1e12, "epochs": 5}, "diverged.*Lower learning_rate"),
    ],
)
def test_impossible_recipes_are_refused(network, samples, change, message):
    with pytest.raises(ValueError, match=message):
        fine_tune(network, samples, **{**RECIPE, **change})
