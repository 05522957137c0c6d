import errno
import json
import sys
import types

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import networks
from graphs.network_graph import NetworkGraph
from graphs.tracing import trace_network
from networks.data import SampleSet
from networks.digits import digits_resnet
from pruning.artefact import ARTEFACT_FORMAT, load_pruned, save_pruned
from pruning.fine_tuning import fine_tune
from pruning.keep_set import KeepSet
from pruning.plan import Decision, PruningPlan
from pruning.slimming import Slimmer

TARGET = "networks.digits.digits_resnet"
KWARGS = {"width": 4, "blocks": [1, 1, 1]}
INPUTS = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))


class Pruned:
    """A small residual network, pruned to half of every group."""

    def __init__(self, network, ratio=0.5):
        self.network = network.eval()
        self.graph = trace_network(network, INPUTS[:1])
        keep = KeepSet.from_ratios(self.graph, {group.name: ratio for group in self.graph.groups})
        self.plan = PruningPlan(
            graph=self.graph.fingerprint,
            decisions=tuple(Decision(group.name, ratio=ratio) for group in self.graph.groups),
            keep={g.name: tuple(keep.kept(g.name).tolist()) for g in self.graph.groups},
        )
        self.slim = Slimmer(network, self.graph).materialize(keep).eval()

    def save(self, path, **changes):
        arguments = {"target": TARGET, "kwargs": KWARGS, "graph": self.graph, "plan": self.plan}
        network = changes.pop("network", self.slim)
        save_pruned(path, network, **{**arguments, **changes})
        return path


@pytest.fixture
def pruned():
    torch.manual_seed(0)
    return Pruned(digits_resnet(**KWARGS))


@pytest.fixture
def path(pruned, tmp_path):
    return pruned.save(tmp_path / "pruned.safetensors")


def rewrite(path, **metadata):
    """Change metadata of a file; None removes an entry."""
    with safetensors.safe_open(path, framework="pt") as file:
        entries = {**file.metadata(), **metadata}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    entries = {name: value for name, value in entries.items() if value is not None}
    path.write_bytes(safetensors.torch.save(tensors, entries))
    return path


# ---- round trip


def test_a_pruned_network_comes_back_with_the_same_outputs(pruned, path):
    loaded = load_pruned(path)
    assert not loaded.training
    assert sum(p.numel() for p in loaded.parameters()) < sum(
        p.numel() for p in pruned.network.parameters()
    )
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS), pruned.slim(INPUTS))
    assert loaded.state_dict().keys() == pruned.slim.state_dict().keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, pruned.slim.state_dict()[name]), name


def test_a_fine_tuned_network_with_zeros_comes_back_exactly(pruned, tmp_path):
    name = "conv1.weight" if "conv1.weight" in pruned.slim.state_dict() else None
    name = name or next(n for n, p in pruned.slim.named_parameters() if p.dim() == 4)
    mask = torch.zeros_like(pruned.slim.get_parameter(name), dtype=torch.bool)
    mask[..., 0] = True
    fine_tune(
        pruned.slim, SampleSet(INPUTS, torch.tensor([0, 1, 2])), masks={name: mask},
        epochs=2, learning_rate=0.1, momentum=0.9, weight_decay=0.0, batch_size=3,
        nesterov=True, label_smoothing=0.0, seed=0,
    )  # fmt: skip
    loaded = load_pruned(pruned.save(tmp_path / "tuned.safetensors"))
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS), pruned.slim(INPUTS))
    assert (loaded.get_parameter(name)[~mask] == 0).all()


def test_a_foreign_network_is_rebuilt_from_the_one_that_is_passed(tmp_path):
    torch.manual_seed(0)
    foreign = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
    )
    pruned = Pruned(foreign)
    path = pruned.save(tmp_path / "foreign.safetensors", target="my_package.build", kwargs={})
    with pytest.raises(ValueError, match=r"'my_package.build'.*load_pruned\(path, network="):
        load_pruned(path)
    other_weights = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
    )
    before = {name: value.clone() for name, value in other_weights.state_dict().items()}
    loaded = load_pruned(path, network=other_weights)
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS), pruned.slim(INPUTS))
    assert loaded is not other_weights
    assert all(torch.equal(value, before[n]) for n, value in other_weights.state_dict().items())
    assert other_weights[0].out_channels == 6


def test_tied_weights_are_saved_and_tied_again(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(64, 6), nn.Linear(6, 64)
            self.head = nn.Linear(64, 6)
            self.head.weight = self.up.weight
            self.out = nn.Linear(6, 2)

        def forward(self, x):
            return self.out(torch.relu(self.head(self.down(torch.relu(self.up(x.flatten(1)))))))

    torch.manual_seed(0)
    pruned = Pruned(Tied())
    path = pruned.save(tmp_path / "tied.safetensors", target="my.Tied", kwargs={})
    loaded = load_pruned(path, network=Tied())
    assert loaded.head.weight is loaded.up.weight
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS), pruned.slim(INPUTS))


def test_the_file_alone_says_what_it_is(pruned, path):
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == ARTEFACT_FORMAT
    assert json.loads(metadata["builder"]) == {"target": TARGET, "kwargs": KWARGS}
    assert json.loads(metadata["input_shapes"]) == [[1, 1, 8, 8]]
    assert NetworkGraph.from_json(metadata["graph"]) == pruned.graph
    assert PruningPlan.from_json(metadata["plan"]) == pruned.plan


