"""The modules of OpenAI's CLIP, as far as this repository walks them; forks of it have the same names."""

from collections.abc import Iterator
from typing import overload

from torch import Tensor, nn

class FeedForward(nn.Sequential):  # a plain Sequential, of these two and an activation
    c_fc: nn.Linear
    c_proj: nn.Linear

class ResidualAttentionBlock(nn.Module):
    ln_1: nn.LayerNorm
    ln_2: nn.LayerNorm
    attn: nn.MultiheadAttention
    mlp: FeedForward
    attn_mask: Tensor | None
    VPT_shallow: nn.Parameter  # prompts of the family's forks; hung on by trainers/deep_prompts.py, else not there
    def __call__(self, x: Tensor) -> Tensor: ...

class _Blocks(nn.Sequential):  # a plain Sequential, of such blocks
    def __iter__(self) -> Iterator[ResidualAttentionBlock]: ...
    @overload
    def __getitem__(self, idx: slice) -> nn.Sequential: ...
    @overload
    def __getitem__(self, idx: int) -> ResidualAttentionBlock: ...

class Transformer(nn.Module):
    width: int
    layers: int
    resblocks: _Blocks
    def __call__(self, x: Tensor) -> Tensor: ...

class VisionTransformer(nn.Module):
    input_resolution: int
    output_dim: int
    conv1: nn.Conv2d
    class_embedding: nn.Parameter
    positional_embedding: nn.Parameter
    ln_pre: nn.LayerNorm
    transformer: Transformer
    ln_post: nn.LayerNorm
    proj: nn.Parameter
    VPT: nn.Parameter  # as VPT_shallow, in front of the first block
    def __call__(self, x: Tensor) -> Tensor: ...

class ModifiedResNet(nn.Module):
    input_resolution: int
    output_dim: int
    conv1: nn.Conv2d
    attnpool: nn.Module
    def __call__(self, x: Tensor) -> Tensor: ...

class CLIP(nn.Module):
    context_length: int
    vocab_size: int
    visual: VisionTransformer | ModifiedResNet
    transformer: Transformer
    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter
    ln_final: nn.LayerNorm
    text_projection: nn.Parameter
    logit_scale: nn.Parameter
