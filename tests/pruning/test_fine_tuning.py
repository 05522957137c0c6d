import copy
import math

import pytest
import torch
from torch import nn

from graphs.tracing import trace_network
from networks.data import SampleSet
from pruning.distillation import Distillation
from pruning.fine_tuning import (
    changed_recipe,
    check_fine_tuning,
    fine_tune,
    with_learning_rate,
)
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


def test_a_recipe_is_changed_where_it_is_said_and_distillation_is_a_switch():
    own = Distillation(temperature=2.0, weight=0.5)
    assert changed_recipe(RECIPE, {"epochs": 3}) == {**RECIPE, "epochs": 3}
    teaching = {**RECIPE, "distillation": own}
    assert changed_recipe(teaching, {"distillation": True})["distillation"] == own
    assert changed_recipe(RECIPE, {"distillation": True})["distillation"] == Distillation()
    assert changed_recipe(teaching, {"distillation": False})["distillation"] is None
    assert changed_recipe(teaching, {})["distillation"] == own


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


def test_distillation_is_the_loss_of_hinton_worked_out_by_hand():
    # softened by 2: teacher (2 ln 3, 0) -> (3/4, 1/4), student (0, 0) -> (1/2, 1/2)
    distillation = Distillation(temperature=2.0, weight=0.5)
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    distance = distillation.distance(torch.zeros(1, 2), teacher)
    assert distance.item() == pytest.approx(4 * divergence, rel=1e-6)


