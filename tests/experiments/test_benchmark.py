"""The benchmark's figures that do not depend on the machine are right."""

import pytest

from experiments.benchmark import NETWORKS, main, measure_engine


def test_the_engine_is_exact_and_keeps_no_tensor():
    build, shape = NETWORKS["digits_resnet"]
    figures = measure_engine(build(), shape, episodes=20, configurations=3)
    assert figures.groups == 8
    assert figures.macs_equal == (3, 3)
    assert figures.worst_difference < 1e-5
    assert figures.tensors_grown == 0
    assert min(figures.analysis_s, figures.structural_ms, figures.forward_ms, figures.cost_us) > 0


def test_the_command_prints_one_row_per_network(capsys):
    assert main(["engine", "--networks", "digits_resnet", "--episodes", "2"]) == 0
    assert "digits_resnet" in capsys.readouterr().out


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="--episodes must be 1 or more, got 0"):
        main(["engine", "--episodes", "0"])
