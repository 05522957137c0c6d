"""Tiny transformers, each written the way a well-known library writes it; no number is patched."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, HEADS, TOKENS = 12, 3, 8


def mlp(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class FusedAttention(nn.Module):
    """One projection for q, k and v; the size of a head is computed from the stream's width."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.proj(self.mix(q, k, v).transpose(1, 2).reshape(B, N, C))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class ManualAttention(FusedAttention):
    """softmax(q k^T * scale) v with the scale of the unpruned width."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.transpose(-2, -1)) * self.scale
        return weights.softmax(dim=-1) @ v


class EinsumAttention(FusedAttention):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        return torch.einsum("bhij,bhjd->bhid", weights.softmax(-1), v)


class CausalAttention(FusedAttention):
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class SeparateAttention(nn.Module):
    """Three projections; heads and their size are attributes of the module."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q, k, v = (
            layer(x).view(B, N, self.heads, self.head_dim).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
        return self.proj(mixed.view(B, N, self.heads * self.head_dim))


class GroupedQueryAttention(nn.Module):
    """Four query heads share two key and value heads, by copies or inside the fused kernel."""

    def __init__(self, dim: int = 16, heads: int = 4, kv_heads: int = 2, fused: bool = False):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.fused = heads, kv_heads, dim // heads, fused
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, kv_heads * self.head_dim)
        self.v = nn.Linear(dim, kv_heads * self.head_dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q = self.q(x).view(B, N, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(B, N, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(B, N, self.kv_heads, self.head_dim).transpose(1, 2)
        if not self.fused:
            repeats = self.heads // self.kv_heads
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.fused)
        return self.proj(mixed.transpose(1, 2).reshape(B, N, -1))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, dim: int = DIM) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), attention
        self.norm2, self.mlp = nn.LayerNorm(dim), mlp(dim, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, class token, position embedding, two blocks; the class token is classified."""

    def __init__(self, attention=FusedAttention, dim: int = DIM) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, dim))
        self.blocks = nn.Sequential(*(Block(attention(), dim) for _ in range(2)))
        self.norm, self.fc = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.fc(self.norm(self.blocks(x))[:, 0])


class SelfAttentionModule(nn.Module):
    """nn.MultiheadAttention on its own stream."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(3, DIM)
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=batch_first)
        self.norm, self.fc = nn.LayerNorm(DIM), nn.Linear(DIM, 5)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.fc(x.mean(1 if self.batch_first else 0))


class CrossAttentionModule(nn.Module):
    """nn.MultiheadAttention whose keys and values come from a second, shorter input."""

    def __init__(self, batch_first: bool, own_widths: bool = False) -> None:
        super().__init__()
        context = 10 if own_widths else DIM
        self.embed, self.context = nn.Linear(3, DIM), nn.Linear(4, context)
        self.attention = nn.MultiheadAttention(
            DIM, HEADS, kdim=context, vdim=context, batch_first=batch_first
        )
        self.fc = nn.Linear(DIM, 5)
        self.batch_first = batch_first

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.embed(x), F.relu(self.context(y))
        if not self.batch_first:
            x, y = x.transpose(0, 1), y.transpose(0, 1)
        x = x + self.attention(x, y, y, need_weights=False)[0]
        return self.fc(x.mean(1 if self.batch_first else 0))