def test_the_first_step_of_a_distillation_goes_towards_teacher_and_label():
    network, teacher = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.zero_()
        teacher.weight.copy_(torch.tensor([[2 * math.log(3.0), 0.0], [0.0, 0.0]]))
    samples = SampleSet(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    recipe = {**RECIPE, "epochs": 1, "momentum": 0.0, "nesterov": False}
    distillation = Distillation(temperature=2.0, weight=0.25)
    fine_tune(network, samples, **recipe, distillation=distillation, teacher=teacher)
    # gradient of the scores: label 3/4 x (-1/2, 1/2), teacher 1/4 x 2^2 x 1/2 x (1/2 - 3/4, ...)
    by_score = 0.75 * -0.5 + 0.25 * 4 * 0.5 * (0.5 - 0.75)
    expected = -0.1 * torch.tensor([[by_score, 2 * by_score], [-by_score, -2 * by_score]])
    torch.testing.assert_close(network.weight.detach(), expected)


class Recorder(nn.Module):
    """Keeps what it was called with, and its mode; has dropout, which eval mode must switch off."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def forward(self, x):
        self.seen.append((x.clone(), self.training, torch.is_inference_mode_enabled()))
        return self.dropout(self.inner(x))


def test_the_teacher_sees_the_augmented_batches_in_eval_mode_and_stays_as_it_is(network, samples):
    student, teacher = Recorder(network), Recorder(copy.deepcopy(network)).train()
    before = copy.deepcopy(teacher.state_dict())

    def augment(inputs, generator):
        return inputs + torch.rand(inputs.shape, generator=generator)

    distillation = Distillation()
    fine_tune(
        student, samples, **RECIPE, augment=augment, distillation=distillation, teacher=teacher
    )
    assert len(teacher.seen) == 12
    for (ours, training, _), (theirs, teaching, inference) in zip(
        student.seen, teacher.seen, strict=True
    ):
        assert torch.equal(ours, theirs)
        assert (training, teaching, inference) == (True, False, True)
    assert not torch.equal(teacher.seen[0][0], teacher.seen[4][0])
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_masks_stay_exact_with_every_switch_on(network, samples, seed, precision):
    generator = torch.Generator().manual_seed(seed)
    masks = {
        "0.weight": torch.rand(8, 6, generator=generator) < 0.5,
        "2.weight": torch.rand(2, 8, generator=generator) < 0.7,
    }
    weights = {"0.weight": network[0].weight, "2.weight": network[2].weight}
    teacher = copy.deepcopy(network)
    seen = []

    def progress(step, total, loss):
        seen.append(
            max(float(weights[name].detach()[~mask].abs().max()) for name, mask in masks.items())
        )

    fine_tune(
        network, samples, **{**RECIPE, "label_smoothing": 0.1, "seed": seed}, masks=masks,
        progress=progress, distillation=Distillation(), teacher=teacher, l1_penalty=0.01,
        precision=precision,
    )  # fmt: skip
    assert seen == [0.0] * 12
    assert network[0].weight.dtype == torch.float32
    assert not any(torch.equal(weights[name], teacher.state_dict()[name]) for name in masks)


def test_the_l1_penalty_pulls_weights_to_zero_and_leaves_biases(network, samples):
    """With targets that cannot be learnt from, the first step is the penalty's alone."""
    before = copy.deepcopy(network.state_dict())
    recipe = {**RECIPE, "epochs": 1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    fine_tune(
        network, samples, **{**recipe, "batch_size": 64}, l1_penalty=0.02,
        loss=lambda output, targets: 0.0 * output.sum(),
    )  # fmt: skip
    expected = before["0.weight"] - 0.1 * 0.02 * before["0.weight"].sign()
    torch.testing.assert_close(network[0].weight.detach(), expected)
    assert torch.equal(network[0].bias, before["0.bias"])


def test_bfloat16_learns_too_and_rounds(network, samples):
    twin = copy.deepcopy(network)
    recipe = {**RECIPE, "epochs": 20, "weight_decay": 0.0}
    fine_tune(network, samples, **recipe, precision="bfloat16")
    fine_tune(twin, samples, **recipe)
    assert accuracy(network, samples) > 0.9
    assert not torch.equal(network[0].weight, twin[0].weight)


def test_channels_last_changes_the_rounding_only():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(200, 2))
    images = SampleSet(torch.randn(32, 3, 5, 5), torch.arange(32) % 2)
    twin = copy.deepcopy(network)
    layouts = []
    network[0].register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    fine_tune(network, images, **{**RECIPE, "epochs": 2}, channels_last=True)
    fine_tune(twin, images, **{**RECIPE, "epochs": 2})
    assert layouts
    assert all(layouts)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-3, atol=1e-5)
        assert value.is_contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distillation": Distillation()}, "needs a teacher"),
        ({"l1_penalty": -1.0}, r"fine_tune\.l1_penalty must be null or 0 or more, got -1\.0"),
        ({"precision": "float16"}, "precision must be null or bfloat16, got 'float16'"),
    ],
)
def test_impossible_switches_are_refused(network, samples, change, message):
    with pytest.raises(ValueError, match=message):
        fine_tune(network, samples, **RECIPE, **change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"distillation\.temperature must be a number above 0, got 0\.0"),
        ({"weight": 1.5}, r"distillation\.weight must be in \(0, 1\], got 1\.5"),
        ({"weight": 0.0}, r"distillation\.weight must be in"),
    ],
)
def test_impossible_distillations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**options)


def test_a_learning_rate_can_be_a_fraction_of_the_original():
    recipe = {**RECIPE, "learning_rate": None, "relative_learning_rate": 0.5}
    assert with_learning_rate(recipe, 0.1) == {**RECIPE, "learning_rate": 0.05}
    given = {**RECIPE, "relative_learning_rate": 0.5}  # a number wins
    assert with_learning_rate(given, None) == RECIPE
    for changes, original, message in (
        ({}, None, r"pretrain does not say it: add \+pretrain\.learning_rate"),
        ({"relative_learning_rate": None}, 0.1, "has no learning rate: set fine_tune.learning"),
        ({"relative_learning_rate": 0.0}, 0.1, "must be null or above 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            with_learning_rate({**recipe, **changes}, original)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l1_penalty": -1.0}, "l1_penalty must be null or 0 or more"),
        ({"precision": "half"}, "precision must be null or bfloat16"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
    ],
)
def test_a_recipe_is_refused_before_it_is_needed(change, message):
    state = torch.get_rng_state()
    check_fine_tuning({**RECIPE, "distillation": Distillation()})
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=message):
        check_fine_tuning({**RECIPE, **change})
