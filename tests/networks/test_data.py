"""Sample sets, splits and augmentation."""

from __future__ import annotations

import pytest
import torch

from networks.data import (
    DataSplits,
    RandomCropFlip,
    SampleSet,
    SearchSplits,
    split_indices,
    split_training_set,
)


def numbered(count: int, classes: int = 4) -> SampleSet:
    """Sample i holds the number i."""
    inputs = torch.arange(count, dtype=torch.float32).view(count, 1)
    return SampleSet(inputs, torch.arange(count) % classes)


def splits_of(indices: dict[str, tuple[int, ...]], count: int = 20) -> DataSplits:
    source = numbered(count)
    test = source.subset(indices["test"]) if "test" in indices else numbered(5)
    search = SearchSplits(
        source.subset(indices["train"]),
        source.subset(indices["calibration"]),
        source.subset(indices["reward"]),
    )
    return DataSplits("numbers", 4, search, test, indices)


def test_uint8_inputs_are_scaled_and_normalised_per_channel():
    inputs = torch.tensor([0, 255, 51, 102], dtype=torch.uint8).view(1, 2, 1, 2)
    samples = SampleSet(inputs, torch.tensor([1]), mean=(0.5, 0.2), std=(0.5, 0.1))
    ((batch, targets),) = samples.batches(8)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch.flatten(), torch.tensor([-1.0, 1.0, 0.0, 2.0]))
    assert targets.tolist() == [1]
    assert samples.inputs.dtype == torch.uint8
    assert samples.inputs.flatten().tolist() == [0, 255, 51, 102]


def test_uint8_inputs_without_statistics_are_only_scaled():
    samples = SampleSet(torch.tensor([[0], [51]], dtype=torch.uint8), torch.tensor([0, 1]))
    ((batch, _),) = samples.batches(2)
    torch.testing.assert_close(batch, torch.tensor([[0.0], [0.2]]))


def test_float_inputs_pass_unchanged_and_in_order():
    batches = list(numbered(5).batches(2))
    assert [len(targets) for _, targets in batches] == [2, 2, 1]
    assert torch.cat([inputs for inputs, _ in batches]).flatten().tolist() == [0, 1, 2, 3, 4]


