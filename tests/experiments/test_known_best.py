"""Searching where the best plan is known."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from experiments import known_best
from experiments.known_best_results import Ranking, Trace

SPACE = (
    "+network.width=4",
    "+network.blocks=[1,1,1]",
    "pretrain.epochs=1",
    "search.evaluations=5",
    "budget.relative_macs=0.7",
    "budget.delta=0.2",
)


def test_ranks_and_first_finds():
    ranking = Ranking([0.2, 0.9, 0.5, 0.5])
    assert [ranking.rank(score) for score in (0.9, 0.5, 0.2, -math.inf)] == [1, 2, 4, math.inf]
    trace = Trace(evaluations=(1, 2, 3, 4), scores=(0.2, 0.5, 0.9, 0.5))
    assert ranking.found_after(trace) == 3
    assert [ranking.rank_after(trace, count) for count in (0, 1, 2, 3, 9)] == [math.inf, 4, 2, 1, 1]
    assert ranking.found_after(Trace((1,), (0.5,))) is None


@pytest.mark.parametrize("scores", [[4.0, 3.0, 2.0, 1.0, 0.0], [2.0, 2.0, 1.0, 1.0, 0.0]])
def test_expectations_equal_those_of_all_orders(scores):
    ranking = Ranking(scores)
    orders = list(itertools.permutations(scores))
    first = [order.index(max(scores)) + 1 for order in orders]
    assert ranking.expected_evaluations == pytest.approx(np.mean(first))
    for count in (1, 2, 3, 5):
        ranks = [ranking.rank(max(order[:count])) for order in orders]
        assert ranking.expected_rank(count) == pytest.approx(np.mean(ranks))
        assert ranking.chance_to_find(count) == pytest.approx(np.mean(np.array(ranks) == 1))


def test_the_command_measures_all_plans_and_ranks_searches(tmp_path, capsys):
    arguments = [*SPACE, f"cache_dir={tmp_path}", "--agents", "random", "--seeds=2", "--after=2"]
    assert known_best.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "plans within the budget" in printed
    assert "random, expected" in printed
    result = json.loads((tmp_path / "out" / "known_best.json").read_text())
    runs = result["agents"]["random"]
    assert set(runs["rank_after"]) == {"2", "5"}
    assert all(
        later <= sooner
        for sooner, later in zip(runs["rank_after"]["2"], runs["rank_after"]["5"], strict=True)
    )
    assert all(1 <= rank <= result["plans"] for rank in runs["rank_after"]["5"])
    for found, rank in zip(runs["found_after"], runs["rank_after"]["5"], strict=True):
        assert (found is not None and found <= 5) == (rank == 1)
    assert (tmp_path / "out" / "known_best.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=0"], "--seeds must be 1 or more, got 0"),
        (["--agents", " "], "names an agent"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        known_best.main(arguments)


def test_spaces_that_cannot_be_listed_are_refused(tmp_path, monkeypatch):
    small = [*SPACE, f"cache_dir={tmp_path}", "--agents", "random"]
    with pytest.raises(ValueError, match="Set env=autosculpt"):
        known_best.main(["env/episode=layerwise", *small])
    monkeypatch.setattr(known_best, "MOST_PLANS", 10)
    with pytest.raises(ValueError, match="more than 10"):
        known_best.main(small)
