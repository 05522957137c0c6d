"""Channel labels: one integer for every element of every activation, merged by union-find.

Two elements that carry the same label can only be removed together. Label tensors have the shape
of the activation they
describe, but are stored expanded (stride 0) along axes where the label does not change, such as
space and batch.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


class LabelForest:
    """Union-find over integer labels, vectorised."""

    def __init__(self) -> None:
        self._parent = np.arange(1024, dtype=np.int64)
        self._size = 0

    def fresh(self, *shape: int) -> Tensor:
        """New labels, one per element, of the given shape."""
        count = int(np.prod(shape, dtype=np.int64))
        start, self._size = self._size, self._size + count
        if self._size > len(self._parent):
            grown = np.arange(max(self._size, 2 * len(self._parent)), dtype=np.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
        return torch.arange(start, self._size).reshape(shape)

    def find(self, labels: np.ndarray) -> np.ndarray:
        """Representative of each label."""
        while True:
            parents = self._parent[labels]
            if np.array_equal(parents, labels):
                return parents
            labels = parents

    def roots(self, labels: Tensor) -> Tensor:
        """`find` on a label tensor; keeps axes that are stored once (stride 0) stored once."""
        small = shrink(labels)
        found = torch.from_numpy(self.find(small.numpy().ravel())).reshape(small.shape)
        return found.expand(labels.shape)

    def union(self, first: Tensor, second: Tensor) -> None:
        """Merge two label tensors of equal shape, position by position."""
        assert first.shape == second.shape
        first, second = _shrink_together(first, second)
        pairs = np.stack([first.numpy().ravel(), second.numpy().ravel()], 1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if len(pairs) > 64:
            pairs = np.unique(pairs, axis=0)
        while len(pairs):
            left, right = self.find(pairs[:, 0]), self.find(pairs[:, 1])
            differ = left != right
            if not differ.any():
                break
            high = np.maximum(left, right)[differ]
            low = np.minimum(left, right)[differ]
            np.minimum.at(self._parent, high, low)
            pairs = np.stack([high, low], 1)

    def tie_across(self, labels: Tensor, axis: int) -> Tensor:
        """Merge everything but `axis`, so that each position of `axis` has one label.

        Returns:
            The labels along `axis`, shape (labels.shape[axis],).
        """
        small = shrink(labels)
        if small.shape[axis] != labels.shape[axis]:
            small = small.expand(
                [
                    labels.shape[d] if d == axis % labels.dim() else n
                    for d, n in enumerate(small.shape)
                ]
            )
        rows = small.movedim(axis, 0).reshape(labels.shape[axis], -1)
        self.union(rows[:, :1].expand(rows.shape), rows)
        return rows[:, 0].clone()


def shrink(labels: Tensor) -> Tensor:
    """The labels with size 1 along every axis that is stored once."""
    for axis, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if stride == 0 and size > 1:
            labels = labels.narrow(axis, 0, 1)
    return labels


def compact(labels: Tensor) -> Tensor:
    """The same labels, stored once along every axis along which they do not change."""
    shape = labels.shape
    for axis in range(labels.dim()):
        if labels.stride(axis) != 0 and labels.shape[axis] > 1:
            first = labels.narrow(axis, 0, 1)
            if bool((shrink(labels) == shrink(first)).all()):
                labels = first
    return labels.expand(shape)


def spread(channel_labels: Tensor, shape: torch.Size | tuple[int, ...], axis: int) -> Tensor:
    """Labels of an activation of `shape` that change along `axis` only."""
    view = [1] * len(shape)
    view[axis] = -1
    return channel_labels.reshape(view).expand(tuple(shape))


def _shrink_together(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Drop repeats along axes that both tensors store once."""
    for axis, size in enumerate(first.shape):
        if size > 1 and first.stride(axis) == 0 and second.stride(axis) == 0:
            first, second = first.narrow(axis, 0, 1), second.narrow(axis, 0, 1)
    return first, second


def varying_axes(labels: Tensor) -> list[int]:
    """Axes along which labels are not all the same."""
    return [
        axis
        for axis in range(labels.dim())
        if labels.stride(axis) != 0 and bool((labels != labels.narrow(axis, 0, 1)).any())
    ]


def channel_axis(labels: Tensor) -> int:
    """The axis along which the labels of an activation change.

    Where they change along none or several, the axis that holds channels by convention: the second
    of images, volumes and heads, the last of everything else.
    """
    varying = varying_axes(labels)
    if len(varying) == 1:
        return varying[0]
    return 1 if labels.dim() > 3 else labels.dim() - 1


def line_along(labels: Tensor, axis: int) -> Tensor:
    """Labels along one axis, at the start of all others; shape (labels.shape[axis],)."""
    return labels.movedim(axis, 0).flatten(1)[:, 0]


def tie_along(forest: LabelForest, first: Tensor, second: Tensor, axes: list[int]) -> None:
    """Merge two label tensors of equal shape along some axes, each tied over all others."""
    forest.union(_narrow_to(forest, first, axes), _narrow_to(forest, second, axes))


def _narrow_to(forest: LabelForest, labels: Tensor, axes: list[int]) -> Tensor:
    """Labels along some axes, tied over all others, with size 1 there."""
    small = shrink(labels)
    shape = [labels.shape[axis] if axis in axes else 1 for axis in range(labels.dim())]
    full = small.expand([labels.shape[d] if d in axes else n for d, n in enumerate(small.shape)])
    flat = full.permute([*axes, *[d for d in range(labels.dim()) if d not in axes]])
    flat = flat.reshape(math.prod(shape), -1)
    forest.union(flat[:, :1].expand(flat.shape), flat)
    return flat[:, 0].reshape(shape)
