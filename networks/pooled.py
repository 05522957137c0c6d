"""What convolutional networks with one linear layer behind a global average share."""

from __future__ import annotations

from torch import Tensor, nn


class PooledClassifier(nn.Module):
    """Features, their average over space, and one linear layer.

    Args:
        features: convolutional layers, (B, in_channels, H, W) to (B, channels, h, w).
        channels: channels of the features.
        num_classes: number of classes.
    """

    def __init__(self, features: nn.Sequential, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolutions anew, He et al. (https://arxiv.org/abs/1502.01852), eq. 10."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.classifier(self.pool(self.features(x)).flatten(1))