def test_loading_leaves_the_random_numbers_alone(path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_pruned(path)
    assert torch.equal(torch.rand(1), expected)


# ---- refusals when saving


def test_weights_that_the_plan_did_not_make_are_refused(pruned, tmp_path):
    path = tmp_path / "pruned.safetensors"
    with pytest.raises(ValueError, match=r"has \d+ positions, the plan leaves \d+"):
        pruned.save(path, network=pruned.network)
    assert not path.exists()


def test_a_plan_of_another_graph_is_refused(pruned, tmp_path):
    other = Pruned(digits_resnet(width=6))
    with pytest.raises(ValueError, match=f"belongs to graph {other.graph.fingerprint}"):
        pruned.save(tmp_path / "pruned.safetensors", plan=other.plan)


@pytest.mark.parametrize("value", [object(), torch.zeros(1), float("nan")])
def test_builder_arguments_that_are_not_json_are_refused(pruned, tmp_path, value):
    with pytest.raises(ValueError, match=r"arguments of networks.digits.digits_resnet cannot"):
        pruned.save(tmp_path / "pruned.safetensors", kwargs={"width": value})


# ---- refusals when loading


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_damaged_file_is_refused(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        ValueError, match=r"pruned.safetensors is damaged or not a safetensors file"
    ):
        load_pruned(path)


def test_a_pickle_is_refused_without_being_read(tmp_path):
    path = tmp_path / "pruned.safetensors"
    torch.save(nn.Linear(1, 1), path)
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        load_pruned(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no pruned network at .*nothing.safetensors"):
        load_pruned(tmp_path / "nothing.safetensors")


def test_plain_weights_without_metadata_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"not a pruned network of format .*found None"):
        load_pruned(path)


def test_another_format_is_refused(path):
    with pytest.raises(ValueError, match="found 'topiary-pruned-99'"):
        load_pruned(rewrite(path, format="topiary-pruned-99"))


@pytest.mark.parametrize("entry", ["builder", "graph", "plan", "input_shapes"])
def test_missing_metadata_is_named(path, entry):
    with pytest.raises(ValueError, match=f"lacks the metadata {entry}"):
        load_pruned(rewrite(path, **{entry: None}))


@pytest.mark.parametrize("entry", ["builder", "graph", "plan"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}'])
def test_metadata_that_cannot_be_read_is_refused(path, entry, text):
    with pytest.raises(ValueError, match="holds metadata that cannot be read"):
        load_pruned(rewrite(path, **{entry: text}))


def builder(target, **kwargs):
    return json.dumps({"target": target, "kwargs": kwargs})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.exec",
        "torch.hub.load",
        "networks",
        "networks.digits",
        "networks..digits.digits_resnet",
        "networks.digits.digits_resnet.__globals__",
        "networks.digits.np.save",
        "networks.digits.SampleSet",
        "networks.digits.digits_splits",
        "networks.digits.ResNet",
        "networks.checkpoints.load_checkpoint",
        "networks.nothing.build",
        "networks.digits.nothing",
        "envs.pruning_env.PruningEnv",
        "",
    ],
)
def test_only_network_builders_of_topiary_are_called(path, target):
    with pytest.raises(ValueError, match=r"is not a network builder of Topiary.*network=\.\.\."):
        load_pruned(rewrite(path, builder=builder(target, command="true")))


def test_modules_outside_topiary_are_not_even_imported(path, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("evil.build", "networks.digits.evil.build", "networks.evil.build"):
        with pytest.raises(ValueError, match="not a network builder"):
            load_pruned(rewrite(path, builder=builder(target)))
    assert "evil" not in sys.modules


def test_a_foreign_function_that_lies_in_a_topiary_module_is_not_called(path, monkeypatch):
    module = types.ModuleType("networks.planted")

    def build() -> nn.Module:
        raise AssertionError("executed")

    module.build = build  # its __module__ is this test, not networks.planted
    monkeypatch.setitem(sys.modules, "networks.planted", module)
    monkeypatch.setattr(networks, "planted", module, raising=False)
    with pytest.raises(ValueError, match="not a network builder"):
        load_pruned(rewrite(path, builder=builder("networks.planted.build")))


def test_arguments_the_builder_does_not_take_are_refused(path):
    with pytest.raises(ValueError, match=r"names arguments that networks.digits.digits_resnet"):
        load_pruned(rewrite(path, builder=builder(TARGET, colour="red")))


def test_a_network_of_another_shape_is_refused(path):
    wide = {**KWARGS, "width": 8}
    with pytest.raises(ValueError, match=r"does not fit the ResNet: .* the unpruned network had"):
        load_pruned(rewrite(path, builder=builder(TARGET, **wide)))
    with pytest.raises(ValueError, match="does not fit the Linear"):
        load_pruned(path, network=nn.Linear(2, 2))


# ---- writing


def test_a_full_disk_leaves_neither_half_a_file_nor_a_lost_one(pruned, path, tmp_path, monkeypatch):
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for name in (path.name, "second.safetensors"):
        with pytest.raises(OSError, match="No space left"):
            pruned.save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_killed_write_leaves_the_old_file(pruned, path, monkeypatch):
    before = path.read_bytes()

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        pruned.save(path)
    assert path.read_bytes() == before


def test_missing_folders_are_made(pruned, tmp_path):
    path = pruned.save(tmp_path / "runs" / "first" / "pruned.safetensors")
    assert load_pruned(path) is not None
