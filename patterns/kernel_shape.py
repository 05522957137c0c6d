"""Kernel shapes: zero the same cells in every 3x3 kernel of a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patterns.pattern import OperatorShape, check_keys

KEPT, ZEROED = "#", "."

AUTOSCULPT_SIX: Mapping[str, tuple[str, str, str]] = {
    "none_kept": ("...", "...", "..."),
    "right_column": ("..#", "..#", "..#"),
    "bottom_row": ("...", "...", "###"),
    "two_right_columns": (".##", ".##", ".##"),
    "two_bottom_rows": ("...", "###", "###"),
}
"""The shapes of AutoSculpt's released code (https://github.com/jlx15588/AutoSculpt), "#" = kept.

The sixth keeps all nine cells: that is the dense pattern, which every library has at index 0. The
released code gives one shape to each filter, and ranks filters by their norm; here a decision
gives one shape to all filters of a site.
"""

AUTOSCULPT_FIGURE: Mapping[str, tuple[str, str, str]] = {
    "top_left_block": ("..#", "..#", "###"),
    "bottom_right_block": ("###", "#..", "#.."),
    "upright_t": ("...", "#.#", "#.#"),
    "lying_t": (".##", "...", ".##"),
    "plus": ("#.#", "...", "#.#"),
    "l_shape": (".##", ".##", "..."),
    "hook": ("...", "##.", "###"),
    "row_and_column": ("...", "##.", "##."),
}
"""Eight shapes drawn after the description of the pipeline figure of AutoSculpt (arXiv 2412.18091).

The figure shows eight shapes and an ellipsis: 2x2 corner blocks, T shapes, a plus, an L, hooks and
a row with a column, the coloured cells (4 or 5 of 9) being the ones that are zeroed. The names here
are those of the zeroed cells. These drawings are ours: they fit that description, and are not the
paper's exact eight, which no public source lists cell by cell.
"""

SHAPES: Mapping[str, tuple[str, str, str]] = {**AUTOSCULPT_SIX, **AUTOSCULPT_FIGURE}


@dataclass(frozen=True)
class KernelShapePattern:
    """Zeroes the same cells in every 3x3 kernel; dense hardware saves nothing by it.

    Applies to every convolution with a 3x3 kernel: ordinary, grouped and depthwise. Depthwise
    kernels are included because they have the same nine cells, and because the 3x3 kernels of a
    MobileNet are nearly all depthwise. A 1x1 kernel has no shape and is never masked (the released
    code of AutoSculpt does not mask it either, but counts it as pruned: here it is not).

    Attributes:
        name: name, unique in a library.
        rows: three strings of three cells, "#" = kept, "." = zeroed.

    Raises:
        ValueError: `rows` is not such a drawing, or keeps all nine cells.
    """

    name: str
    rows: tuple[str, ...]

    family = "kernel_shape"
    channel_ratio = 0.0

    def __post_init__(self) -> None:
        if len(self.rows) != 3 or any(
            not isinstance(row, str) or len(row) != 3 or set(row) - {KEPT, ZEROED}
            for row in self.rows
        ):
            raise ValueError(
                f"A kernel shape is three strings of three cells, {KEPT!r} = kept and {ZEROED!r} = "
                f"zeroed, got {list(self.rows)} for {self.name!r}. Change patterns.specs."
            )
        if all(row == 3 * KEPT for row in self.rows):
            raise ValueError(
                f"The kernel shape {self.name!r} keeps all nine cells, as the dense pattern does. "
                f"Remove it from patterns.specs."
            )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> KernelShapePattern:
        """Build from `{family: kernel_shape, shape: plus}` or a drawing of your own.

        A drawing is `{family: kernel_shape, name: corners, rows: ["#.#", "...", "#.#"]}`.

        Raises:
            ValueError: the shape is unknown; the message lists the known ones.
        """
        if "rows" in spec:
            check_keys(spec, ("name", "rows"))
            rows = spec["rows"]
            if isinstance(rows, str) or not isinstance(rows, Sequence):
                raise ValueError(
                    f"The rows of a kernel shape are a list of three strings, got {rows!r}. "
                    f"Change patterns.specs."
                )
            return cls(str(spec["name"]), tuple(rows))
        check_keys(spec, ("shape",))
        if spec["shape"] not in SHAPES:
            raise ValueError(
                f"No kernel shape is called {spec['shape']!r}. The shapes are: "
                f"{', '.join(SHAPES)}. Change patterns.specs, or draw your own with name and rows."
            )
        return cls(spec["shape"], SHAPES[spec["shape"]])

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that `from_spec` reads; cell by cell, so that a plan never changes meaning."""
        return {"family": self.family, "name": self.name, "rows": list(self.rows)}

    @property
    def density(self) -> float:
        """Fraction of the cells kept, in [0, 1)."""
        return "".join(self.rows).count(KEPT) / 9

    def applies_to(self, operator: OperatorShape) -> bool:
        """Whether `operator` is a convolution with a 3x3 kernel."""
        return operator.kind == "conv" and tuple(operator.kernel_size) == (3, 3)

    def mask(self, weight: Tensor) -> Tensor | None:
        """The shape repeated over every kernel.

        Args:
            weight: shape (rows, channels, 3, 3).

        Returns:
            Boolean tensor of the shape of `weight`, True = kept.
        """
        assert weight.shape[-2:] == (3, 3), f"not 3x3 kernels: {tuple(weight.shape)}"
        cells = [[cell == KEPT for cell in row] for row in self.rows]
        return torch.tensor(cells, device=weight.device).expand(weight.shape)
