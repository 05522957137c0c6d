"""Convolutional networks of the literature, tiny, plus ResNet-50 in its real size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Head, conv_bn


class PreActivationBlock(nn.Module):
    """The shortcut starts after the first norm where there is a projection, before it otherwise."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        shortcut = self.shortcut(y) if hasattr(self, "shortcut") else x
        y = self.conv1(y)
        y = self.conv2(F.relu(self.norm2(y)))
        y += shortcut
        return y


class PreActivationResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.block1, self.block2 = PreActivationBlock(8, 8, 1), PreActivationBlock(8, 12, 2)
        self.norm, self.head = nn.BatchNorm2d(12), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.block2(self.block1(self.stem(x))))))


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped in ResNeXt), 1x1 to four times the width."""

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class BottleneckResNet(nn.Module):
    """ResNet-50's shape for any width and depth."""

    def __init__(
        self, width: int, blocks: tuple[int, ...], classes: int = 5, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        layers: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            for number in range(count):
                stride = 2 if stage and not number else 1
                layers.append(Bottleneck(inputs, width * 2**stage, stride, groups))
                inputs = 4 * width * 2**stage
        self.layers = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


def resnet50() -> BottleneckResNet:
    """ResNet-50 with 1000 classes, 25 557 032 parameters."""
    return BottleneckResNet(64, (3, 4, 6, 3), classes=1000)


class SqueezeGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(F.relu(self.fc1(self.pool(x)))))


class MobileNetV3(nn.Module):
    """One inverted residual: expand, depthwise, squeeze-excite, hard-swish, project."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.expand = nn.Sequential(
            nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), nn.Hardswish(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(12, 12, 5, padding=2, groups=12, bias=False), nn.BatchNorm2d(12)
        )
        self.gate = SqueezeGate(12)
        self.project = nn.Sequential(nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.gate(self.depthwise(self.expand(x))))
        return self.head(x + self.project(y))


class ShuffleV2Unit(nn.Module):
    """Half of the channels pass, half go through a branch; then both halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return shuffle(torch.cat((first, self.branch(second)), dim=1), 2)


def shuffle(x: Tensor, groups: int) -> Tensor:
    B, C, H, W = x.shape
    x = x.view(B, groups, C // groups, H, W)
    return torch.transpose(x, 1, 2).contiguous().view(B, -1, H, W)


class ShuffleNetV2(nn.Module):
    def __init__(self, units: int = 1) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.units = nn.Sequential(*(ShuffleV2Unit() for _ in range(units)))
        self.last, self.head = conv_bn(8, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.units(self.stem(x))))


class ShuffleNetV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise, grouped 1x1, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.reduce, self.norm1 = nn.Conv2d(8, 12, 1, groups=2, bias=False), nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.expand, self.norm3 = nn.Conv2d(12, 8, 1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = shuffle(F.relu(self.norm1(self.reduce(x))), 2)
        return self.head(F.relu(x + self.norm3(self.expand(self.norm2(self.depthwise(y))))))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 6, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseNetBC(nn.Module):
    """Two layers with bottlenecks that read everything before them, then a compression."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.layer1, self.layer2 = DenseLayer(6), DenseLayer(10)
        self.norm, self.conv = nn.BatchNorm2d(14), nn.Conv2d(14, 7, 1, bias=False)
        self.last, self.head = nn.BatchNorm2d(7), Head(7)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in (self.layer1, self.layer2):
            features.append(layer(features))
        x = self.conv(F.relu(self.norm(torch.cat(features, 1))))
        return self.head(F.relu(self.last(F.avg_pool2d(x, 2))))


class Inception(nn.Module):
    """Four branches, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.one = conv_bn(6, 4)
        self.three = nn.Sequential(nn.Conv2d(6, 3, 1), conv_bn(3, 5))
        self.five = nn.Sequential(nn.Conv2d(6, 3, 1), conv_bn(3, 4), conv_bn(4, 3))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(6, 2, 1))
        self.last, self.head = conv_bn(14, 6), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(
            self.last(torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1))
        )


class Signal(nn.Module):
    """One spatial axis: (batch, channels, time)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.b, self.c = nn.Conv1d(8, 6, 3, padding=1), nn.Conv1d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        x = x + self.c(F.relu(self.b(x)))
        return self.fc(F.adaptive_avg_pool1d(x, 1).squeeze(-1))


class Volume(nn.Module):
    """Three spatial axes, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.b = nn.Conv3d(6, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm(self.a(x))), 2)
        return self.fc(torch.flatten(F.adaptive_avg_pool3d(self.b(x), 2), 1))


class LambdaShortcut(nn.Module):
    """Option A as a lambda that holds the number of channels it pads."""

    def __init__(self, planes: int = 12) -> None:
        super().__init__()
        self.stem = conv_bn(3, planes // 2)
        self.a, self.b = conv_bn(planes // 2, planes, stride=2), conv_bn(planes, planes)
        self.shortcut = lambda x: F.pad(
            x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0
        )
        self.last, self.head = conv_bn(planes, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(F.relu(self.b(self.a(x)) + self.shortcut(x))))


class TiedAutoencoder(nn.Module):
    """The decoder's weights are the encoder's, transposed; everything is a plain parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(10, 12)), nn.Parameter(torch.randn(6, 10))
        self.b1, self.b2 = nn.Parameter(torch.randn(10)), nn.Parameter(torch.randn(6))
        self.d1, self.d2 = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(F.relu(F.linear(x, self.w1, self.b1)), self.w2, self.b2))
        x = F.relu(F.linear(x, self.w2.t(), self.d2))
        return F.linear(x, self.w1.t(), self.d1)


class FunctionalConv(nn.Module):
    """A convolution without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8))
        self.last, self.head = conv_bn(8, 4), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(F.relu(F.conv2d(x, self.w, self.b, padding=1))))


CONVOLUTIONAL = {
    "preactivation": PreActivationResNet,
    "bottleneck": lambda: BottleneckResNet(4, (2, 1)),
    "resnext": lambda: BottleneckResNet(8, (1, 1), groups=4),
    "mobilenetv3": MobileNetV3,
    "shufflenetv2": ShuffleNetV2,
    "shufflenetv2_twice": lambda: ShuffleNetV2(2),
    "shufflenetv1": ShuffleNetV1,
    "densenet": DenseNetBC,
    "inception": Inception,
    "conv1d": Signal,
    "conv3d": Volume,
    "option_a_lambda": LambdaShortcut,
    "tied_autoencoder": TiedAutoencoder,
    "functional_conv": FunctionalConv,
}


def convolutional_inputs(name: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    shapes = {"conv1d": (2, 3, 16), "conv3d": (2, 3, 4, 8, 8), "tied_autoencoder": (2, 12)}
    return (torch.randn(shapes.get(name, (2, 3, 8, 8)), generator=generator),)
