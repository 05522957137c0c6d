"""Small vision transformer whose attention heads can be removed without changing any number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values.

    The forward pass fixes the size of a head and leaves their number open, so a projection with
    fewer heads runs as it is.

    Args:
        dim: channels of a token.
        heads: number of heads; must divide `dim`.

    Shapes:
        - input: (B, tokens, dim)
        - output: (B, tokens, dim)
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        batch, tokens = x.shape[0], x.shape[1]
        qkv = self.qkv(x).view(batch, tokens, 3, -1, self.head_dim)
        # Each (B, heads, tokens, head_dim).
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.head_dim**-0.5)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        """Show the size of a head in the printed network."""
        return f"head_dim={self.head_dim}"


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer perceptron, both residual.

    Args:
        dim: channels of a token.
        heads: number of attention heads.
        mlp_dim: hidden channels of the perceptron.

    Shapes:
        - input: (B, tokens, dim)
        - output: (B, tokens, dim)
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Vision transformer with a class token or mean pooling.

    From "An Image is Worth 16x16 Words" (https://arxiv.org/abs/2010.11929), equations 1 to 4.

    Args:
        image_size: height and width of the images.
        patch: height and width of one patch; must divide `image_size`.
        dim: channels of a token.
        depth: number of blocks.
        heads: attention heads per block; must divide `dim`.
        mlp_ratio: hidden channels of the perceptron per token channel, positive.
        pool: "cls" reads the class token, "mean" the mean of all patches (no class token then).
        num_classes: number of classes.
        in_channels: channels of the images.

    Shapes:
        - input: (B, in_channels, image_size, image_size)
        - output: (B, num_classes)

    Raises:
        ValueError: when sizes do not divide, or the pooling is unknown.
    """

    def __init__(
        self,
        image_size: int = 32,
        patch: int = 4,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: float = 2.0,
        pool: str = "cls",
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if patch < 1 or image_size % patch:
            raise ValueError(f"network.patch must divide the image size {image_size}, got {patch}.")
        if heads < 1 or dim % heads:
            raise ValueError(f"network.heads must divide network.dim {dim}, got {heads}.")
        if pool not in ("cls", "mean"):
            raise ValueError(f"network.pool must be 'cls' or 'mean', got {pool!r}.")
        if depth < 1 or round(mlp_ratio * dim) < 1:
            raise ValueError(
                "network.depth must be at least 1 and network.mlp_ratio positive, "
                f"got {depth} and {mlp_ratio}."
            )
        self.has_class_token = pool == "cls"
        tokens = (image_size // patch) ** 2 + int(self.has_class_token)
        self.patch_embedding = nn.Conv2d(in_channels, dim, patch, stride=patch)
        if self.has_class_token:
            self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embedding = nn.Parameter(torch.zeros(1, tokens, dim))
        self.blocks = nn.Sequential(
            *(Block(dim, heads, round(mlp_ratio * dim)) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew: normal with deviation 0.02, cut at two; biases zero."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)  # (B, patches, dim)
        if self.has_class_token:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.position_embedding))
        return self.head(x[:, 0] if self.has_class_token else x.mean(dim=1))

    def extra_repr(self) -> str:
        """Show the pooling in the printed network."""
        return f"has_class_token={self.has_class_token}"


def vit(
    image_size: int = 32,
    patch: int = 4,
    dim: int = 192,
    depth: int = 6,
    heads: int = 3,
    mlp_ratio: float = 2.0,
    pool: str = "cls",
    num_classes: int = 10,
    in_channels: int = 3,
) -> VisionTransformer:
    """Build a small vision transformer; see `VisionTransformer` for the arguments.

    Args:
        image_size: height and width of the images.
        patch: height and width of one patch.
        dim: channels of a token.
        depth: number of blocks.
        heads: attention heads per block.
        mlp_ratio: hidden channels of the perceptron per token channel.
        pool: "cls" or "mean".
        num_classes: number of classes.
        in_channels: channels of the images.

    Returns:
        The network, drawn anew from torch's global random numbers.
    """
    return VisionTransformer(
        image_size, patch, dim, depth, heads, mlp_ratio, pool, num_classes, in_channels
    )
