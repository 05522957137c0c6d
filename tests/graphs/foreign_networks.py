"""Networks as people bring them: detection, segmentation, diffusion, language, point clouds."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Head, conv_bn


class UNet(nn.Module):
    """Upsampling by a transposed convolution, padded to the skip by the difference of sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = conv_bn(3, 6), conv_bn(6, 8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.leave, self.out = conv_bn(10, 5), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(x)
        x = self.up(self.down(F.max_pool2d(skip, 2)))
        high, wide = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        x = F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
        return self.out(self.leave(torch.cat([skip, x], dim=1)))


class VolumeUNet(nn.Module):
    """Three dimensions, and a concatenation of two feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv3d(3, 4, 3, padding=1), nn.Conv3d(4, 6, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose3d(6, 5, 2, 2), nn.Conv3d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.enter(x))
        return self.out(torch.cat([F.relu(self.up(F.relu(self.down(skip)))), skip], 1))


class PointNet(nn.Module):
    """Features of every point beside the largest ones of all points."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.norm = nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6)
        self.all, self.out = nn.Conv1d(6, 10, 1), nn.Conv1d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        points = F.relu(self.norm(self.each(x)))
        largest = torch.max(self.all(points), 2, keepdim=True)[0].view(-1, 10, 1)
        return self.out(torch.cat([largest.repeat(1, 1, x.size(2)), points], 1))


class Upsampling(nn.Module):
    """Transposed convolutions that are depthwise, with a multiplier, and grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 6), conv_bn(12, 8), conv_bn(4, 5)
        self.depthwise = nn.ConvTranspose2d(6, 12, 4, 2, 1, groups=6)
        self.grouped, self.head = nn.ConvTranspose2d(8, 4, 2, 2, groups=2, bias=False), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.grouped(self.b(self.depthwise(self.a(x))))))


class StochasticDepth(nn.Module):
    """Whole residual branches are left out while training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        noise = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype).bernoulli_(0.8)
        return x * noise.div_(0.8)


class MBConv(nn.Module):
    """EfficientNet's block: expansion, depthwise, squeeze-and-excite, projection."""

    def __init__(self, width: int, expanded: int) -> None:
        super().__init__()
        self.expand, self.depth = conv_bn(width, expanded), StochasticDepth()
        self.depthwise = nn.Conv2d(expanded, expanded, 5, padding=2, groups=expanded, bias=False)
        self.norm, self.pool = nn.BatchNorm2d(expanded), nn.AdaptiveAvgPool2d(1)
        self.squeeze, self.excite = nn.Conv2d(expanded, 3, 1), nn.Conv2d(3, expanded, 1)
        self.project = nn.Sequential(
            nn.Conv2d(expanded, width, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.depthwise(self.expand(x))), inplace=True)
        y = torch.sigmoid(self.excite(F.silu(self.squeeze(self.pool(y))))) * y
        y = self.depth(self.project(y))
        y += x
        return y


class EfficientNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = conv_bn(3, 6), nn.Sequential(MBConv(6, 12), MBConv(6, 10))
        self.fc = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class C2f(nn.Module):
    """YOLO's block: both halves and every result of the chain are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.enter, self.leave = conv_bn(3, 6), conv_bn(6, 8), conv_bn(16, 6)
        self.chain, self.head = nn.ModuleList([conv_bn(4, 4), conv_bn(4, 4)]), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(self.stem(x)).split((4, 4), 1))
        parts.extend(block(parts[-1]) for block in self.chain)
        return self.head(self.leave(torch.cat(parts, 1)))


class LlamaAttention(nn.Module):
    """Rotary positions, and key heads that serve two query heads each."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = 4, 2, 4
        self.q_proj, self.o_proj = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.k_proj, self.v_proj = nn.Linear(16, 8, bias=False), nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            project(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (y * cos + self.rotate_half(y) * sin for y in (q, k))
        k, v = self.repeat(k), self.repeat(v)
        weights = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.head_dim)
        weights = F.softmax(weights + mask[:, :, :tokens, :tokens], dim=-1)
        mixed = torch.matmul(weights, v).transpose(1, 2).contiguous()
        return self.o_proj(mixed.reshape(batch, tokens, -1))

    @staticmethod
    def rotate_half(x: Tensor) -> Tensor:
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return torch.cat((-second, first), dim=-1)

    def repeat(self, x: Tensor) -> Tensor:
        batch, heads, tokens, width = x.shape
        x = x[:, :, None].expand(batch, heads, 2, tokens, width)
        return x.reshape(batch, heads * 2, tokens, width)


