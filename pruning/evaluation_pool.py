"""Candidates measured by several processes at once; network and images lie in memory once."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor, nn

from pruning.evaluation import Evaluator, Outcome
from pruning.keep_set import KeepSet
from pruning.plan import Candidate

ALIGNMENT = 64
"""Bytes; every storage begins at a multiple, which suits every dtype and vector unit."""

PATIENCE = 5.0
"""Seconds that an idle worker is given to leave by itself."""

Question = tuple[np.ndarray, np.ndarray, tuple[Any, ...], int | None]
"""A candidate without what every worker knows: mask and counts of its keep-set, and its masks; and
how many images it is measured on."""


class WorkerFailed(ValueError):  # noqa: N818
    """A process that measures candidates raised an error, or died."""


class EvaluationPool:
    """Processes that measure candidates; each has one thread and an evaluator of its own.

    What a worker measures equals what the evaluator itself measures with one thread, to the bit.
    The tensors of the evaluator (weights and images) are put into shared memory once, however many
    workers there are; nothing of it has a name, so nothing is left when a process is killed.
    Workers are forked from a server that has imported torch and done nothing else.

    Args:
        evaluator: measures in the workers what it would measure here; on the CPU.
        workers: number of processes, at least 1.

    Raises:
        ValueError: too few workers, a network on another device, or something that cannot be sent
            to another process, such as a network or a metric defined inside a function.
    """

    def __init__(self, evaluator: Evaluator, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"vec_env.workers must be 1 or more to measure there, got {workers}.")
        payload, arena = pack(evaluator)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", __name__, "pruning.task"])
        self._members: list[tuple[BaseProcess, Connection]] = []
        try:
            for number in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work,
                    args=(payload, arena, theirs),
                    name=f"evaluation-{number}",
                    daemon=True,
                )
                process.start()
                theirs.close()
                self._members.append((process, ours))
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> EvaluationPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:  # perhaps in the middle of a measurement
            self._kill()

    @property
    def processes(self) -> tuple[BaseProcess, ...]:
        """The processes; none once the pool is closed."""
        return tuple(process for process, _ in self._members)

    def measure(
        self, candidates: Sequence[Candidate], images: Sequence[int] | None = None
    ) -> dict[Candidate, Outcome]:
        """Measure candidates side by side.

        Args:
            candidates: all different.
            images: how many images of the reward split each is measured on; None for all.

        Returns:
            The outcome of each, in the order of `candidates`. They are not counted here: see
            `Evaluator.prepare`.

        Raises:
            WorkerFailed: a worker raised an error or died; the pool is closed then.
        """
        outcomes: dict[Candidate, Outcome] = {}
        if not candidates:
            return outcomes
        if not self._members:
            raise WorkerFailed("The processes that measure candidates were ended before.")
        try:
            self._measure(candidates, images or [None] * len(candidates), outcomes)
        except BaseException:
            self._kill()
            raise
        return {candidate: outcomes[candidate] for candidate in candidates}

    def close(self) -> None:
        """End the processes; may be called again."""
        for _, connection in self._members:
            connection.close()  # a worker leaves when nobody can ask it any more
        for process, _ in self._members:
            process.join(PATIENCE)
        self._kill()

    def _measure(
        self,
        candidates: Sequence[Candidate],
        images: Sequence[int | None],
        outcomes: dict[Candidate, Outcome],
    ) -> None:
        waiting = deque(zip(candidates, images, strict=True))
        idle = deque(self._members)
        busy: dict[Connection, tuple[BaseProcess, Candidate]] = {}
        while waiting or busy:
            while waiting and idle:
                process, connection = idle.popleft()
                candidate, number = waiting.popleft()
                try:
                    connection.send(_question(candidate, number))
                except OSError:
                    raise _death(process) from None
                busy[connection] = (process, candidate)
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, candidate = busy.pop(ready)
                outcomes[candidate] = _answer(process, ready)
                idle.append((process, ready))

    def _kill(self) -> None:
        for process, connection in self._members:
            connection.close()
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
        self._members = []


def pack(value: Any) -> tuple[bytes, Tensor]:
    """An object in two parts: its pickle without tensors, and its tensors in shared memory.

    Args:
        value: any object; its tensors lie on the CPU.

    Returns:
        The pickle and uint8 memory of shape (bytes,), both for `unpack`.

    Raises:
        ValueError: it cannot be pickled, or a tensor lies elsewhere.
    """
    file = io.BytesIO()
    packer = _Packer(file)
    try:
        packer.dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"The network and its evaluation cannot be sent to another process: {error}. Define "
            "network, evaluation.metric and evaluation.loss at the top level of a module, or set "
            "vec_env=dummy."
        ) from error
    places: dict[int, int] = {}
    size = 0
    for tensor in packer.tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in places:
            places[storage.data_ptr()] = size
            size += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
    arena = torch.empty(size, dtype=torch.uint8).share_memory_()
    for tensor in packer.tensors:
        storage = tensor.untyped_storage()
        start = places[storage.data_ptr()]
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        arena[start : start + storage.nbytes()] = whole
    views = [
        _view(tensor, places[tensor.untyped_storage().data_ptr()]) for tensor in packer.tensors
    ]
    return pickle.dumps((file.getvalue(), views)), arena


def unpack(payload: bytes, arena: Tensor) -> Any:
    """What `pack` was given; its tensors are views of `arena`.

    Args:
        payload: the pickle that `pack` made in a process of this program.
        arena: the memory that `pack` made.
    """
    pickled, views = pickle.loads(payload)
    storage = arena.untyped_storage()
    tensors = []
    for dtype, offset, shape, stride, requires_grad, is_parameter in views:
        tensor = torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)
        if is_parameter:
            tensor = nn.Parameter(tensor, requires_grad=requires_grad)
        tensors.append(tensor)
    return _Unpacker(io.BytesIO(pickled), tensors).load()


class _Packer(pickle.Pickler):
    """Pickles numbers in place of tensors.

    Attributes:
        tensors: the tensors, by number.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        """The number of a tensor; None for everything else, which is pickled as usual."""
        if type(value) not in (Tensor, nn.Parameter):
            return None
        if value.device.type != "cpu":
            raise ValueError(
                f"Processes share a network on the CPU, and this one lies on {value.device}. "
                "Set vec_env=dummy."
            )
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)  # kept, so that no other object gets its id
        return self._numbers[id(value)]


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]


