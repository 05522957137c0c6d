"""Figures of a run."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import image

from experiments.figures import best_so_far, draw_groups, draw_search, draw_tradeoff
from experiments.group_table import GroupRow


def test_the_best_so_far_ignores_what_is_outside_the_budget():
    scores = np.array([5.0, 1.0, 3.0, 3.0, 9.0, 2.0])
    met = np.array([False, True, True, True, False, True])
    assert best_so_far(scores, met).tolist() == [-1, 1, 2, 2, 2, 2]


def test_nothing_is_best_before_the_first_within_budget():
    assert best_so_far(np.array([1.0, 2.0]), np.array([False, False])).tolist() == [-1, -1]


@pytest.fixture
def records(make_record):
    return [
        make_record(
            evaluations=index + 1,
            score=0.5 + 0.01 * index,
            accuracy=None if index == 3 else 0.8,
            met=index != 3,
            relative_macs=0.4 + 0.01 * index,
        )
        for index in range(30)
    ]


def assert_is_a_picture(path, *, min_height):
    pixels = image.imread(path)
    assert pixels.shape[0] >= min_height
    assert pixels.shape[1] == 1200
    assert pixels[..., :3].std() > 0.02  # something is drawn


@pytest.mark.filterwarnings("error")
def test_the_search_is_drawn_with_unmeasured_episodes(records, tmp_path):
    path = tmp_path / "figures" / "search.png"
    draw_search(
        records,
        path,
        title="uniform prunes tiny",
        chosen=records[-1],
        uniform_accuracy=0.7,
        base_accuracy=0.9,
    )
    assert_is_a_picture(path, min_height=900)


@pytest.mark.filterwarnings("error")
def test_a_search_of_one_episode_outside_the_budget_is_drawn(make_record, tmp_path):
    outside = make_record(met=False, accuracy=None)
    draw_search(
        [outside],
        tmp_path / "search.png",
        title="one",
        chosen=make_record(),
        uniform_accuracy=0.7,
        base_accuracy=0.9,
    )
    assert_is_a_picture(tmp_path / "search.png", min_height=900)


@pytest.mark.filterwarnings("error")
def test_the_tradeoff_is_drawn(records, tmp_path):
    draw_tradeoff(
        records,
        tmp_path / "tradeoff.png",
        title="tiny",
        cost_name="MACs",
        chosen=records[-1],
        uniform=(0.5, 0.7),
        base_accuracy=0.9,
    )
    assert_is_a_picture(tmp_path / "tradeoff.png", min_height=700)


@pytest.mark.filterwarnings("error")
def test_every_group_gets_its_own_line(tmp_path):
    def draw(count):
        rows = [
            GroupRow(f"layer{i}", 16, 8, 10, 0.5, 0.375, "plus" if i % 2 else "", 0.44 * (i % 2))
            for i in range(count)
        ]
        draw_groups(rows, tmp_path / "groups.png", title="tiny")
        return image.imread(tmp_path / "groups.png").shape[0]

    assert_is_a_picture_of = draw(8)
    assert draw(50) > 3 * assert_is_a_picture_of
