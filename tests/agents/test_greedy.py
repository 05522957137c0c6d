from __future__ import annotations

import pytest
from classic_task import chain_env, counts_of

from agents.greedy import GreedyAgent
from agents.search import run_search


def played(env, **settings):
    run_search(GreedyAgent(env, seed=0, **settings), env, evaluations=60)
    return [counts_of(record) for record in env.history]


def test_the_cheapest_step_per_mac_is_taken():
    # per MAC saved: a 0.375 / 1,296, b 0.125 / 3,456, c (two of 16) 0.25 / 2,310; b stays cheapest
    # until it keeps 3: 1,200 + 3 * 3,456 = 11,568 MACs of 14,424, where no further channel fits
    lazy = played(chain_env(), exchange=0.0)
    assert lazy[:4] == [(7, 8, 16), (8, 7, 16), (8, 8, 14), (8, 6, 16)]
    assert lazy[4:] == [(8, 5, 16), (8, 4, 16), (8, 3, 16), (8, 3, 16)]


def test_measuring_all_groups_gives_the_same_plan_for_more():
    env = chain_env()
    every = played(env, exchange=0.0, lazy=False)
    assert len(every) == 5 * 3 + 1
    assert counts_of(env.best) == every[-1] == (8, 3, 16)


def test_the_last_evaluation_is_a_plan_within_budget(caplog):
    env = chain_env()
    counts = played(env, evaluations=5)
    assert len(counts) > 5  # the limit is the search's, and the plan comes in time
    assert not any(record.met for record in env.history[:4])
    assert env.history[4].met
    assert "the rest of the way is uniform" in caplog.text


def test_the_local_search_goes_on_from_there():
    env = chain_env()
    played(env)
    assert env.num_evaluations > 12  # until it finds no new neighbour
    assert env.best.loss <= 0.1 + 5 / 8


@pytest.mark.parametrize("settings", [{"step": 1.5}, {"exchange": -0.1}, {"evaluations": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=rf"Change agent\.{next(iter(settings))}"):
        GreedyAgent(None, **settings)
