"""CLIP and SigLIP as the package transformers saves them: ``config.json`` beside ``model.safetensors``.

The files are read without that package; it is asked only for a tokenizer that is not OpenAI's.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from . import stock_clip
from .tokenizers import OpenAITokenizer, Tokenizer, TransformersTokenizer
from .towers import BlockSizes, CLIPSizes, TowerCLIP
from .weights import read_json, read_weights

__all__ = ["CONFIG", "PREFIX", "WEIGHTS", "is_transformers", "load_named", "load_transformers", "tokenizer_in"]

PREFIX = "transformers:"
CONFIG = "config.json"
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# What config.json leaves out where it is as the package's CLIPConfig and SiglipConfig have it.
_CLIP: dict[str, dict[str, Any]] = {
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "image_size": 224,
        "patch_size": 32,
    },
    "text": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
    },
}
_SIGLIP_BOTH: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_SIGLIP_BOTH |= {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_SIGLIP: dict[str, dict[str, Any]] = {
    "vision": {**_CLIP["vision"], **_SIGLIP_BOTH, "patch_size": 16},
    "text": {**_CLIP["text"], **_SIGLIP_BOTH, "max_position_embeddings": 64, "vocab_size": 32000},
}
DEFAULTS = {"clip": _CLIP, "siglip": _SIGLIP}


def is_transformers(state: dict[str, Tensor]) -> bool:
    """Whether the names of these tensors ``(..., n)`` are the package's."""
    return any(key.startswith(("text_model.", "vision_model.")) for key in state)


def load_named(name: str) -> TowerCLIP:
    """The model ``ORGANISATION/NAME`` of the Hugging Face hub, from the hub's cache or fetched into it.

    Raises:
        ValueError: the package huggingface_hub is not installed, or the model is no CLIP.
        ConnectionError: the model cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(f'"{PREFIX}{name}" needs huggingface_hub ({error}); pip install huggingface_hub') from error
    folder = ""
    try:
        for weights in ("model*.safetensors*", "pytorch_model*.bin*"):  # the second in older repositories alone
            folder = snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model", weights])
            found = [path for file in WEIGHTS if os.path.isfile(path := os.path.join(folder, file))]
            if found:
                break
    except (OSError, RuntimeError, ValueError) as error:
        raise ConnectionError(
            f'"{PREFIX}{name}" cannot be had from the hub ({str(error).splitlines()[0]}); '
            "fetch its folder elsewhere and give its path as MODEL.BACKBONE.NAME"
        ) from error
    if not found or not os.path.isfile(os.path.join(folder, CONFIG)):
        raise ValueError(f'"{PREFIX}{name}" holds no {CONFIG} with {WEIGHTS[0]} or {WEIGHTS[2]}: no CLIP')
    return load_transformers(folder, found[0])


def load_transformers(folder: str, weights: str) -> TowerCLIP:
    """The CLIP or SigLIP in the file ``weights``, by the ``config.json`` in ``folder``.

    Raises:
        ValueError: the two do not belong together, or describe what is neither.
    """
    path = os.path.join(folder, CONFIG)
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in DEFAULTS:
        raise ValueError(f'"{path}" describes a model of type {kind!r}; those that can be read: {sorted(DEFAULTS)}')
    sizes = _sizes(config, kind, path)
    state = read_weights(weights)
    if not is_transformers(state):
        raise ValueError(f'"{weights}" holds no text_model.* or vision_model.*, which "{path}" promises')
    return TowerCLIP.of(_renamed(state, sizes), sizes, _tokenizer(folder, sizes), _pixel_stats(folder))


def _sizes(config: dict[str, Any], kind: str, path: str) -> CLIPSizes:
    both = {
        tower: DEFAULTS[kind][tower]
        | (config.get(f"{tower}_config") or {})
        | (config.get(f"{tower}_config_dict") or {})
        for tower in ("vision", "text")
    }
    vision, text = both["vision"], both["text"]
    if kind == "clip":
        embed_dim = config.get("projection_dim", 512)
    else:
        embed_dim = text.get("projection_size") or text["hidden_size"]
        if not vision.get("vision_use_head", True) or embed_dim != vision["hidden_size"]:
            raise ValueError(f'"{path}" describes a SigLIP without the pooling head that its image features come from')
    return CLIPSizes(
        embed_dim=embed_dim,
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision=_blocks(vision),
        text=_blocks(text),
        vocab_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        is_siglip=kind == "siglip",
    )


def _blocks(config: dict[str, Any]) -> BlockSizes:
    return BlockSizes(
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
        activation=config["hidden_act"],
        eps=config["layer_norm_eps"],
    )


# ----------------------------------------------------------------------------------------------------------- the names


_OUTSIDE_BLOCKS = {
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.patch_embedding.bias": "visual.conv1.bias",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
    "vision_model.head.probe": "visual.attn_pool.query",
}
_PREFIXES = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.head.attention.": "visual.attn_pool.attn.",
    "vision_model.head.layernorm.": "visual.ln_post.ln.",
    "vision_model.head.mlp.": "visual.ln_post.mlp.",
    "text_model.head.": "ln_final.projection.",
}
_CLIP_NORMS = {"vision_model.post_layernorm.": "visual.ln_post.", "text_model.final_layer_norm.": "ln_final."}
_SIGLIP_NORMS = {
    "vision_model.post_layernorm.": "visual.attn_pool.ln.",
    "text_model.final_layer_norm.": "ln_final.norm.",
}
_IN_BLOCKS = {
    "self_attn.": "attn.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "fc1.": "c_fc.",
    "fc2.": "c_proj.",
}
TRANSPOSED = ("text_projection", "visual.proj")  # OpenAI multiplies from the right


def _renamed(state: dict[str, Tensor], sizes: CLIPSizes) -> dict[str, Tensor]:
    """The same weights under OpenAI's names: q, k and v joined, projections transposed."""
    prefixes = _PREFIXES | (_SIGLIP_NORMS if sizes.is_siglip else _CLIP_NORMS)
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("position_ids"):  # a count that older versions stored
            continue
        name = _OUTSIDE_BLOCKS.get(key) or _renamed_key(key, prefixes)
        renamed[name] = value.t() if name in TRANSPOSED else value.reshape(()) if name.startswith("logit_") else value
    _join_attention(renamed)
    if sizes.is_siglip:
        renamed["visual.proj"] = renamed["text_projection"] = torch.eye(sizes.embed_dim)
    return renamed