class Encoder(nn.Module):
    """torch's own encoder; with four heads its fast path runs whenever no gradient is wanted."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 16)
        layer = nn.TransformerEncoderLayer(
            16, 4, 20, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(x)).mean(1))


class WindowAttention(nn.Module):
    def __init__(self, window: int = 2) -> None:
        super().__init__()
        self.window, self.heads, self.scale = window, HEADS, (DIM // HEADS) ** -0.5
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, HEADS))
        rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        places = torch.stack([rows.flatten(), columns.flatten()])
        offset = places[:, :, None] - places[:, None, :] + window - 1
        self.register_buffer("index", offset[0] * (2 * window - 1) + offset[1])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(N, N, -1).permute(2, 0, 1).contiguous()
        weights = weights + bias.unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            weights = weights.view(B // windows, windows, self.heads, N, N)
            weights = (weights + mask.unsqueeze(1).unsqueeze(0)).view(-1, self.heads, N, N)
        return self.proj((weights.softmax(-1) @ v).transpose(1, 2).reshape(B, N, C))


class SwinBlock(nn.Module):
    def __init__(self, side: int, shift: int, window: int = 2) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.attention = nn.LayerNorm(DIM), WindowAttention(window)
        self.norm2, self.mlp = nn.LayerNorm(DIM), mlp(DIM, 20)
        mask = None
        if shift:
            region = torch.zeros(1, side, side, 1)
            bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
            for number, (rows, columns) in enumerate((r, c) for r in bands for c in bands):
                region[:, rows, columns] = number
            flat = self.partition(region).squeeze(-1)
            mask = (flat.unsqueeze(1) != flat.unsqueeze(2)) * -100.0
        self.register_buffer("mask", mask)

    def partition(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        x = x.view(B, H // self.window, self.window, W // self.window, self.window, C)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.window**2, C)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        shortcut, x = x, self.norm1(x)
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        windows = self.attention(self.partition(x), self.mask)
        x = windows.view(B, H // self.window, W // self.window, self.window, self.window, -1)
        x = x.permute(0, 1, 3, 2, 4, 5).contiguous().view(B, H, W, -1)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = shortcut + x
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """A plain and a shifted block, then four neighbours are merged into one token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, DIM, 2, stride=2)
        self.plain, self.shifted = SwinBlock(4, 0), SwinBlock(4, 1)
        self.norm, self.reduction = nn.LayerNorm(4 * DIM), nn.Linear(4 * DIM, 14, bias=False)
        self.fc = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shifted(self.plain(self.embed(x).permute(0, 2, 3, 1)))
        parts = [x[:, row::2, column::2, :] for column in (0, 1) for row in (0, 1)]
        return self.fc(self.reduction(self.norm(torch.cat(parts, -1))).mean((1, 2)))


class ConvNeXtBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(DIM, DIM, 7, padding=3, groups=DIM)
        self.norm, self.mlp = nn.LayerNorm(DIM), mlp(DIM, 20)
        self.gamma = nn.Parameter(torch.randn(DIM))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.mlp(self.norm(y))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = (
            nn.Conv2d(3, DIM, 2, stride=2),
            nn.Sequential(*(ConvNeXtBlock() for _ in range(2))),
        )
        self.norm, self.fc = nn.LayerNorm(DIM), nn.Linear(DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.blocks(self.stem(x)).mean((-2, -1))))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.norm1, self.token = nn.LayerNorm(DIM), mlp(tokens, 10)
        self.norm2, self.channel = nn.LayerNorm(DIM), mlp(DIM, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer: a perceptron over tokens, whose hidden width is free, and one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, DIM, 2, stride=2)
        self.blocks = nn.Sequential(MixerBlock(16), MixerBlock(16))
        self.norm, self.fc = nn.LayerNorm(DIM), nn.Linear(DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embed(x).flatten(2).transpose(1, 2))
        return self.fc(self.norm(x).mean(1))


class TinyGPT(nn.Module):
    """Integer tokens, causal attention, and a classifier that is the embedding itself."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(10, DIM), nn.Embedding(TOKENS, DIM)
        self.blocks = nn.ModuleList([Block(CausalAttention()) for _ in range(2)])
        self.norm, self.lm_head = nn.LayerNorm(DIM), nn.Linear(DIM, 10, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x))


def _grouped(fused: bool) -> VisionTransformer:
    return VisionTransformer(lambda: GroupedQueryAttention(fused=fused), dim=16)


TRANSFORMERS = {
    "vit_fused": VisionTransformer,
    "vit_manual": lambda: VisionTransformer(ManualAttention),
    "vit_einsum": lambda: VisionTransformer(EinsumAttention),
    "vit_separate": lambda: VisionTransformer(SeparateAttention),
    "gqa_repeat": lambda: _grouped(fused=False),
    "gqa_fused": lambda: _grouped(fused=True),
    "mha_self": lambda: SelfAttentionModule(batch_first=True),
    "mha_self_tokens_first": lambda: SelfAttentionModule(batch_first=False),
    "mha_cross": lambda: CrossAttentionModule(batch_first=True),
    "mha_cross_tokens_first": lambda: CrossAttentionModule(batch_first=False),
    "mha_cross_own_widths": lambda: CrossAttentionModule(batch_first=True, own_widths=True),
    "encoder_norm_last": lambda: Encoder(norm_first=False),
    "encoder_norm_first": lambda: Encoder(norm_first=True),
    "swin": Swin,
    "convnext": ConvNeXt,
    "mixer": Mixer,
    "gpt": TinyGPT,
}


def transformer_inputs(name: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Images, tokens of three numbers, two token sequences, or integer ids."""
    if name == "gpt":
        return (torch.randint(10, (2, TOKENS), generator=generator),)
    if not name.startswith(("mha", "encoder")):
        return (torch.randn(2, 3, 8, 8, generator=generator),)
    tokens = torch.randn(2, TOKENS, 3, generator=generator)
    if "cross" in name:
        return tokens, torch.randn(2, 5, 4, generator=generator)
    return (tokens,)
