"""One network per operation: what moves channels, normalises, mixes them, or cannot be pruned."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Head, conv_bn

PERMUTATION = [3, 1, 0, 2, 7, 6, 5, 4]


class Between(nn.Module):
    """8 channels -> an operation -> `width` channels -> two more convolutions."""

    def __init__(self, operation, width: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.operation = operation
        self.tail, self.last = conv_bn(width, 6), conv_bn(6, 4)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.tail(self.operation(self.stem(x)))))


class IndexByBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(PERMUTATION))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.order]


class ExpandedMap(nn.Module):
    """A map of one channel, expanded to a number of channels, added to all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.map(x).expand(-1, 8, -1, -1)


class ChannelGate(nn.Module):
    """A gate per channel, expanded over space."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x.mean((2, 3))))
        return x * gate[:, :, None, None].expand_as(x)


class SplitByNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.three, self.five = nn.Conv2d(3, 6, 1), nn.Conv2d(5, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split([3, 5], dim=1)
        return self.three(a) + self.five(b)


class FrozenBatchNorm(nn.Module):
    """Detection networks' batch norm: four buffers and two element-wise functions."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean"):
            self.register_buffer(name, torch.randn(8))
        self.register_buffer("running_var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * torch.tanh(x)


class EfficientChannelAttention(nn.Module):
    """A convolution along the channels: every gate reads its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        y = self.conv(y).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y)


class Gram(nn.Module):
    """Products of all pairs of channels."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        return torch.bmm(x, x.transpose(1, 2)).flatten(1)[:, :, None, None]


class UnevenNormGroups(nn.Module):
    """Norm groups of 6 over 4 + 8 concatenated channels: blocks straddle the two producers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.last, self.head = nn.GroupNorm(2, 12), conv_bn(12, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.norm(torch.cat([self.a(x), self.b(x)], 1))))


class DataDependent(nn.Module):
    """Python control flow on a value of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 6), conv_bn(6, 4), Head(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = F.leaky_relu(y) if x.mean() > 0 else torch.tanh(y)
        return self.head(self.b(y))


class NestedOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(3, 6), conv_bn(6, 4)
        self.first, self.second = Head(6), Head(4)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.a(x)
        y = self.b(x)
        return self.first(x), [self.second(y), y.mean((1, 2, 3))]


class OneChannel(nn.Module):
    """A bottleneck of a single channel cannot be pruned; its neighbours can."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.one, self.b = conv_bn(3, 6), conv_bn(6, 1), conv_bn(1, 4)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.one(self.a(x))))


class FlattenByNumber(nn.Module):
    """view with the number of features written out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc1, self.fc2 = conv_bn(3, 8), nn.Linear(32, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.a(x), 4).view(-1, 32)
        return self.fc2(F.relu(self.fc1(x)))


class DoubleIt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * gradient


class CustomFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return DoubleIt.apply(x)


class HalfWeight(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def _parametrised(register) -> nn.Module:
    network = Between(nn.Identity(), 8)
    register(network.tail[0])
    return network


def _quantized() -> nn.Module:
    quantize = torch.ao.quantization.quantize_dynamic
    return quantize(Between(nn.Identity(), 8).eval(), {nn.Linear}, dtype=torch.qint8)


MOVES = {
    "repeat": lambda: Between(lambda x: x.repeat(1, 2, 1, 1), 16),
    "repeat_interleave": lambda: Between(lambda x: x.repeat_interleave(2, dim=1), 16),
    "expanded_map": lambda: Between(ExpandedMap(), 8),
    "channel_gate": lambda: Between(ChannelGate(), 8),
    "roll_one": lambda: Between(lambda x: torch.roll(x, 1, 1), 8),
    "index_list": lambda: Between(lambda x: x[:, PERMUTATION], 8),
    "index_buffer": lambda: Between(IndexByBuffer(), 8),
    "slice_numbers": lambda: Between(lambda x: x[:, 2:5], 3),
    "pad_numbers": lambda: Between(lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)), 13),
    "pixel_shuffle": lambda: Between(lambda x: F.pixel_shuffle(x, 2), 2),
    "pixel_unshuffle": lambda: Between(lambda x: F.pixel_unshuffle(x, 2), 32),
    "split_numbers": lambda: Between(SplitByNumbers(), 6),
    "view_numbers": lambda: Between(lambda x: x.view(-1, 8, 16, 4).mean(2)[..., None], 8),
    "flatten_number": FlattenByNumber,
    "glu": lambda: Between(lambda x: F.glu(x, dim=1), 4),
}

NORMS = {
    "instance_norm": lambda: Between(
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True), 8
    ),
    "layer_norm_chw": lambda: Between(nn.LayerNorm([8, 8, 8]), 8),
    "prelu": lambda: Between(nn.PReLU(8), 8),
    "layer_scale": lambda: Between(LayerScale(), 8),
    "frozen_batch_norm": lambda: Between(FrozenBatchNorm(), 8),
    "uneven_norm_groups": UnevenNormGroups,
    # more than 64 channels: kept indices must stay in order
    "wide_layer_norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 100), nn.LayerNorm(100), nn.Linear(100, 5)
    ),
}

CAPTURE = {
    "data_dependent": DataDependent,
    "nested_outputs": NestedOutputs,
    "one_channel": OneChannel,
}

# name: (network, word of the reason)
MIXERS = {
    "softmax": (lambda: Between(lambda x: torch.softmax(x, 1), 8), "softmax"),
    "channel_mean": (lambda: Between(lambda x: x.mean(1, keepdim=True), 1), "mean"),
    "channel_max": (lambda: Between(lambda x: x.amax(1, keepdim=True), 1), "amax"),
    "normalize": (lambda: Between(lambda x: F.normalize(x, dim=1), 8), "normalize"),
    "channel_conv": (lambda: Between(EfficientChannelAttention(), 8), "conv"),
    "gram": (lambda: Between(Gram(), 64), "bmm"),
    "cumsum": (lambda: Between(lambda x: x.cumsum(1), 8), "cumsum"),
}

# name: (network, what the refusal says)
REFUSED = {
    "weight_norm": (
        lambda: _parametrised(nn.utils.parametrizations.weight_norm),
        r"computed in the forward pass.*'?tail\.0|'tail\.0.*computed in the forward pass",
    ),
    "spectral_norm": (
        lambda: _parametrised(nn.utils.parametrizations.spectral_norm),
        r"computed in the forward pass|parametri[sz]ation",
    ),
    "parametrised": (
        lambda: _parametrised(
            lambda conv: nn.utils.parametrize.register_parametrization(conv, "weight", HalfWeight())
        ),
        r"computed in the forward pass|parametri[sz]ation",
    ),
    "quantized": (_quantized, r"(?i)quanti[sz]ed"),
    "custom_function": (
        lambda: Between(CustomFunction(), 8),
        r"'operation' \(CustomFunction\) at .*operations\.py:\d+",
    ),
}

OPERATIONS = {
    **MOVES,
    **NORMS,
    **CAPTURE,
    **{name: make for name, (make, _) in MIXERS.items()},
}


def operation_inputs(name: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 8, 8, generator=generator),)
