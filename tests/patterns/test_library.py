"""The pattern library: order, names, specifications, and the YAML files."""

import json
import pickle
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from patterns.channel import ChannelPattern
from patterns.dense import DensePattern
from patterns.kernel_shape import KernelShapePattern
from patterns.library import PatternLibrary

YAML_FILES = sorted((Path(__file__).parents[2] / "conf" / "patterns").rglob("*.yaml"))
HALF = {"family": "channel", "ratio": 0.5}
PLUS = {"family": "kernel_shape", "shape": "plus"}


def test_patterns_stay_in_the_order_of_their_specifications():
    library = PatternLibrary.from_specs([{"family": "dense"}, PLUS, HALF])
    assert library.names == ("dense", "plus", "channel_0.5")
    assert len(library) == 3
    assert library.index("channel_0.5") == 2
    assert library[2] == ChannelPattern(0.5)
    assert list(library) == list(library.patterns)


def test_the_dense_pattern_is_put_first_when_it_is_left_out():
    assert PatternLibrary.from_specs([HALF]).names == ("dense", "channel_0.5")
    assert PatternLibrary.from_specs([]).names == ("dense",)


def test_specifications_survive_json_and_pickle():
    own = {"family": "kernel_shape", "name": "centre", "rows": ["...", ".#.", "..."]}
    library = PatternLibrary.from_specs([PLUS, HALF, own])
    again = PatternLibrary.from_specs(json.loads(json.dumps(library.specs)))
    assert again == library
    assert again.specs == library.specs
    assert pickle.loads(pickle.dumps(library)) == library
    # cell by cell, so that an old plan means the same when a shape is redrawn
    assert library.specs[1]["rows"] == ["#.#", "...", "#.#"]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([HALF, {"family": "dense"}], "Index 0 .* must be the dense pattern, found channel_0.5"),
        ([HALF, HALF], "more than one channel_0.5"),
        ([{"family": "dense"}, {"family": "dense"}], "more than one dense"),
        ([{"family": "stripe"}], "'stripe'.*dense, channel, kernel_shape.*patterns.specs"),
        ([{"ratio": 0.5}], "mapping with the key family"),
        (["channel"], "mapping with the key family, got 'channel'"),
        ([{"family": "channel"}], r"takes the keys \['ratio'\], got \[\]"),
    ],
)
def test_a_wrong_library_is_refused(specs, message):
    with pytest.raises(ValueError, match=message):
        PatternLibrary.from_specs(specs)


def test_an_empty_library_is_refused():
    with pytest.raises(ValueError, match="found nothing"):
        PatternLibrary(())


def test_an_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=r"'channel_0.9'.*dense, channel_0.5"):
        PatternLibrary.from_specs([HALF]).index("channel_0.9")


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.stem)
def test_every_yaml_file_builds_a_library(path):
    library = instantiate(OmegaConf.load(path))
    assert isinstance(library, PatternLibrary)
    assert isinstance(library[0], DensePattern)
    assert len(library) > 1
    assert json.loads(json.dumps(library.specs)) == library.specs


def test_the_yaml_files_hold_what_their_names_say():
    libraries = {path.stem: instantiate(OmegaConf.load(path)) for path in YAML_FILES}
    eighths = [i / 8 for i in range(8)]
    assert [pattern.channel_ratio for pattern in libraries["channel"]] == eighths
    assert len(libraries["autosculpt_six"]) == 6
    assert len(libraries["autosculpt_figure"]) == 9
    families = {type(pattern) for pattern in libraries["mixed"]}
    assert families == {DensePattern, ChannelPattern, KernelShapePattern}
