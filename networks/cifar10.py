"""CIFAR-10 from its official python files, read without executing anything they contain."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import tempfile
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from networks.data import DataSplits, SampleSet, split_training_set

FOLDER = "cifar-10-batches-py"
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
TRAIN_FILES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
TEST_FILES = {"test_batch": "40351d587109b95175f43aff81a1287e"}
"""File names with their official md5."""

IMAGES_PER_FILE = 10_000
NUM_CLASSES = 10
_TIMEOUT_SECONDS = 60


def cifar10_splits(
    root: str | Path = "data",
    reward_size: int = 1000,
    calibration_size: int = 250,
    download: bool = False,
    seed: int = 0,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> DataSplits:
    """Load CIFAR-10 and cut the reward and the calibration split from its training set.

    Networks are usually trained on all 50,000 training images, so their accuracy on the reward
    split is close to 1 before pruning; the reward then measures what pruning destroys, not how well
    the network generalises.

    Args:
        root: the folder cifar-10-batches-py, or the folder that holds it.
        reward_size: training images of the reward split, stratified.
        calibration_size: training images of the calibration split, stratified.
        download: fetch the official archive (170 MB) into `root` when the files are not there.
        seed: of the splits, on purpose apart from the seed of a run: all runs share their splits.
        mean: per colour, in units of x / 255; the default is what the public checkpoints expect.
        std: per colour, in units of x / 255.

    Returns:
        Splits with uint8 inputs (N, 3, 32, 32) and int64 targets in [0, 10).

    Raises:
        ValueError: when the files are missing, cannot be fetched, or are not CIFAR-10.
    """
    folder = _find_folder(Path(root).expanduser(), download)
    mean, std = tuple(mean), tuple(std)
    train_images, train_labels, foreign = _read_files(folder, TRAIN_FILES)
    test_images, test_labels, foreign_test = _read_files(folder, TEST_FILES)
    if foreign + foreign_test:
        warnings.warn(
            f"md5 of {', '.join(foreign + foreign_test)} in {folder} is not the official one. "
            "Shape, number and labels of the images are right, so they are used; check where the "
            "files come from.",
            stacklevel=2,
        )
    train = SampleSet(train_images, train_labels, mean, std)
    test = SampleSet(test_images, test_labels, mean, std)
    return split_training_set(
        train,
        test,
        name="cifar10",
        num_classes=NUM_CLASSES,
        calibration_size=calibration_size,
        reward_size=reward_size,
        seed=seed,
    )


def _find_folder(root: Path, download: bool) -> Path:
    candidates = (root, root / FOLDER)
    names = (*TRAIN_FILES, *TEST_FILES)
    for folder in candidates:
        if all((folder / name).is_file() for name in names):
            return folder
    if download:
        return _download(root)
    partial = [folder for folder in candidates if any((folder / name).exists() for name in names)]
    if partial:
        missing = [name for name in names if not (partial[0] / name).is_file()]
        raise ValueError(f"CIFAR-10 in {partial[0]} is incomplete: {', '.join(missing)} missing.")
    raise ValueError(
        f"No CIFAR-10 python files in {root.absolute()}. Set data.root to the folder {FOLDER} or "
        "to the folder that holds it, or set data.download=true to fetch the official archive."
    )


def _read_files(
    folder: Path, files: dict[str, str]
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Read, check and join some of the files.

    Returns:
        Images (N, 3, 32, 32) uint8, labels (N,) int64, names of the files with another md5.
    """
    images, labels, foreign = [], [], []
    for name, md5 in files.items():
        content = (folder / name).read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            foreign.append(name)
        file_images, file_labels = _read_batch(content, folder / name)
        images.append(file_images)
        labels.append(file_labels)
    joined = np.concatenate(images).reshape(-1, 3, 32, 32)
    return torch.from_numpy(joined), torch.from_numpy(np.concatenate(labels)), foreign


