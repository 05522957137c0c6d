"""Counted evaluations on disk, and their replay."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest

from pruning.evaluation import Evaluation, NonFiniteAccuracy
from pruning.journal import EvaluationJournal, JournalSubject, digest
from pruning.keep_set import KeepSet
from pruning.plan import Candidate

SUBJECT = JournalSubject("0123", Evaluation(0.9, 0.25, 50))
MASKED = (("conv1@conv1", "plus"),)


def candidate(kept, masks=()):
    """Keeps the first `kept` of 6 units of one group."""
    return Candidate(KeepSet(np.arange(6) < kept, np.array([kept]), ()), masks)


def outcome(number):
    return Evaluation(1 / (number + 2), 0.1 + number / 3, 50)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "evaluations.jsonl"


@pytest.fixture
def written(path):
    """Journal of candidates that keep 1, 2 and 3 units."""
    journal = EvaluationJournal(path, SUBJECT)
    for number in (1, 2, 3):
        assert journal.replay(candidate(number)) is None
        journal.record(candidate(number), outcome(number))
    journal.close()
    return path


def test_what_was_recorded_is_replayed_bit_for_bit_and_then_measured(written):
    journal = EvaluationJournal(written, SUBJECT)
    assert (len(journal), journal.num_pending) == (3, 3)
    assert journal.holds(candidate(3))
    assert not journal.holds(candidate(4))
    replayed = [journal.replay(candidate(number)) for number in (1, 2, 3)]
    assert replayed == [outcome(number) for number in (1, 2, 3)]
    assert not journal.holds(candidate(3))
    assert journal.replay(candidate(4)) is None
    journal.record(candidate(4), outcome(4))
    assert (len(journal), journal.num_pending, journal.num_replayed) == (4, 0, 3)
    journal.close()
    assert len(EvaluationJournal(written, SUBJECT)) == 4


def test_a_line_says_what_was_measured(written):
    line = json.loads(written.read_text().splitlines()[2])
    assert line.pop("seconds") >= 0
    assert line == {
        "evaluation": 2,
        "candidate": digest(candidate(2)),
        "counts": [2],
        "masks": [],
        "accuracy": 0.25,
        "loss": 0.1 + 2 / 3,
        "num_samples": 50,
    }


def test_candidates_have_different_names():
    names = {digest(candidate(2)), digest(candidate(3)), digest(candidate(2, MASKED))}
    assert len(names) == 3
    assert digest(candidate(2, MASKED)) == digest(candidate(2, MASKED))


def test_a_measurement_that_is_no_number_is_replayed_as_its_error(path):
    journal = EvaluationJournal(path, SUBJECT)
    journal.record(candidate(1, MASKED), NonFiniteAccuracy("The loss is nan."))
    journal.close()
    replayed = EvaluationJournal(path, SUBJECT).replay(candidate(1, MASKED))
    assert isinstance(replayed, NonFiniteAccuracy)
    assert str(replayed) == "The loss is nan."


def test_a_journal_cut_off_at_any_byte_keeps_all_whole_lines(written):
    whole = written.read_bytes()
    for size in {*range(0, len(whole), 37), len(whole) - 1, len(whole)}:
        written.write_bytes(whole[:size])
        journal = EvaluationJournal(written, SUBJECT)
        assert len(journal) == max(whole[:size].count(b"\n") - 1, 0)
        journal.record(candidate(5), outcome(5))
        journal.close()
        again = EvaluationJournal(written, SUBJECT)
        assert len(again) == len(journal)
        again.close()


@pytest.mark.parametrize(
    ("line", "number", "message"),
    [
        ("{nonsense", 2, r"evaluations\.jsonl, line 2 is not a line of a journal"),
        ('{"evaluation": 2}', 3, "line 3 .*no 'accuracy'"),
        ('{"evaluation": 7}', 3, "line 3 .*it is evaluation 7, and 2 is its turn"),
        ("[]", 2, "line 2 .*it holds a list"),
        ('{"format": "other"}', 1, "line 1 .*the format is 'other'"),
        ('{"format": "topiary-evaluations-1", "graph": "0"}', 1, "line 1 .*base_loss, num_samples"),
    ],
)
def test_a_damaged_line_is_named(written, line, number, message):
    lines = written.read_text().splitlines()
    lines[number - 1] = line
    written.write_text("\n".join(lines) + "\n")
    before = written.read_bytes()
    with pytest.raises(ValueError, match=message):
        EvaluationJournal(written, SUBJECT)
    assert written.read_bytes() == before


@pytest.mark.parametrize(
    "subject",
    [
        JournalSubject("4567", SUBJECT.base),
        JournalSubject("0123", Evaluation(0.9, 0.26, 50)),
        JournalSubject("0123", Evaluation(0.9, 0.25, 51)),
    ],
)
def test_measurements_of_something_else_are_refused(written, subject):
    with pytest.raises(ValueError, match=r"another network or other data.*loss 0\.25 on 50"):
        EvaluationJournal(written, subject)


def test_another_cpu_may_move_the_loss_of_the_unpruned_network(written):
    subject = JournalSubject("0123", Evaluation(0.88, 0.25001, 50))
    assert len(EvaluationJournal(written, subject)) == 3


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_search_that_goes_another_way_says_so_once_and_loses_nothing(written, tmp_path):
    lines = written.read_bytes().splitlines(keepends=True)
    journal = EvaluationJournal(written, SUBJECT)
    assert journal.replay(candidate(1)) == outcome(1)
    with pytest.warns(UserWarning, match="From evaluation 2 on the search decides differently"):
        assert journal.replay(candidate(5)) is None
    journal.record(candidate(5), outcome(5))
    assert journal.replay(candidate(3)) is None  # a second warning would be an error
    journal.close()
    assert (tmp_path / "evaluations_abandoned.jsonl").read_bytes() == b"".join(lines[2:])
    again = EvaluationJournal(written, SUBJECT)
    assert [again.replay(candidate(number)) for number in (1, 5)] == [outcome(1), outcome(5)]


def test_a_full_disk_keeps_what_was_measured_before(written, monkeypatch):
    journal = EvaluationJournal(written, SUBJECT)
    for number in (1, 2, 3):
        journal.replay(candidate(number))
    before = written.read_bytes()
    write = os.write

    def fill(descriptor, data):
        if len(data) > 10:
            return write(descriptor, data[:10])  # the last bytes that there was room for
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pruning.journal.os.write", fill)
    with pytest.raises(OSError, match=r"No space left.*3 evaluations before are kept.*resume=auto"):
        journal.record(candidate(4), outcome(4))
    journal.close()
    assert written.read_bytes() == before


def test_the_clock_counts_the_time_before_the_interruption(path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("pruning.journal.time.monotonic", lambda: now[0])
    journal = EvaluationJournal(path, SUBJECT)
    assert journal.seconds_before == 0.0
    for number in (1, 2):
        now[0] += 30
        journal.record(candidate(number), outcome(number))
    now[0] += 7  # lost
    journal.close()
    now[0] = 5000.0
    journal = EvaluationJournal(path, SUBJECT)
    assert journal.seconds_before == 60.0
    now[0] += 1
    journal.replay(candidate(1))
    assert journal.elapsed() == 30.0
    now[0] += 1
    journal.replay(candidate(2))
    now[0] += 2
    assert journal.elapsed() == 62.0
