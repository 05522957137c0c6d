"""Residual networks for small images (He et al.), with parameter-free or projected shortcuts."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Option-A shortcut: subsample the image and add zero channels on both sides.

    From "Deep Residual Learning for Image Recognition" (https://arxiv.org/abs/1512.03385),
    section 3.3 (A). The two counts are plain attributes because pruning sets them anew whenever
    channels are removed; the forward pass reads no other number of channels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, at least `in_channels`.
        stride: every stride-th row and column is kept.

    Attributes:
        pad_before: zero channels in front of the input's.
        pad_after: zero channels behind the input's.

    Shapes:
        - input: (B, C, H, W)
        - output: (B, pad_before + C + pad_after, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(
                f"Shortcut A only adds channels: got {in_channels} in and {out_channels} out. "
                'Use shortcut="B".'
            )
        self.stride = stride
        self.pad_before = (out_channels - in_channels) // 2
        self.pad_after = out_channels - in_channels - self.pad_before

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.pad_before, self.pad_after))

    def extra_repr(self) -> str:
        """Show the attributes in the printed network."""
        return f"stride={self.stride}, pad_before={self.pad_before}, pad_after={self.pad_after}"


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Option-B shortcut: 1x1 convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


SHORTCUTS = {"A": PadShortcut, "B": _projection}
"""What replaces the identity where a block changes the shape, by the letter of the paper."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the first convolution.
        shortcut: "A" or "B".

    Shapes:
        - input: (B, in_channels, H, W)
        - output: (B, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = SHORTCUTS[shortcut](in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to the shortcut."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, three stages of basic blocks, global average pooling, one linear layer.

    Each stage after the first halves the image and doubles the width. Module names are those of the
    widely used CIFAR checkpoints (conv1, bn1, layer1.0.conv1, ..., linear).

    Args:
        blocks: blocks of the three stages, each at least 1.
        shortcut: "A" (zero padding, no weights) or "B" (projection).
        num_classes: number of classes.
        width: channels of the first stage.
        in_channels: channels of the images.

    Shapes:
        - input: (B, in_channels, H, W)
        - output: (B, num_classes)

    Raises:
        ValueError: when the shortcut is unknown or there are not three stages.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        shortcut: str = "A",
        num_classes: int = 10,
        width: int = 16,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if shortcut not in SHORTCUTS:
            raise ValueError(
                f"network.shortcut must be one of {sorted(SHORTCUTS)}, got {shortcut!r}."
            )
        if len(blocks) != 3 or min(blocks) < 1:
            raise ValueError(f"A ResNet has three stages of at least one block, got {blocks}.")
        if width < 1:
            raise ValueError(f"network.width must be at least 1, got {width}.")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(blocks[0], width, width, 1, shortcut)
        self.layer2 = _stage(blocks[1], width, 2 * width, 2, shortcut)
        self.layer3 = _stage(blocks[2], 2 * width, 4 * width, 2, shortcut)
        self.linear = nn.Linear(4 * width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolutions anew, He et al. (https://arxiv.org/abs/1502.01852), eq. 10."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(
    blocks: int, in_channels: int, out_channels: int, stride: int, shortcut: str
) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    others = (BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


def cifar_resnet(
    depth: int = 20,
    shortcut: str = "A",
    num_classes: int = 10,
    width: int = 16,
    in_channels: int = 3,
) -> ResNet:
    """Build ResNet-20, 32, 44, 56, 110, ... of He et al., section 4.2.

    Args:
        depth: 6n + 2 for n blocks in each of the three stages.
        shortcut: "A" as in the paper's CIFAR networks, or "B".
        num_classes: number of classes.
        width: channels of the first stage; the paper has 16.
        in_channels: channels of the images.

    Returns:
        The network, drawn anew from torch's global random numbers.

    Raises:
        ValueError: when depth is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6 != 0:
        raise ValueError(
            f"network.depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...), got {depth}."
        )
    return ResNet([(depth - 2) // 6] * 3, shortcut, num_classes, width, in_channels)
