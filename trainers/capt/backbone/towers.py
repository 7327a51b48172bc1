"""CLIP's two towers with any heads, activation and sizes, under the attribute names of OpenAI's own.

OpenAI's package infers all sizes from the weights, with 64 channels a head and QuickGELU. Other CLIPs differ in both,
so these modules are told. What walks OpenAI's CLIP from outside walks these as well.

Shapes: B batch, C texts, L context length, N patches, D joint width, Dv visual width, Dt text width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from . import stock_clip
from .activation import QuickGELU
from .tokenizers import Tokenizer

if TYPE_CHECKING:
    from clip.model import ModifiedResNet

__all__ = ["ACTIVATIONS", "BlockSizes", "CLIPSizes", "ResNetSizes", "TowerCLIP"]


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "quick_gelu": QuickGELU,
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
}


@dataclass(frozen=True)
class BlockSizes:
    """The blocks of a tower.

    Attributes:
        width: channels.
        layers: number of blocks.
        heads: of the attention.
        mlp_width: hidden channels of the feed-forward networks.
        activation: a key of :data:`ACTIVATIONS`.
        eps: of the layer norms.

    Raises:
        ValueError: no such activation, or the heads do not divide the width.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'the activation "{self.activation}" is none of {", ".join(ACTIVATIONS)}')
        _check_counts(self, "width", "layers", "heads", "mlp_width")
        if self.width % self.heads:
            raise ValueError(f"{self.width} channels cannot be shared among {self.heads} heads")


@dataclass(frozen=True)
class ResNetSizes:
    """OpenAI's ResNet: bottlenecks of the four stages, channels of the first, heads of the attention pool."""

    layers: tuple[int, ...]
    width: int
    heads: int


@dataclass(frozen=True)
class CLIPSizes:
    """All that a CLIP is made of but the weights.

    Attributes:
        embed_dim: D.
        image_size: side of the square input, pixels.
        patch_size: side of a patch; unused by a ResNet.
        vision: the image tower.
        text: the text tower.
        vocab_size: number of tokens.
        context_length: L.
        is_siglip: SigLIP's design: no class token but an attention pool, a text tower that sees all of the text at
            once and is read at its last place.
    """

    embed_dim: int
    image_size: int
    patch_size: int
    vision: BlockSizes | ResNetSizes
    text: BlockSizes
    vocab_size: int
    context_length: int
    is_siglip: bool = False

    def __post_init__(self) -> None:
        _check_counts(self, "embed_dim", "image_size", "vocab_size", "context_length")
        if isinstance(self.vision, BlockSizes):
            _check_counts(self, "patch_size")


def _check_counts(sizes: object, *names: str) -> None:
    """Refuse what is no number of things; files say the strangest."""
    for name in names:
        if not isinstance(value := getattr(sizes, name), int) or value < 1:
            raise ValueError(f"{name} must be a whole number above 0, the configuration says {value!r}")


class LayerNorm(nn.LayerNorm):
    """Computed in the precision of its own weights, which stay in fp32."""

    def forward(self, input: Tensor) -> Tensor:
        """``(..., width)`` in the input's dtype."""
        x = input.to(self.weight.dtype)
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).to(input.dtype)


def feed_forward(sizes: BlockSizes) -> nn.Sequential:
    """Two layers and the activation, under the names of OpenAI's CLIP."""
    first, second = nn.Linear(sizes.width, sizes.mlp_width), nn.Linear(sizes.mlp_width, sizes.width)
    return nn.Sequential(OrderedDict(c_fc=first, gelu=ACTIVATIONS[sizes.activation](), c_proj=second))