def _read_batch(content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        # "bytes", because the official files come from Python 2 and hold pixels in its strings.
        batch = _DataUnpickler(io.BytesIO(content), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is not a CIFAR-10 batch: {error}. Replace the file.") from error
    except Exception as error:  # a damaged pickle may fail with almost any exception
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}). Replace the file."
        ) from error
    if not isinstance(batch, dict):
        raise ValueError(f"{path} is not a CIFAR-10 batch: it holds a {type(batch).__name__}.")
    entries = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in batch.items()}
    data, labels = entries.get("data"), entries.get("labels")
    if not isinstance(data, _StoredArray) or not isinstance(labels, list):
        raise ValueError(
            f"{path} is not a CIFAR-10 batch: it needs an array 'data' and a list 'labels', "
            f"found the keys {sorted(map(str, entries))}."
        )
    try:
        images = data.decode()
    except ValueError as error:
        raise ValueError(f"{path} is not a CIFAR-10 batch: {error}.") from error
    expected = (IMAGES_PER_FILE, 3 * 32 * 32)
    if images.shape != expected or len(labels) != expected[0]:
        raise ValueError(
            f"{path} must hold {expected[0]} images and labels, data of shape {expected}; "
            f"found shape {images.shape} and {len(labels)} labels."
        )
    wrong = [n for n in labels if not (isinstance(n, int) and 0 <= n < NUM_CLASSES)]
    if wrong:
        raise ValueError(f"{path} has labels outside of [0, {NUM_CLASSES}): {wrong[:3]}.")
    return images, np.array(labels, dtype=np.int64)


class _StoredDtype:
    """Stands in for a numpy dtype; keeps its code."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and the like: the only accepted type has one byte."""


class _StoredArray:
    """Stands in for a numpy array; keeps its shape, type and bytes."""

    def __init__(self, *state: Any) -> None:
        self.state: tuple[Any, ...] = state

    def __setstate__(self, state: Any) -> None:
        """Keep what numpy's own unpickling would have been given."""
        _, shape, dtype, is_fortran, content = state
        self.state = (content, dtype, shape, "F" if is_fortran else "C")

    def decode(self) -> np.ndarray:
        """Build the array of uint8 from the stored bytes."""
        content, dtype, shape, order = self.state
        code = getattr(dtype, "code", dtype)
        if code not in ("u1", b"u1"):
            raise ValueError(f"its array has type {code!r}, not uint8")
        array = np.frombuffer(content, dtype=np.uint8)
        return np.reshape(array, shape, order=order)


def _reconstruct(*_: object) -> _StoredArray:
    return _StoredArray()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _StoredArray,
    ("numpy", "dtype"): _StoredDtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _StoredArray,
    ("numpy._core.numeric", "_frombuffer"): _StoredArray,
    # Python 3 writes bytes this way into the older protocols.
    ("_codecs", "encode"): _encode,
}


class _DataUnpickler(pickle.Unpickler):
    """Reads plain data and arrays; every name in the file leads to a stand-in or is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name; nothing is ever imported.

        Raises:
            UnpicklingError: when the file asks for anything but an array.
        """
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is no part of image data; nothing was executed"
            ) from None


def _download(root: Path) -> Path:
    """Fetch the official archive, check it, and write the batches of images below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root) as archive:
        digest = hashlib.md5(usedforsecurity=False)
        try:
            with urllib.request.urlopen(URL, timeout=_TIMEOUT_SECONDS) as response:
                while chunk := response.read(1 << 20):
                    digest.update(chunk)
                    archive.write(chunk)
        except OSError as error:
            raise ValueError(
                f"Could not download {URL} ({error}). Fetch it on a machine with network access, "
                "unpack it, and set data.root to the folder (data.download=false)."
            ) from error
        if digest.hexdigest() != ARCHIVE_MD5:
            raise ValueError(
                f"{URL} arrived damaged: md5 {digest.hexdigest()} instead of {ARCHIVE_MD5}. "
                "Try data.download=true again."
            )
        archive.seek(0)
        return _extract(archive, root)


def _extract(archive: Any, root: Path) -> Path:
    """Write the known files of the archive; no path inside the archive is ever followed."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{FOLDER}/{name}": name for name in (*TRAIN_FILES, *TEST_FILES)}
    with tarfile.open(fileobj=archive, mode="r:gz") as tar:
        for member in tar:
            if member.name not in wanted or not member.isreg():
                continue
            content = tar.extractfile(member)
            assert content is not None  # regular files have content
            part = folder / f"{wanted[member.name]}.part"
            part.write_bytes(content.read())
            os.replace(part, folder / wanted[member.name])
    missing = [name for name in wanted.values() if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"The archive lacks {', '.join(missing)}; nothing else was unpacked.")
    return folder