class Llama(nn.Module):
    """One block between a tied embedding; cosines are worked out from a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lm_head = nn.Embedding(10, 16), nn.Linear(16, 10, bias=False)
        self.lm_head.weight = self.embed.weight
        self.norms = nn.ModuleList([nn.RMSNorm(16) for _ in range(3)])
        self.attention = LlamaAttention()
        self.gate, self.up = nn.Linear(16, 12, bias=False), nn.Linear(16, 12, bias=False)
        self.down = nn.Linear(12, 16, bias=False)
        frequencies = 100 ** (-torch.arange(0, 4, 2) / 4)
        self.register_buffer("frequencies", frequencies, persistent=False)
        mask = torch.full((1, 1, 8, 8), -1e4).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        places = torch.arange(ids.shape[1], device=ids.device).to(self.frequencies.dtype)
        angles = torch.outer(places, self.frequencies)
        angles = torch.cat((angles, angles), dim=-1)[None, None]
        x = x + self.attention(self.norms[0](x), angles.cos(), angles.sin(), self.mask)
        y = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.lm_head(self.norms[2](x))


class Bert(nn.Module):
    """A mask of tokens is the second input; the pooled first token is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(10, 12, padding_idx=0), nn.LayerNorm(12)
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.dense, self.pooler, self.fc = nn.Linear(12, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.num_attention_heads, self.all_head_size = 3, 12

    def heads(self, x: Tensor) -> Tensor:
        return x.view((*x.size()[:-1], self.num_attention_heads, 4)).permute(0, 2, 1, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids))
        hidden = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        weights = F.softmax(torch.matmul(q, k.transpose(-1, -2)) / 2 + hidden, dim=-1)
        mixed = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        x = x + self.dense(mixed.view((*mixed.size()[:-2], self.all_head_size)))
        return self.fc(torch.tanh(self.pooler(x[:, 0])))


class FoldedAttention(nn.Module):
    """Heads are folded into the batch, and sizes are worked out from the width of qkv."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.norm = 2, nn.GroupNorm(2, 8)
        self.qkv, self.proj = nn.Conv1d(8, 24, 1), nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, *size = x.shape
        flat = x.reshape(batch, width, -1)
        qkv = self.qkv(self.norm(flat))
        channels = qkv.shape[1] // (3 * self.n_heads)
        folded = qkv.reshape(batch * self.n_heads, channels * 3, qkv.shape[2])
        q, k, v = folded.split(channels, dim=1)
        scale = 1 / math.sqrt(math.sqrt(channels))
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale), dim=-1)
        mixed = torch.einsum("bts,bcs->bct", weights, v).reshape(batch, -1, qkv.shape[2])
        return (flat + self.proj(mixed)).reshape(batch, width, *size)


class Diffusion(nn.Module):
    """A time step for every image becomes a scale and a shift of a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 10), nn.SiLU(), nn.Linear(10, 16))
        self.enter, self.norm, self.attention = conv_bn(3, 8), nn.GroupNorm(2, 8), FoldedAttention()
        self.body, self.out = nn.Conv2d(16, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        rates = torch.exp(-torch.arange(4, dtype=x.dtype, device=x.device))
        angles = steps[:, None].to(x.dtype) * rates[None]
        time = self.time(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        scale, shift = torch.chunk(time[:, :, None, None], 2, dim=1)
        skip = self.enter(x)
        y = self.attention(self.norm(skip) * (1 + scale) + shift)
        return self.out(F.silu(self.body(torch.cat([y, skip], 1))))


FOREIGN = {
    "unet": UNet,
    "volume_unet": VolumeUNet,
    "point_net": PointNet,
    "upsampling": Upsampling,
    "efficientnet": EfficientNet,
    "c2f": C2f,
    "llama": Llama,
    "bert": Bert,
    "diffusion": Diffusion,
}


def foreign_inputs(name: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    if name in ("llama", "bert"):
        ids = torch.randint(1, 10, (2, 6), generator=generator)
        mask = torch.ones(2, 6)
        mask[1, 4:] = 0
        return (ids,) if name == "llama" else (ids, mask)
    shapes = {"volume_unet": (2, 3, 4, 4, 4), "point_net": (2, 3, 9), "unet": (2, 3, 9, 9)}
    x = torch.randn(shapes.get(name, (2, 3, 8, 8)), generator=generator)
    return (x, torch.tensor([3, 700])) if name == "diffusion" else (x,)
