"""The CIFAR-10 reader, on small files of the official layout."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest

from networks import cifar10
from networks.checkpoints import load_checkpoint
from networks.cifar10 import FOLDER, TEST_FILES, TRAIN_FILES, cifar10_splits
from networks.resnet import cifar_resnet
from networks.training import accuracy

COUNT = 20


def batch(seed: int) -> dict:
    pixels = np.random.default_rng(seed).integers(0, 256, (COUNT, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": [i % 10 for i in range(COUNT)], "batch_label": "a batch"}


def python2_pickle(content: dict) -> bytes:
    """What Python 2 wrote into the official files: strings of bytes, in protocol 2."""
    array = content["data"]
    raw = array.tobytes()
    out = b"\x80\x02}(U\x06labels]("
    out += b"".join(b"K" + bytes([label]) for label in content["labels"])
    out += b"eU\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    out += b"(K\x01K" + bytes([array.shape[0]]) + b"M" + array.shape[1].to_bytes(2, "little")
    out += b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    out += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    out += b"T" + len(raw).to_bytes(4, "little") + raw + b"tbu."
    return out


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder of small batches, each written in another way."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", COUNT)
    folder = tmp_path / FOLDER
    folder.mkdir()
    for seed, name in enumerate((*TRAIN_FILES, *TEST_FILES)):
        content = python2_pickle(batch(seed)) if seed == 0 else pickle.dumps(batch(seed), seed)
        (folder / name).write_bytes(content)
    return tmp_path


def load(root: Path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cifar10_splits(root, **{"reward_size": 20, "calibration_size": 10, **options})


def test_images_and_labels_are_read_exactly_from_every_pickle_protocol(root):
    data = load(root)
    assert (len(data.search.train), len(data.test)) == (5 * COUNT - 30, COUNT)
    expected = np.concatenate([batch(seed)["data"] for seed in range(5)]).reshape(-1, 3, 32, 32)
    for name in ("train", "calibration", "reward"):
        samples, indices = getattr(data.search, name), list(data.indices[name])
        assert np.array_equal(samples.inputs.numpy(), expected[indices])
        assert samples.targets.tolist() == [i % 10 for i in indices]
    assert np.array_equal(data.test.inputs.numpy().reshape(COUNT, -1), batch(5)["data"])


def test_the_hand_written_python_2_pickle_is_what_pickle_reads(root):
    content = pickle.loads(python2_pickle(batch(0)), encoding="bytes")
    assert np.array_equal(content[b"data"], batch(0)["data"])
    assert content[b"labels"] == batch(0)["labels"]


def test_reward_and_calibration_are_stratified_and_follow_their_seed_only(root):
    data = load(root)
    assert data.search.reward.targets.bincount().tolist() == [2] * 10
    assert data.search.calibration.targets.bincount().tolist() == [1] * 10
    assert data.indices == load(root).indices
    assert data.indices != load(root, seed=1).indices


def test_the_folder_itself_is_accepted_as_root(root):
    assert load(root / FOLDER).indices == load(root).indices


def test_batches_are_normalised_with_the_statistics_of_the_public_checkpoints(root):
    samples = load(root).test
    inputs, _ = next(samples.batches(COUNT))
    mean = np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    std = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    expected = (samples.inputs.numpy() / 255 - mean) / std
    np.testing.assert_allclose(inputs.numpy(), expected, atol=1e-5)


def test_a_foreign_md5_is_one_warning(root):
    with pytest.warns(UserWarning, match="md5 of data_batch_1, .*test_batch") as caught:
        cifar10_splits(root, 20, 10)
    assert len(caught) == 1


def test_the_right_md5_is_silent(root, monkeypatch):
    for files in (TRAIN_FILES, TEST_FILES):
        for name in files:
            content = (root / FOLDER / name).read_bytes()
            monkeypatch.setitem(files, name, hashlib.md5(content).hexdigest())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cifar10_splits(root, 20, 10)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(root, protocol):
    mark = root / "executed"
    content = {**batch(0), "data": Malicious(mark)}
    (root / FOLDER / "data_batch_3").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match=r"data_batch_3 .* asks for (posix|nt)\.system"):
        load(root)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(V__import__('os')\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy\nload\n(Vsomewhere\ntR.",
        b"c_codecs\nencode\n(Vtext\nVrot13\ntR.",
        b"c_codecs\ndecode\n(Vtext\nVlatin1\ntR.",
    ],
    ids=["eval", "scalar", "numpy-load", "other-codec", "decode"],
)
def test_only_the_names_of_an_array_are_known(root, content):
    (root / FOLDER / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match="test_batch is not a CIFAR-10 batch: it asks for"):
        load(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"data": np.zeros((COUNT, 3071), np.uint8)}, r"found shape \(20, 3071\)", id="shape"
        ),
        pytest.param({"data": np.zeros((19, 3072), np.uint8)}, r"must hold 20 images", id="count"),
        pytest.param({"data": np.zeros((COUNT, 3072))}, r"type 'f8', not uint8", id="dtype"),
        pytest.param({"data": [1, 2]}, "needs an array 'data'", id="no-array"),
        pytest.param({"labels": [0] * 19}, "and 19 labels", id="labels"),
        pytest.param(
            {"labels": [0] * 19 + [10]}, r"labels outside of \[0, 10\): \[10\]", id="range"
        ),
        pytest.param({"labels": [0] * 19 + ["cat"]}, "labels outside", id="label-type"),
    ],
)
def test_files_that_are_not_cifar10_are_refused_by_name(root, change, message):
    (root / FOLDER / "data_batch_2").write_bytes(pickle.dumps({**batch(1), **change}))
    with pytest.raises(ValueError, match=message) as refusal:
        load(root)
    assert "data_batch_2" in str(refusal.value)


def test_a_cut_file_is_refused(root):
    path = root / FOLDER / "data_batch_1"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"data_batch_1 .*(damaged|not a CIFAR-10 batch)"):
        load(root)


def test_a_missing_folder_names_the_keys(tmp_path):
    with pytest.raises(ValueError, match=r"Set data\.root .* data\.download=true"):
        cifar10_splits(tmp_path / "nothing")


def test_an_incomplete_folder_names_the_missing_files(root):
    (root / FOLDER / "data_batch_4").unlink()
    with pytest.raises(ValueError, match="incomplete: data_batch_4 missing"):
        load(root)


def archive_of(root: Path, extra: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.add(root / FOLDER, FOLDER)
        for name, content in extra.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_a_download_is_checked_and_unpacks_only_the_known_files(root, tmp_path, monkeypatch):
    archive = archive_of(root, {"../escaped": b"x", f"{FOLDER}/other": b"x", "/absolute": b"x"})
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(cifar10.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(archive))
    target = tmp_path / "a" / "b"
    data = load(target, download=True)
    assert data.indices == load(root).indices
    written = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert written == {f"{FOLDER}/{name}" for name in (*TRAIN_FILES, *TEST_FILES)}
    assert not (tmp_path / "a" / "escaped").exists()


def test_files_that_are_there_are_not_downloaded_again(root, monkeypatch):
    monkeypatch.setattr(cifar10.urllib.request, "urlopen", lambda *_, **__: pytest.fail("fetched"))
    assert len(load(root, download=True).test) == COUNT


def test_a_damaged_download_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"junk"))
    with pytest.raises(ValueError, match="arrived damaged: md5"):
        cifar10_splits(tmp_path, download=True)


def test_no_network_names_the_keys(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(cifar10.urllib.request, "urlopen", refuse)
    with pytest.raises(ValueError, match=r"Could not download .*no route.* set data\.root"):
        cifar10_splits(tmp_path, download=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "file", "expected"),
    [(20, "resnet20-12fca82f.th", 0.9173), (56, "resnet56-4bfd9763.th", 0.9339)],
)
def test_the_public_checkpoints_reach_their_published_accuracy(depth, file, expected):
    folder = os.environ.get("TOPIARY_DATA")
    if not folder:
        pytest.skip("set TOPIARY_DATA to a folder with cifar-10-batches-py/ and checkpoints/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = cifar10_splits(folder)
    network = cifar_resnet(depth)
    load_checkpoint(network, Path(folder) / "checkpoints" / file)
    assert accuracy(network, data.test) == pytest.approx(expected, abs=5e-5)
