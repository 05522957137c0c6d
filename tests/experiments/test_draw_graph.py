"""The picture of a network with its patterns."""

from __future__ import annotations

import pytest
import torch
from matplotlib import image

from experiments import draw_graph
from experiments.draw_graph_layout import lay_out, longest_paths, pack
from experiments.draw_graph_plan import KEPT, STAYS, picture_of, random_plan, unpruned_plan
from graphs.tracing import trace_network
from networks.digits import digits_resnet
from patterns.library import PatternLibrary
from pruning.plan import Decision, PruningPlan

SMALL = ("+network.width=4", "+network.blocks=[1,1,1]")


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    network = digits_resnet(width=4, blocks=(1, 1, 1)).eval()
    return network, trace_network(network, torch.zeros(1, 1, 8, 8))


def test_longest_paths_take_the_longer_branch():
    # 0 -> 1 -> 2 -> 3 with a short cut 0 -> 3 and a branch 0 -> 4 -> 5
    edges = [(0, 1), (1, 2), (2, 3), (0, 3), (0, 4), (4, 5)]
    assert longest_paths(6, edges) == [0, 1, 2, 3, 1, 2]


@pytest.mark.parametrize(
    ("lengths", "most", "rows"),
    [
        ([3, 3, 4, 4], 18, [(0, 4)]),
        ([17, 15, 15, 2], 18, [(0, 1), (1, 2), (2, 4)]),
        ([5, 5, 5, 5], 15, [(0, 2), (2, 4)]),  # two rows of 10, not of 15 and 5
        ([20, 2], 18, [(0, 1), (1, 2)]),
    ],
)
def test_rows_are_few_and_even(lengths, most, rows):
    assert pack(lengths, most) == rows


def test_every_edge_leads_on_and_no_two_feature_maps_share_a_place(small):
    _, graph = small
    for columns in (4, 18):
        layout = lay_out(graph, columns)
        places = [(spot.row, spot.column, spot.lane) for spot in layout.spots]
        assert len(set(places)) == len(graph.feature_maps)
        assert max(layout.row_lengths) <= columns
        for edge in graph.edges:
            assert places[edge.source][:2] < places[edge.target][:2]
    stages = lay_out(graph, 18).stages
    assert [stage.size for stage in stages] == [(8, 8), (4, 4), (2, 2), (1, 1)]


def test_a_branch_of_its_own_gets_a_lane():
    network = digits_resnet(width=4, blocks=(1, 1, 1), shortcut="B").eval()
    graph = trace_network(network, torch.zeros(1, 1, 8, 8))
    layout = lay_out(graph)
    lanes = {
        node.name: spot.lane for node, spot in zip(graph.feature_maps, layout.spots, strict=True)
    }
    assert {name for name, lane in lanes.items() if lane} == {
        name for name in lanes if "shortcut" in name
    }
    assert any(lanes.values())


def test_the_unpruned_network_is_drawn_whole(small):
    _, graph = small
    picture = picture_of(graph, unpruned_plan(graph))
    assert picture.kept == tuple(len(node.units) for node in graph.feature_maps)
    assert picture.labels == ()
    assert picture.relative_macs == 1.0
    classifier = picture.stripes[-1]
    assert [(stripe.label, stripe.share) for stripe in classifier] == [(STAYS, pytest.approx(1.0))]


def test_channels_and_shapes_of_a_plan_are_found(small):
    _, graph = small
    inner = graph.group("layer1.0.conv1")
    other = graph.group("layer2.0.conv1")
    library = PatternLibrary.from_specs(
        [
            {"family": "dense"},
            {"family": "channel", "ratio": 0.5},
            {"family": "kernel_shape", "shape": "plus"},
        ]
    )
    plan = PruningPlan(
        graph=graph.fingerprint,
        decisions=(
            Decision(inner.name, pattern="channel_0.5"),
            Decision(other.name, pattern="plus"),
        ),
        keep={
            group.name: tuple(range(group.size // 2 if group is inner else group.size))
            for group in graph.groups
        },
        masks=((f"{other.name}@{other.name}", "plus"),),
        patterns=tuple(library.specs),
    )
    picture = picture_of(graph, plan)
    kept = dict(zip((node.name for node in graph.feature_maps), picture.kept, strict=True))
    assert kept[inner.name] == inner.size // 2
    assert kept[other.name] == other.size
    stripes = dict(zip((op.name for op in graph.operators), picture.stripes, strict=True))
    assert [stripe.label for stripe in stripes[inner.name]] == ["channel_0.5"]
    assert [stripe.label for stripe in stripes[other.name]] == ["plus"]
    assert {stripe.label for stripe in stripes["conv1"]} == {KEPT}
    assert picture.shapes["plus"] == ("#.#", "...", "#.#")
    assert (picture.groups["plus"], picture.groups[KEPT]) == (1, len(graph.groups) - 2)


def test_ratios_are_drawn_in_ranges(small):
    _, graph = small
    unpruned = unpruned_plan(graph)
    decisions = tuple(
        Decision(group.name, ratio=ratio)
        for group, ratio in zip(graph.groups, (0.0, 0.25, 0.26, 0.99), strict=False)
    )
    picture = picture_of(graph, PruningPlan(unpruned.graph, decisions, unpruned.keep))
    assert picture.labels == (
        "0% to 25% of the channels",
        "25% to 50% of the channels",
        "75% to 100% of the channels",
    )


def test_a_random_plan_depends_on_the_seed_alone(small):
    network, graph = small
    library = PatternLibrary.from_specs(
        [{"family": "channel", "ratio": 0.5}, {"family": "kernel_shape", "shape": "plus"}]
    )
    plans = [random_plan(network, graph, library, seed) for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert len(plans[0].decisions) == len(graph.groups)


def test_pictures_are_written(tmp_path, capsys):
    png, svg = tmp_path / "graph.png", tmp_path / "graph.svg"
    assert draw_graph.main([*SMALL, "patterns=mixed", str(png)]) == 0
    assert "patterns" in capsys.readouterr().out
    pixels = image.imread(png)
    assert pixels[..., :3].std() > 0.05
    assert draw_graph.main([*SMALL, "plan=none", str(svg), "--columns=5"]) == 0
    text = svg.read_text()
    assert "layer3.0.conv2" in text
    assert "cannot be removed" in text


def test_the_plan_of_a_run_needs_no_network(tmp_path, small, capsys):
    network, graph = small
    library = PatternLibrary.from_specs([{"family": "channel", "ratio": 0.5}])
    plan = tmp_path / "plan.json"
    plan.write_text(random_plan(network, graph, library, 0).to_json())
    (tmp_path / "graph.json").write_text(graph.to_json())
    out = tmp_path / "out.png"
    assert draw_graph.main([f"plan={plan}", str(out)]) == 0
    assert out.stat().st_size > 1000
    with pytest.raises(ValueError, match="The plan is for the network graph"):
        draw_graph.main([f"plan={plan}", "+network.width=8", str(out)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["network=digits_resnet"], r"ends in \.png, \.svg or \.pdf, got no file"),
        (["a.png", "b.png"], r"got a\.png b\.png"),
        (["a.jpeg"], r"got a\.jpeg"),
        (["none/a.png"], "There is no folder none"),
        (["a.png", "plan=none", "plan=random"], "Give one plan=FILE"),
        (["a.png", "--columns=1"], "--columns must be 2 or more, got 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        draw_graph.main(arguments)
    assert list(tmp_path.iterdir()) == []