def test_the_same_generator_seed_gives_the_same_order_and_every_sample_once():
    def order(seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        batches = numbered(50).batches(7, generator=generator)
        return torch.cat([inputs for inputs, _ in batches]).flatten().tolist()

    assert order(3) == order(3)
    assert order(3) != order(4)
    assert order(3) != list(range(50))
    assert sorted(order(3)) == list(range(50))


def test_an_augmentation_sees_raw_inputs():
    seen = []

    def augment(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(inputs.dtype)
        return inputs + 1

    samples = SampleSet(torch.zeros(1, 1, dtype=torch.uint8), torch.zeros(1))
    ((batch, _),) = samples.batches(1, generator=torch.Generator(), augment=augment)
    assert seen == [torch.uint8]
    assert batch.item() == pytest.approx(1 / 255)


def test_an_augmentation_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="augmentation needs a generator"):
        next(numbered(2).batches(1, augment=RandomCropFlip()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((torch.zeros(3, 1), torch.zeros(2)), "3 inputs and 2 targets", id="lengths"),
        pytest.param((torch.zeros(2, 1).long(), torch.zeros(2)), "uint8 or floating", id="dtype"),
        pytest.param((torch.zeros(2, 1), torch.zeros(2), (0.0,), (1.0,)), "uint8 inputs", id="fp"),
        pytest.param(
            (torch.zeros(2, 3).byte(), torch.zeros(2), (0.0,), (1.0,)), "have 3", id="channels"
        ),
        pytest.param(
            (torch.zeros(2, 1).byte(), torch.zeros(2), (0.0,), None), "together", id="no-std"
        ),
        pytest.param(
            (torch.zeros(2, 1).byte(), torch.zeros(2), (0.0,), (0.0,)), "positive", id="zero-std"
        ),
    ],
)
def test_sample_sets_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SampleSet(*arguments)


def test_a_subset_keeps_the_given_order_and_refuses_a_wrong_index():
    samples = numbered(6)
    assert samples.subset([4, 0]).inputs.flatten().tolist() == [4, 0]
    with pytest.raises(ValueError, match=r"\[0, 6\)"):
        samples.subset([-1])


def test_splits_that_share_a_sample_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'train' and 'reward' .* share 1 samples \(first: 3\)"):
        splits_of({"train": (0, 1, 3), "calibration": (5, 6), "reward": (3, 4)})


def test_a_test_split_cut_from_the_same_source_must_be_disjoint_too():
    with pytest.raises(ValueError, match=r"'train' and 'test' .* share 2 samples"):
        splits_of({"train": (0, 1), "calibration": (2,), "reward": (3,), "test": (1, 0)})


def test_indices_must_name_the_splits_and_count_their_samples():
    search = SearchSplits(numbered(3), numbered(1), numbered(1))
    with pytest.raises(ValueError, match="missing \\['reward'\\]"):
        DataSplits("n", 4, search, numbered(2), {"train": (0, 1, 2), "calibration": (3,)})
    indices = {"train": (0, 1), "calibration": (3,), "reward": (4,)}
    with pytest.raises(ValueError, match="'train' of n has 3 samples but 2 indices"):
        DataSplits("n", 4, search, numbered(2), indices)


def test_class_numbers_outside_of_the_classes_are_refused():
    search = SearchSplits(numbered(3), numbered(1), numbered(1))
    with pytest.raises(ValueError, match=r"class numbers 0 to 2; with 2 classes"):
        DataSplits(
            "n", 2, search, numbered(2), {"train": (0, 1, 2), "calibration": (3,), "reward": (4,)}
        )


def test_split_indices_are_disjoint_complete_and_equal_for_equal_seeds():
    targets = torch.arange(103) % 5
    sizes = {"a": 20, "b": 30, "c": None}
    splits = split_indices(targets, sizes, seed=7)
    assert [len(splits[name]) for name in "abc"] == [20, 30, 53]
    assert sorted(i for split in splits.values() for i in split) == list(range(103))
    assert splits == split_indices(targets, sizes, seed=7)
    assert splits != split_indices(targets, sizes, seed=8)


def test_split_indices_do_not_change_between_machines():
    splits = split_indices(torch.tensor([0, 0, 0, 1, 1, 1]), {"a": 2, "b": None}, seed=0)
    assert splits == {"a": (2, 3), "b": (1, 4, 5, 0)}


def test_every_class_has_its_share_of_every_stratified_split():
    targets = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    splits = split_indices(targets, {"a": 100, "b": 50, "c": None}, seed=1)
    for indices in splits.values():
        counts = targets[list(indices)].bincount(minlength=3)
        expected = len(indices) * torch.tensor([0.6, 0.3, 0.1])
        assert (counts - expected).abs().max() <= 2
    prefix = targets[list(splits["c"][:40])].bincount(minlength=3)
    assert (prefix - torch.tensor([24, 12, 4])).abs().max() <= 2


def test_splits_can_ignore_the_classes():
    targets = torch.tensor([0] * 50 + [1] * 50)
    splits = split_indices(targets, {"a": 50, "b": None}, stratified=False)
    assert sorted((*splits["a"], *splits["b"])) == list(range(100))
    assert splits["a"] != split_indices(targets, {"a": 50, "b": None})["a"]


@pytest.mark.parametrize("sizes", [{"a": 11}, {"a": -1, "b": None}, {"a": None, "b": None}])
def test_sizes_that_do_not_fit_are_refused_with_their_keys(sizes):
    with pytest.raises(ValueError, match=r"Cannot cut 10 samples into data\.a_size="):
        split_indices(torch.zeros(10), sizes)


def test_a_training_set_is_cut_into_the_search_splits():
    data = split_training_set(
        numbered(40), numbered(8), name="n", num_classes=4, calibration_size=8, reward_size=12
    )
    assert (len(data.search.train), len(data.search.calibration)) == (20, 8)
    assert data.search.reward.inputs.flatten().tolist() == list(data.indices["reward"])
    assert data.search.reward.targets.bincount().tolist() == [3, 3, 3, 3]
    assert "test" not in data.indices


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match=r"'reward' of n is empty: raise data\.reward_size"):
        split_training_set(
            numbered(10), numbered(8), name="n", num_classes=4, calibration_size=2, reward_size=0
        )


def test_a_crop_without_padding_and_flip_changes_nothing():
    images = torch.randint(256, (3, 3, 5, 4), dtype=torch.uint8)
    assert torch.equal(RandomCropFlip(0, flip=False)(images, torch.Generator()), images)


def test_every_crop_is_a_shifted_image_with_black_around():
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    padded = torch.zeros(5, 5, dtype=torch.uint8)
    padded[1:4, 1:4] = image
    windows = [padded[y : y + 3, x : x + 3] for y in range(3) for x in range(3)]
    crops = RandomCropFlip(1, flip=False)(image.expand(300, 1, 3, 3), torch.Generator())
    found = {
        next(i for i, window in enumerate(windows) if torch.equal(crop[0], window))
        for crop in crops
    }
    assert crops.dtype == torch.uint8
    assert found == set(range(9))


def test_a_flip_mirrors_about_half_of_the_images_left_to_right():
    image = torch.arange(6.0).view(1, 1, 2, 3).expand(400, 1, 2, 3)
    flipped = RandomCropFlip(0)(image, torch.Generator().manual_seed(0))
    is_mirrored = (flipped == image.flip(3)).all(dim=(1, 2, 3))
    assert torch.equal(flipped[~is_mirrored], image[~is_mirrored])
    assert 150 < int(is_mirrored.sum()) < 250


def test_the_augmentation_draws_from_the_generator_only():
    images = torch.rand(8, 1, 6, 6)
    before = torch.get_rng_state()
    first = RandomCropFlip(2)(images, torch.Generator().manual_seed(5))
    second = RandomCropFlip(2)(images, torch.Generator().manual_seed(5))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="padding must be at least 0, got -1"):
        RandomCropFlip(-1)
