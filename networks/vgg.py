"""VGG-16 with batch norm for small images."""

from __future__ import annotations

from torch import nn

from networks.pooled import PooledClassifier

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of the five stages (configuration D of the paper)."""


class VGG(PooledClassifier):
    """Stages of 3x3 convolutions, each ending in max pooling; one linear layer.

    From "Very Deep Convolutional Networks" (https://arxiv.org/abs/1409.1556), table 1 D. As usual
    for CIFAR, batch norm follows every convolution and a single linear layer ends the network.

    Args:
        num_classes: number of classes.
        width: factor on all channel counts, positive.
        in_channels: channels of the images.

    Shapes:
        - input: (B, in_channels, H, W), H and W at least 32
        - output: (B, num_classes)
    """

    def __init__(self, num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> None:
        if width <= 0:
            raise ValueError(f"network.width must be positive, got {width}.")
        layers: list[nn.Module] = []
        channels = in_channels
        for stage_channels, convolutions in _STAGES:
            out_channels = max(1, round(stage_channels * width))
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(),
                ]
                channels = out_channels
            layers.append(nn.MaxPool2d(2))
        super().__init__(nn.Sequential(*layers), channels, num_classes)


def vgg16_bn(num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> VGG:
    """Build VGG-16 with batch norm for 32x32 images.

    Args:
        num_classes: number of classes.
        width: factor on all channel counts, positive.
        in_channels: channels of the images.

    Returns:
        The network, drawn anew from torch's global random numbers.
    """
    return VGG(num_classes, width, in_channels)
