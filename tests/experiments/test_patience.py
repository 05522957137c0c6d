"""The end of a search that only repeats itself."""

from __future__ import annotations

from types import SimpleNamespace

from experiments.patience import Patience


def episodes_until_the_end(patience, records):
    env = SimpleNamespace(num_evaluations=0, history=[])
    callback = Patience(env, patience)
    for count, record in enumerate(records, start=1):
        env.history.append(record)
        if not callback._on_step():
            assert callback.is_exhausted
            return count
    assert not callback.is_exhausted
    return None


def test_known_plans_in_a_row_end_the_search(make_record):
    new = [make_record(evaluations=n) for n in (1, 2, 3)]
    known = [make_record(evaluations=3, cached=True)] * 9
    assert episodes_until_the_end(4, new + known) == 7


def test_a_new_plan_starts_the_count_anew(make_record):
    known = make_record(evaluations=1, cached=True)
    new = make_record(evaluations=2)
    later = make_record(evaluations=2, cached=True)
    assert episodes_until_the_end(3, [known, known, new, later, later, later]) == 6


def test_episodes_outside_the_budget_do_not_count(make_record):
    outside = make_record(evaluations=0, met=False, accuracy=None)
    assert episodes_until_the_end(2, [outside] * 50) is None


def test_without_patience_nothing_ends(make_record):
    assert episodes_until_the_end(None, [make_record(evaluations=0, cached=True)] * 50) is None