def _renamed_key(key: str, prefixes: dict[str, str]) -> str:
    for theirs, ours in prefixes.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            break
    for theirs, ours in _IN_BLOCKS.items():
        key = key.replace(theirs, ours)
    return key


def _join_attention(state: dict[str, Tensor]) -> None:
    """Replace the projections of queries, keys and values by one, in their order."""
    for key in [key for key in state if key.endswith((".attn.q_proj.weight", ".attn.q_proj.bias"))]:
        block, _, kind = key.rpartition("q_proj.")
        parts = [state.pop(f"{block}{name}_proj.{kind}", None) for name in "qkv"]
        if all(part is not None for part in parts):  # else load_state_dict names what is missing
            state[f"{block}in_proj_{kind}"] = torch.cat([part for part in parts if part is not None])


# --------------------------------------------------------------------------------------------------- what lies beside


def _pixel_stats(folder: str) -> tuple[list[float], list[float]] | None:
    path = os.path.join(folder, "preprocessor_config.json")
    if not os.path.isfile(path):
        return None
    config = read_json(path)
    found = config.get("image_mean"), config.get("image_std")
    return (list(found[0]), list(found[1])) if found[0] and found[1] else None


def _tokenizer(folder: str, sizes: CLIPSizes) -> Tokenizer:
    own = tokenizer_in(folder, reads_last=sizes.is_siglip)
    if own is not None:
        return own
    if sizes.is_siglip or sizes.vocab_size != len(stock_clip.tokenizer.encoder):
        raise ValueError(f'"{folder}" holds no tokenizer for its {sizes.vocab_size:,} tokens; copy its files there')
    return OpenAITokenizer()


def tokenizer_in(folder: str, reads_last: bool, clean: Any = None) -> Tokenizer | None:
    """The tokenizer whose files lie in ``folder``; OpenAI's where it is the same; None without files.

    Raises:
        ValueError: it is another one, and the package transformers is not installed or cannot read it.
    """
    files = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
    if not any(os.path.isfile(os.path.join(folder, name)) for name in files):
        return None
    if not reads_last and clean is None and _vocabulary(folder) == stock_clip.tokenizer.encoder:
        return OpenAITokenizer()
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ValueError(
            f'the tokenizer in "{folder}" needs the package transformers ({error}); '
            "pip install transformers sentencepiece protobuf"
        ) from error
    try:
        return TransformersTokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True), reads_last, clean)
    except Exception as error:  # transformers raises whatever the reader of that kind of tokenizer does
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f'the tokenizer in "{folder}" cannot be read ({first_line}); are its files whole?') from error


def _vocabulary(folder: str) -> dict[str, int] | None:
    """Token to id, of the byte pairs in ``folder``; None where they are kept in no form that is plain to read."""
    plain, whole = os.path.join(folder, "vocab.json"), os.path.join(folder, "tokenizer.json")
    if os.path.isfile(plain):
        return read_json(plain)
    if os.path.isfile(whole):
        model = read_json(whole).get("model")
        found = model.get("vocab") if isinstance(model, dict) else None
        return found if isinstance(found, dict) else None
    return None
