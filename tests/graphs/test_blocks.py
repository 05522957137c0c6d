"""Blocks that a connection goes around, and chains that have none."""

from __future__ import annotations

import torch
from torch import nn

from graphs.blocks import bypassed_blocks
from graphs.tracing import trace_network


class Branch(nn.Module):
    """Two convolutions, with or without a shortcut; it is a convolution where widths differ."""

    def __init__(self, width_in, width_out, *, has_shortcut=True):
        super().__init__()
        self.first = nn.Conv2d(width_in, 6, 3, padding=1)
        self.second = nn.Conv2d(6, width_out, 3, padding=1)
        self.has_shortcut = has_shortcut
        self.shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x):
        out = self.second(torch.relu(self.first(x)))
        if not self.has_shortcut:
            return torch.relu(out)
        return torch.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class Blocks(nn.Module):
    def __init__(self, *branches):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.Sequential(*branches)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layers(torch.relu(self.stem(x))).mean((2, 3)))


def blocks_of(network):
    return bypassed_blocks(trace_network(network.eval(), torch.zeros(1, 3, 5, 5)))


def test_residual_blocks_hold_what_the_shortcut_goes_around():
    network = Blocks(Branch(4, 4), Branch(4, 8), Branch(8, 8))
    assert blocks_of(network) == {
        "layers.0": ("layers.0.first",),
        "layers.1": ("layers.1.first",),
        "layers.2": ("layers.2.first",),
    }


def test_a_module_without_a_shortcut_is_no_block():
    network = Blocks(Branch(4, 4), Branch(4, 8, has_shortcut=False))
    assert blocks_of(network) == {"layers.0": ("layers.0.first",)}


def test_a_chain_has_none():
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(1))
    assert blocks_of(nn.Sequential(chain, nn.Linear(8, 3))) == {}


def test_a_module_inside_a_block_is_the_block_when_it_holds_all_that_goes():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.outer = nn.Module()
            self.outer.inner = Branch(4, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.outer.inner(torch.relu(self.stem(x))).mean((2, 3)))

    assert blocks_of(Nested()) == {"outer.inner": ("outer.inner.first",)}
