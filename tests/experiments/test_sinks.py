"""Mirrors, progress and interruption: everything that watches a search."""

from __future__ import annotations

import os
import signal
import time

import pytest

from experiments.group_table import GroupRow
from experiments.identity import RunIdentity
from experiments.interruption import Interruption, SearchInterrupted
from experiments.progress import SearchProgress, TrainingProgress, shows_progress
from experiments.sinks import (
    KeptOpen,
    TensorBoardMirror,
    episode_scalars,
    open_mirrors,
)

IDENTITY = RunIdentity("tiny", "digits", "ppo", "autosculpt", ("seed=0",), "2030-01-01_sweep")
ROW = GroupRow("conv1", 4, 2, 3, 0.5, 0.25, "plus", 0.0)


def test_numbers_that_were_not_measured_are_left_out(make_record):
    scalars = episode_scalars(make_record(accuracy=None, loss=None))
    assert "prune/accuracy" not in scalars
    assert scalars["reward/compression"] == 0.1
    assert scalars["prune/budget_met"] == 1.0


def test_tensorboard_gets_every_episode_and_the_summary(make_record, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    mirror = TensorBoardMirror(tmp_path, {"seed": 0}, IDENTITY)
    for evaluations, accuracy in ((1, 0.5), (4, 0.75)):
        mirror.write(make_record(evaluations=evaluations, accuracy=accuracy))
    mirror.report({"pruned": {"test_accuracy": 0.625}, "network": "tiny"}, [ROW])
    mirror.close()
    mirror.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(event.step, event.value) for event in events.Scalars("prune/accuracy")]
    assert points == [(1, 0.5), (4, 0.75)]
    assert events.Scalars("summary/pruned/test_accuracy")[0].value == 0.625
    assert "groups/text_summary" in events.Tags()["tensors"]


def test_mirrors_are_closed_when_a_run_fails(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(TensorBoardMirror, "close", lambda self: closed.append(True))
    plain = {"seed": 0, "logger": {"tb": {"_target_": "experiments.sinks.TensorBoardMirror"}}}
    with pytest.raises(RuntimeError, match="boom"), open_mirrors(plain, tmp_path, IDENTITY):
        raise RuntimeError("boom")
    assert closed == [True]


def test_an_unknown_wandb_mode_is_refused(tmp_path):
    options = {"_target_": "experiments.sinks.WandbMirror", "mode": "of"}
    with (
        pytest.raises(ValueError, match=r"offline, online and disabled, got 'of'"),
        open_mirrors({"seed": 0, "logger": {"wandb": options}}, tmp_path, IDENTITY),
    ):
        pass


def test_wandb_writes_offline_into_the_run_folder(make_record, tmp_path, capfd):
    options = {"_target_": "experiments.sinks.WandbMirror", "mode": "offline"}
    plain = {"seed": 0, "logger": {"wandb": options}}
    with open_mirrors(plain, tmp_path, IDENTITY) as mirrors:
        mirrors[0].write(make_record())
        mirrors[0].report({"pruned": {"macs": 3}}, [ROW])
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    deadline = time.monotonic() + 20
    while b"pruned/macs" not in files[0].read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)  # W&B's own process writes the file shortly after finish() returns
    assert b"prune/accuracy" in files[0].read_bytes()
    assert b"2030-01-01_sweep" in files[0].read_bytes()
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_a_sink_that_is_kept_open_hears_everything_but_the_end():
    class Sink:
        def __init__(self):
            self.heard = []

        def write(self, record):
            self.heard.append(record)

        def close(self):
            self.heard.append("closed")

    sink = Sink()
    kept = KeptOpen(sink)
    kept.write("episode")
    kept.close()
    assert sink.heard == ["episode"]


def test_ctrl_c_ends_the_search_between_two_episodes(make_record, capsys):
    interruption = Interruption()
    before = signal.getsignal(signal.SIGINT)
    with interruption.listening():
        interruption.write(make_record())
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SearchInterrupted):
            interruption.write(make_record())
        assert not interruption.is_repeated
    assert signal.getsignal(signal.SIGINT) is before
    assert "the best plan so far is reported" in capsys.readouterr().err


def test_a_second_ctrl_c_stops_at_once(capsys):
    interruption = Interruption()
    with interruption.listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert interruption.is_repeated


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), ("auto", False)])
def test_bars_are_drawn_on_request_or_on_a_terminal(value, expected):
    assert shows_progress(value) is expected


def test_other_values_of_progress_bar_are_refused():
    with pytest.raises(ValueError, match="progress_bar must be auto, true or false, got 'yes'"):
        shows_progress("yes")


def test_bars_say_what_was_found(make_record, capsys):
    search = SearchProgress(10, enabled=True)
    search.write(make_record(evaluations=3, score=0.25, met=False))
    search.write(make_record(evaluations=4, score=0.75, accuracy=0.9, relative_macs=0.4))
    search.write(make_record(evaluations=6, score=0.5))
    search.close()
    training = TrainingProgress("training", enabled=True)
    training(1, 2, 0.5)
    training(2, 2, 0.25)
    printed = capsys.readouterr().err
    assert "6/10" in printed
    assert "best 0.750: accuracy 90.0%, 40.0% of the MACs" in printed
    assert "loss 0.250" in printed


def test_silent_bars_print_nothing(make_record, capsys):
    search = SearchProgress(10, enabled=False)
    search.write(make_record())
    search.close()
    TrainingProgress("training", enabled=False)(1, 2, 0.5)
    assert capsys.readouterr().err == ""
