import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from graphs.tracing import trace_network
from networks.resnet import cifar_resnet
from networks.vit import vit
from pruning.export import ExportMismatch, export_onnx, export_program
from pruning.keep_set import KeepSet
from pruning.latency import measure_latency_onnx
from pruning.onnx_runtime import open_onnx
from pruning.slimming import Slimmer

BUILDERS = {
    "resnet": lambda: cifar_resnet(20),
    "vit": lambda: vit(image_size=16, dim=48, depth=2, heads=3),
}
SIZES = {"resnet": 32, "vit": 16}


def needs_extra():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the optional dependencies: pip install '.[export]'")


def images(count, size, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def prune_at_random(network, inputs):
    """Keeps a random number of random channels of every group."""
    random = np.random.default_rng(0)
    graph = trace_network(network, inputs[:1])
    ratios = {group.name: float(random.uniform(0.0, 0.7)) for group in graph.groups}
    scores = {group.name: random.random(group.size) for group in graph.groups}
    keep = KeepSet.from_ratios(graph, ratios, scores)
    assert not keep.mask.all()
    return Slimmer(network, graph).materialize(keep).eval()


def randomise_batch_norms(network):
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)


@pytest.fixture(scope="module", params=BUILDERS)
def pruned(request):
    torch.manual_seed(0)
    network = BUILDERS[request.param]().eval()
    randomise_batch_norms(network)
    inputs = images(3, SIZES[request.param])
    return prune_at_random(network, inputs), inputs


@pytest.fixture
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


def relative_difference(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


# ---- parity


def test_a_pruned_network_gives_the_same_outputs_in_onnxruntime_at_any_batch_size(
    pruned, tmp_path, capfd
):
    needs_extra()
    network, inputs = pruned
    path = tmp_path / "new" / "pruned.onnx"
    report = export_onnx(network, inputs, path)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert 0 <= report.difference <= 1e-5
    assert report.path == path
    assert report.size == path.stat().st_size
    assert (report.num_given, report.num_random) == (3, 4)
    assert report.opset >= 18
    assert [file.name for file in path.parent.iterdir()] == ["pruned.onnx"]
    exported = open_onnx(path)
    for count in (1, 2, 7):
        batch = images(count, inputs.shape[-1], seed=count)
        (found,) = exported(batch)
        with torch.no_grad():
            assert relative_difference(found, network(batch)) <= 1e-5


def test_a_pruned_network_comes_back_from_a_program_at_any_batch_size(pruned, tmp_path, capfd):
    network, inputs = pruned
    path = tmp_path / "pruned.pt2"
    report = export_program(network, inputs, path)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert report.difference <= 1e-5
    assert report.opset is None
    assert report.size == path.stat().st_size
    exported = torch.export.load(path).module()
    for count in (1, 2, 7):
        batch = images(count, inputs.shape[-1], seed=count)
        with torch.no_grad():
            assert relative_difference(exported(batch), network(batch)) <= 1e-5


def test_one_sample_is_enough_for_any_batch_size(small, tmp_path):
    path = tmp_path / "small.pt2"
    assert export_program(small, images(1, 6), path).num_random == 2
    assert torch.export.load(path).module()(images(5, 6)).shape == (5, 5)


def test_the_network_is_exported_in_eval_mode_and_keeps_its_own(tmp_path):
    network = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    path = tmp_path / "dropout.pt2"
    assert export_program(network, torch.ones(2, 4), path).difference == 0.0
    assert network.training
    assert network[1].training


def test_two_inputs_and_two_outputs_keep_their_order(tmp_path):
    needs_extra()

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 3)

        def forward(self, numbers, features):
            return {"sum": self.embedding(numbers) + features, "double": 2 * features}

    numbers, features = torch.tensor([0, 6, 3]), torch.randn(3, 3)
    path = tmp_path / "two.onnx"
    report = export_onnx(Two().eval(), (numbers, features), path)
    assert report.difference <= 1e-5
    assert torch.equal(open_onnx(path)(numbers, features)[1], 2 * features)
    with pytest.raises(ValueError, match=r"has 2 inputs .*, got 1"):
        open_onnx(path)(numbers)


