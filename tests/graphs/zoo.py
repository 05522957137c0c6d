"""Small networks, each with one thing that breaks naive pruning; used by the engine's tests."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, **options) -> nn.Sequential:
    options = {"padding": 1, "bias": False, **options}
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, **options), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Head(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    """stem -> x + conv(conv(x)): stem and second conv share their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 6), conv_bn(6, 4), conv_bn(4, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.b(self.a(x)))


class DenseConcat(nn.Module):
    """Concatenation: later layers see the channels of all earlier ones, shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 6), conv_bn(6, 4), conv_bn(10, 5)
        self.norm = nn.BatchNorm2d(15)
        self.head = Head(15)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        ab = torch.cat([a, self.b(a)], 1)
        return self.head(F.relu(self.norm(torch.cat([ab, self.c(ab)], 1))))


class TwiceTheSame(nn.Module):
    """cat(x, x): one unit fills two positions of the consumer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 6), conv_bn(12, 4)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(self.b(torch.cat([x, x], 1)))


class FlattenSpatial(nn.Module):
    """flatten of 2x2: each channel fills four positions of the linear layer, in blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_bn(3, 6)
        self.fc1, self.fc2 = nn.Linear(6 * 4, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(self.a(x), 2)
        return self.fc2(F.relu(self.fc1(x.view(x.size(0), -1))))


class SqueezeExcite(nn.Module):
    """A gate per channel: the excite layer's outputs go with the channels they scale."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.squeeze, self.excite = conv_bn(3, 8), nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.head(x * torch.sigmoid(gate))


class SpatialGate(nn.Module):
    """A one-channel map scales all channels; it ties none of them together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b = conv_bn(3, 6), nn.Conv2d(6, 1, 1), conv_bn(6, 4)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(self.b(x * torch.sigmoid(self.gate(x))))


class Depthwise(nn.Module):
    """Depthwise with channel multiplier 2: each input channel owns two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_bn(3, 6)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.point = nn.Conv2d(12, 4, 1)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.point(self.depthwise(self.a(x)))))


class GroupedConv(nn.Module):
    """Four groups: aligned channels of the blocks go together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.grouped, self.c = conv_bn(3, 8), conv_bn(8, 16, groups=4), conv_bn(16, 4)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.grouped(self.a(x))))


class Gated(nn.Module):
    """GLU by chunk: channel i of both halves is one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 12), conv_bn(6, 4)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        values, gate = self.a(x).chunk(2, dim=1)
        return self.head(self.b(values * torch.sigmoid(gate)))


class SharedConv(nn.Module):
    """One conv called twice: both uses are one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.shared = conv_bn(3, 6), nn.Conv2d(6, 6, 3, padding=1)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(F.relu(self.shared(F.relu(self.shared(x)))))


class Normed(nn.Module):
    """Layer norm over channels last and group norm: statistics must leave removed channels out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3), nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.b, self.groups = nn.Conv2d(8, 12, 1), nn.GroupNorm(3, 12)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * self.scale
        return self.head(F.gelu(self.groups(self.b(x))))


class Moved(nn.Module):
    """flip, roll and index of channels: labels move as the channels do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 6), conv_bn(6, 6)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(x.flip(1) + self.b(x))


class TwoInputsDictOutput(nn.Module):
    """Two inputs, a data-independent loop over modules, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv_bn(3, 6), conv_bn(3, 6)
        self.body = nn.ModuleList([conv_bn(6, 6), conv_bn(6, 6)])
        self.first, self.second = Head(6), Head(6)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        x = self.left(x) + self.right(y)
        for block in self.body:
            x = block(x)
        return {"first": self.first(x), "second": self.second(x)}


class TinyUNet(nn.Module):
    """Down, transposed convolution up, and a concatenation with the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = conv_bn(3, 6), conv_bn(6, 8, stride=2)
        self.up, self.norm = nn.ConvTranspose2d(8, 5, 2, stride=2), nn.BatchNorm2d(5)
        self.leave = nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(x)
        x = F.relu(self.norm(self.up(self.down(skip))))
        return self.leave(torch.cat([skip, x], 1))


class ManualAttention(nn.Module):
    """softmax(q k^T) v by two matrix products: heads of 4 channels go as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, stride=4)
        self.qkv, self.project = nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm, self.fc = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        parts = self.qkv(x).unflatten(2, (3, -1, 4)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) * 0.5, dim=-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        return self.fc(self.norm(x + self.project(mixed)).mean(1))


class EncoderLayer(nn.Module):
    """torch's own transformer layer: the attention holds its widths, the hidden layer is free."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, dropout=0.0)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


ZOO = {
    kind.__name__: kind
    for kind in (
        Residual, DenseConcat, TwiceTheSame, FlattenSpatial, SqueezeExcite, SpatialGate, Depthwise,
        GroupedConv, Gated, SharedConv, Normed, Moved, TwoInputsDictOutput, TinyUNet,
        ManualAttention, EncoderLayer,
    )
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A zoo network with random norm parameters and statistics, in eval mode, and its inputs."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ZOO[name]()
        randomise_norms(network)
    count = 2 if name == "TwoInputsDictOutput" else 1
    inputs = tuple(torch.randn(2, 3, 8, 8, generator=generator) for _ in range(count))
    return network.eval(), inputs


def randomise_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