def _view(tensor: Tensor, start: int) -> tuple[Any, ...]:
    """Where a tensor lies when its storage begins `start` bytes into the arena."""
    offset = start // tensor.element_size() + tensor.storage_offset()
    is_parameter = isinstance(tensor, nn.Parameter)
    shape, stride = tuple(tensor.shape), tensor.stride()
    return tensor.dtype, offset, shape, stride, tensor.requires_grad, is_parameter


def _question(candidate: Candidate, images: int | None) -> Question:
    return candidate.keep.mask, candidate.keep.counts, candidate.masks, images


def _answer(process: BaseProcess, connection: Connection) -> Outcome:
    """What a worker found.

    Raises:
        WorkerFailed: it raised an error or died.
    """
    try:
        outcome, message, trace = connection.recv()
    except (EOFError, OSError):
        raise _death(process) from None
    if outcome is None:
        raise WorkerFailed(
            f"A process that measures candidates failed: {message}. vec_env=dummy measures in the "
            "main process."
        ) from RuntimeError(f"in the process {process.name}:\n{trace}")
    return outcome


def _death(process: BaseProcess) -> WorkerFailed:
    process.join(PATIENCE)
    return WorkerFailed(
        f"A process that measures candidates died (exit code {process.exitcode}; -9 is what a "
        "machine out of memory does). Lower vec_env.workers, or set vec_env=dummy."
    )


def _work(payload: bytes, arena: Tensor, connection: Connection) -> None:
    """The life of a worker: it answers until nobody can ask any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the main process, which ends us
    torch.set_num_threads(1)
    evaluator: Evaluator | None = None
    while True:
        try:
            mask, counts, masks, images = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if evaluator is None:
                evaluator = unpack(payload, arena)
            groups = evaluator.slimmer.graph.groups
            candidate = Candidate(KeepSet(mask, counts, groups), masks)
            answer = (evaluator.outcome(candidate, images=images), "", "")
        except Exception as error:
            answer = (None, f"{type(error).__name__}: {error}", traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            return