def test_a_program_file_holds_none_of_the_samples(small, tmp_path):
    path = tmp_path / "small.pt2"
    marked = torch.full((2, 3, 6, 6), 0.123456)
    export_program(small, marked, path)
    with zipfile.ZipFile(path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert np.float32(0.123456).tobytes() * 4 not in content


# ---- refusals


@pytest.mark.parametrize(
    ("wrong", "difference"),
    [
        (lambda outputs: outputs * 1.001, r"1\.0e-03"),
        (lambda outputs: outputs * float("nan"), "nan"),
        (lambda outputs: outputs[:1], "inf"),
    ],
)
@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_a_file_with_other_outputs_is_deleted(export, wrong, difference, small, tmp_path):
    if export is export_onnx:
        needs_extra()
    path = tmp_path / "pruned.file"
    path.write_text("of an earlier network")
    with pytest.raises(ExportMismatch, match=rf"pruned\.file.*differ by {difference} of.*deleted"):
        export(small, images(2, 6), path, open_file=lambda file: lambda x: wrong(small(x)))
    assert list(tmp_path.iterdir()) == []


def test_other_outputs_at_another_batch_size_alone_are_found(small, tmp_path):
    def reopened(inputs):
        return small(inputs) + (len(inputs) != 2)

    with pytest.raises(ExportMismatch, match="on random inputs they differ"):
        export_program(small, images(2, 6), tmp_path / "a.pt2", open_file=lambda file: reopened)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_depends_on_values_is_refused_and_leaves_nothing(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="The Branching cannot be exported for any batch size"):
        export_program(Branching(), torch.ones(2, 3), tmp_path / "branching.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_not_on_the_cpu_is_refused(tmp_path):
    network = nn.Linear(2, 2, device="meta")
    with pytest.raises(ValueError, match=r"on meta\. Call network.cpu\(\)"):
        export_program(network, torch.ones(2, 2), tmp_path / "a.pt2")


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_way_to_install_it(name, small, tmp_path, monkeypatch):
    if name != "onnx":
        needs_extra()
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"'{name}'.*pip install -e \"\.\[export\]\""):
        export_onnx(small, images(2, 6), tmp_path / "small.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_onnx_is_refused(tmp_path):
    needs_extra()
    path = tmp_path / "text.onnx"
    with pytest.raises(FileNotFoundError, match=r"no ONNX file at .*text\.onnx"):
        open_onnx(path)
    path.write_text("text")
    with pytest.raises(ValueError, match=r"onnxruntime cannot run .*text\.onnx"):
        open_onnx(path)


# ---- latency


def test_latency_in_onnxruntime_names_its_circumstances(small, tmp_path):
    needs_extra()
    path = tmp_path / "small.onnx"
    export_onnx(small, images(2, 6), path)
    threads = torch.get_num_threads()
    latency = measure_latency_onnx(path, images(8, 6), threads=2, min_run_time=0.01)
    assert 0.0 < latency.median_ms < 100.0
    assert latency.iqr_ms >= 0.0
    assert (latency.batch, latency.threads) == (8, 2)
    assert latency.runtime.startswith("onnxruntime 1.")
    assert latency.processor
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("name", "value"), [("threads", 0), ("min_run_time", 0.0)])
def test_latency_refuses_values_out_of_range(name, value, tmp_path):
    with pytest.raises(ValueError, match=name):
        measure_latency_onnx(tmp_path / "a.onnx", images(1, 6), **{name: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "size"), [(lambda: cifar_resnet(56), 32), (vit, 32)], ids=["resnet56", "vit"]
)
def test_networks_of_their_real_size_are_exported(build, size, tmp_path):
    needs_extra()
    torch.manual_seed(0)
    network = build().eval()
    randomise_batch_norms(network)
    slim = prune_at_random(network, images(2, size))
    report = export_onnx(slim, images(2, size), tmp_path / "pruned.onnx")
    print(f"\n{type(network).__name__}: differs by {report.difference:.1e}")
    assert report.difference <= 1e-5
