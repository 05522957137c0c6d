"""MobileNetV1 for ImageNet, and MobileNetV2 for small images."""

from __future__ import annotations

from torch import Tensor, nn

from networks.pooled import PooledClassifier

_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks, stride of the stages; table 2, with stride 1 in the second one."""

_BLOCKS_V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
"""Channels and stride of the depthwise separable blocks of MobileNetV1; table 1."""


def _conv_bn(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    return [conv, nn.BatchNorm2d(out_channels)]


class InvertedResidual(nn.Module):
    """Expand with 1x1, filter depthwise, project with 1x1; identity shortcut where shapes agree.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the depthwise convolution.
        expansion: expanded channels per input channel, at least 1; with 1 there is no expansion.

    Shapes:
        - input: (B, in_channels, H, W)
        - output: (B, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_conv_bn(in_channels, hidden), nn.ReLU6()]
        layers += [*_conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        layers += _conv_bn(hidden, out_channels)
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(PooledClassifier):
    """Inverted residual blocks with linear bottlenecks.

    From "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (https://arxiv.org/abs/1801.04381),
    table 2. For 32x32 images the stem and the second stage keep the resolution.

    Args:
        num_classes: number of classes.
        width: factor on all channel counts, positive.
        in_channels: channels of the images.

    Shapes:
        - input: (B, in_channels, H, W)
        - output: (B, num_classes)
    """

    def __init__(self, num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> None:
        if width <= 0:
            raise ValueError(f"network.width must be positive, got {width}.")
        channels = max(1, round(32 * width))
        layers: list[nn.Module] = [*_conv_bn(in_channels, channels, 3), nn.ReLU6()]
        for expansion, stage_channels, blocks, stride in _STAGES:
            out_channels = max(1, round(stage_channels * width))
            for index in range(blocks):
                step = stride if index == 0 else 1
                layers.append(InvertedResidual(channels, out_channels, step, expansion))
                channels = out_channels
        last_channels = max(1, round(1280 * width))
        layers += [*_conv_bn(channels, last_channels), nn.ReLU6()]
        super().__init__(nn.Sequential(*layers), last_channels, num_classes)


def mobilenet_v2(num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> MobileNetV2:
    """Build MobileNetV2 for 32x32 images.

    Args:
        num_classes: number of classes.
        width: factor on all channel counts, positive.
        in_channels: channels of the images.

    Returns:
        The network, drawn anew from torch's global random numbers.
    """
    return MobileNetV2(num_classes, width, in_channels)


class MobileNetV1(PooledClassifier):
    """Depthwise and 1x1 convolutions in turn.

    From "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications"
    (https://arxiv.org/abs/1704.04861), table 1; with stride 1 in the last block, where the table's
    2 does not fit its output size. 568,740,352 MACs for an image of 224x224.

    Args:
        num_classes: number of classes.
        width: factor on all channel counts, positive.
        in_channels: channels of the images.

    Shapes:
        - input: (B, in_channels, H, W); H and W of 32 or more are halved five times
        - output: (B, num_classes)
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0, in_channels: int = 3) -> None:
        if width <= 0:
            raise ValueError(f"network.width must be positive, got {width}.")
        channels = max(1, round(32 * width))
        layers: list[nn.Module] = [*_conv_bn(in_channels, channels, 3, 2), nn.ReLU()]
        for block_channels, stride in _BLOCKS_V1:
            out_channels = max(1, round(block_channels * width))
            layers += [*_conv_bn(channels, channels, 3, stride, groups=channels), nn.ReLU()]
            layers += [*_conv_bn(channels, out_channels), nn.ReLU()]
            channels = out_channels
        super().__init__(nn.Sequential(*layers), channels, num_classes)


def mobilenet_v1(num_classes: int = 1000, width: float = 1.0, in_channels: int = 3) -> MobileNetV1:
    """Build MobileNetV1 for images of 224x224.

    Args:
        num_classes: number of classes.
        width: factor on all channel counts, positive.
        in_channels: channels of the images.

    Returns:
        The network, drawn anew from torch's global random numbers.
    """
    return MobileNetV1(num_classes, width, in_channels)