class Block(nn.Module):
    """Attention and a feed-forward network, each behind its layer norm.

    Args:
        sizes: see :class:`BlockSizes`.
        attn_mask: ``(L, L)`` added to the attention's scores; None where each token sees all.
    """

    attn_mask: Tensor | None

    def __init__(self, sizes: BlockSizes, attn_mask: Tensor | None):
        super().__init__()
        self.attn = nn.MultiheadAttention(sizes.width, sizes.heads)
        self.ln_1 = LayerNorm(sizes.width, eps=sizes.eps)
        self.mlp = feed_forward(sizes)
        self.ln_2 = LayerNorm(sizes.width, eps=sizes.eps)
        self.register_buffer("attn_mask", attn_mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(length, batch, width)`` to the same."""
        mask = None if self.attn_mask is None else self.attn_mask.to(x.dtype)
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Blocks one behind the other.

    Attributes:
        prompt_start: place of the first token that deep prompts replace.
    """

    def __init__(self, sizes: BlockSizes, attn_mask: Tensor | None = None, prompt_start: int = 1):
        super().__init__()
        self.width, self.layers = sizes.width, sizes.layers
        self.prompt_start = prompt_start
        self.resblocks = nn.Sequential(*[Block(sizes, attn_mask) for _ in range(sizes.layers)])

    def forward(self, x: Tensor) -> Tensor:
        """``(length, batch, width)`` to the same."""
        return self.resblocks(x)


class AttentionPool(nn.Module):
    """SigLIP's pooled token: a learned query that attends to all patch tokens behind their layer norm."""

    def __init__(self, sizes: BlockSizes):
        super().__init__()
        self.ln = LayerNorm(sizes.width, eps=sizes.eps)
        self.query = nn.Parameter(torch.empty(1, 1, sizes.width))
        self.attn = nn.MultiheadAttention(sizes.width, sizes.heads, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, Dv)`` of patch tokens ``(B, N, Dv)``."""
        normed = self.ln(tokens)
        query = self.query.to(normed.dtype).expand(len(normed), -1, -1)
        return self.attn(query, normed, normed, need_weights=False)[0].squeeze(1)


class PooledHead(nn.Module):
    """What SigLIP makes of its pooled token: x + MLP(LN(x)). It stands where CLIP has its last layer norm."""

    def __init__(self, sizes: BlockSizes):
        super().__init__()
        self.ln = LayerNorm(sizes.width, eps=sizes.eps)
        self.mlp = feed_forward(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., Dv)`` to the same."""
        return x + self.mlp(self.ln(x))


class VisionTransformer(nn.Module):
    """The image tower. SigLIP's has ``attn_pool`` in place of the class token, and its ``proj`` is the identity."""

    attn_pool: AttentionPool | None

    def __init__(self, sizes: CLIPSizes, vision: BlockSizes):
        super().__init__()
        self.input_resolution = sizes.image_size
        self.output_dim = sizes.embed_dim
        has_class = not sizes.is_siglip
        self.conv1 = nn.Conv2d(3, vision.width, sizes.patch_size, stride=sizes.patch_size, bias=sizes.is_siglip)
        self.class_embedding = nn.Parameter(torch.empty(vision.width)) if has_class else None
        num_tokens = (sizes.image_size // sizes.patch_size) ** 2 + has_class
        self.positional_embedding = nn.Parameter(torch.empty(num_tokens, vision.width))
        self.ln_pre = LayerNorm(vision.width, eps=vision.eps) if has_class else nn.Identity()
        self.transformer = Transformer(vision)
        self.attn_pool = None if has_class else AttentionPool(vision)
        self.ln_post = LayerNorm(vision.width, eps=vision.eps) if has_class else PooledHead(vision)
        self.proj = nn.Parameter(torch.empty(vision.width, sizes.embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, D)``, not normalised, of images ``(B, 3, H, W)``."""
        x = self.conv1(images).flatten(2).transpose(1, 2)  # (B, N, Dv)
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)
        token = x[:, 0] if self.attn_pool is None else self.attn_pool(x)
        return self.ln_post(token) @ self.proj


class ProjectedNorm(nn.Sequential):
    """SigLIP's last layer norm and its projection, which has a bias; ``text_projection`` behind it is the identity."""

    def __init__(self, text: BlockSizes, embed_dim: int):
        norm = LayerNorm(text.width, eps=text.eps)
        super().__init__(OrderedDict(norm=norm, projection=nn.Linear(text.width, embed_dim)))


class TowerCLIP(nn.Module):
    """Both towers; :meth:`of` makes one with weights.

    Args:
        sizes: see :class:`CLIPSizes`.
        tokenizer: of the texts that it was trained on.
        pixel_stats: mean and standard deviation of each channel that its images are normalised by, where known.
    """

    visual: VisionTransformer | ModifiedResNet

    def __init__(
        self,
        sizes: CLIPSizes,
        tokenizer: Tokenizer,
        pixel_stats: tuple[Sequence[float], Sequence[float]] | None = None,
    ):
        super().__init__()
        self.sizes, self.tokenizer, self.pixel_stats = sizes, tokenizer, pixel_stats
        self.context_length, self.vocab_size = sizes.context_length, sizes.vocab_size
        text, vision, dim = sizes.text, sizes.vision, sizes.embed_dim
        if isinstance(vision, ResNetSizes):
            self.visual = stock_clip.build_resnet(vision.layers, dim, vision.heads, sizes.image_size, vision.width)
        else:
            self.visual = VisionTransformer(sizes, vision)
        mask = None if sizes.is_siglip else causal_mask(sizes.context_length)
        self.transformer = Transformer(text, mask, prompt_start=len(tokenizer.start))
        self.token_embedding = nn.Embedding(sizes.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.empty(sizes.context_length, text.width))
        self.ln_final = ProjectedNorm(text, dim) if sizes.is_siglip else LayerNorm(text.width, eps=text.eps)
        self.text_projection = nn.Parameter(torch.empty(dim if sizes.is_siglip else text.width, dim))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(())) if sizes.is_siglip else None

    @classmethod
    def of(
        cls,
        state: dict[str, Tensor],
        sizes: CLIPSizes,
        tokenizer: Tokenizer,
        pixel_stats: tuple[Sequence[float], Sequence[float]] | None,
    ) -> TowerCLIP:
        """The model with the weights ``state``, ``(rows, columns)`` as OpenAI's; they are taken over, not copied."""
        with torch.device("meta"):  # nothing is allocated that the weights would only overwrite
            model = cls(sizes, tokenizer, pixel_stats)
        model.load_state_dict(state, assign=True)
        return model

    @property
    def dtype(self) -> torch.dtype:
        """Of the towers' matrices."""
        return self.visual.conv1.weight.dtype

    def encode_image(self, images: Tensor) -> Tensor:
        """Features ``(B, D)``, not normalised, of images ``(B, 3, H, W)``."""
        return self.visual(images.to(self.dtype))

    def encode_text(self, ids: Tensor) -> Tensor:
        """Features ``(C, D)``, not normalised, of token ids ``(C, L)``."""
        x = self.token_embedding(ids).to(self.dtype) + self.positional_embedding.to(self.dtype)
        x = self.ln_final(self.transformer(x.transpose(0, 1)).transpose(0, 1))
        return x[torch.arange(len(x), device=x.device), self.tokenizer.end_of(ids)] @ self.text_projection


def causal_mask(length: int) -> Tensor:
    """``(L, L)`` fp32 on the CPU: minus infinity above the diagonal, since no token sees what stands behind it."""
    return torch.full((length, length), -torch.inf, device="cpu").triu(1)
