"""CLIP and SigLIP as open_clip saves and names them: ``open_clip_config.json`` beside the weights, or a model's name.

The files of a CLIP are read without that package. It is asked for the names of its models and the tags of their
weights, and, for a SigLIP, whose image tower is one of timm's, for what only timm knows of it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import stock_clip
from .tokenizers import OpenAITokenizer, Tokenizer, TransformersTokenizer
from .towers import BlockSizes, CLIPSizes, ResNetSizes, TowerCLIP
from .transformers_layout import tokenizer_in
from .weights import read_json, read_weights

__all__ = ["CONFIG", "PREFIX", "WEIGHTS", "load_named", "load_open_clip", "says_nothing_of_itself"]

PREFIX = "open_clip:"
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")

# What of open_clip's configuration is understood; any other key changes a tower in a way that these towers have not.
_VISION = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "norm_kwargs", "act_kwargs"}
_VISION |= {"timm_model_name", "timm_pool", "timm_proj"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs", "act_kwargs"}
_TEXT |= {"hf_tokenizer_name", "tokenizer_kwargs"}
_TEXT_VALUES = {  # read one way in a CLIP and the other in a SigLIP
    "no_causal_mask": (False, True),
    "pool_type": ("argmax", "last"),
    "proj_bias": (False, True),
    "proj_type": ("linear", "linear"),
}
_ONLY_IN_TRAINING = {"patch_dropout", "timm_model_pretrained", "timm_drop", "timm_drop_path", "pad_id"}


def says_nothing_of_itself(path: str, state: dict[str, Tensor]) -> bool:
    """Whether a file that has no configuration beside it is open_clip's: heads and activation need not be OpenAI's.

    Args:
        path: the file.
        state: its tensors ``(..., n)``, of which only the names are looked at.
    """
    own_names = any(key.startswith(("text.", "visual.trunk.")) or key == "logit_bias" for key in state)
    return own_names or os.path.basename(path).startswith("open_clip_")


def load_open_clip(folder: str, weights: str) -> TowerCLIP:
    """The CLIP in the file ``weights``, by the ``open_clip_config.json`` in ``folder``.

    Raises:
        ValueError: the two do not belong together, or describe a model with parts that CAPT has not.
    """
    path = os.path.join(folder, CONFIG)
    config = read_json(path)
    pixels = config.get("preprocess_cfg") or {}
    return _load(config.get("model_cfg") or {}, weights, path, pixels)


def load_named(name: str) -> TowerCLIP:
    """The CLIP ``MODEL/WEIGHTS``, by open_clip's name of the model and a tag of its weights, or a file of them.

    Raises:
        FileNotFoundError: open_clip knows no such model or tag; the message lists those that it knows.
        ValueError: open_clip is not installed, or the weights are not of this model.
        ConnectionError: the weights cannot be downloaded.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(
            f'"{PREFIX}{name}" needs the package open_clip ({error}); pip install open_clip_torch'
        ) from error
    model, _, weights = name.partition("/")
    config = open_clip.get_model_config(model) if model in open_clip.list_models() else None
    if config is None:
        raise FileNotFoundError(_unknown(f"{PREFIX}{name}", model, open_clip.list_models()))
    if os.path.isfile(weights):
        return _load(config, weights, f"open_clip's {model}", {})
    tags = open_clip.list_pretrained_tags_by_model(model)
    if weights not in tags:
        raise FileNotFoundError(_unknown(f"{PREFIX}{name}", weights, tags, "a file or a tag"))
    tag = open_clip.get_pretrained_cfg(model, weights)
    if bool(tag.get("quick_gelu")) != bool(config.get("quick_gelu")) and "timm_model_name" not in config["vision_cfg"]:
        quick = "with" if tag.get("quick_gelu") else "without"
        raise ValueError(
            f'"{PREFIX}{name}": these weights were trained {quick} QuickGELU, this model is not so; '
            f"name it as {PREFIX}{_other_activation(model)}/{weights}"
        )
    try:
        path = open_clip.download_pretrained(tag)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f'"{PREFIX}{name}" cannot be downloaded ({str(error).splitlines()[0]}); '
            f"fetch the file elsewhere and name it as {PREFIX}{model}/PATH"
        ) from error
    return _load(config, path, f"open_clip's {model}", tag)


def _unknown(name: str, part: str, known: list[str], what: str = "a model") -> str:
    near = difflib.get_close_matches(part, known, n=1)
    hint = f' (do you mean "{near[0]}"?)' if near else ""
    names = sorted(known) if len(known) <= 40 else f"{len(known)}, see open_clip.list_models()"
    return f'MODEL.BACKBONE.NAME "{name}": "{part}" is not {what} of open_clip\'s, which knows {names}{hint}'


def _other_activation(model: str) -> str:
    return model.removesuffix("-quickgelu") if model.endswith("-quickgelu") else f"{model}-quickgelu"


def _load(config: dict[str, Any], weights: str, origin: str, pixels: dict[str, Any]) -> TowerCLIP:
    sizes = _sizes(config, origin)
    stats = (list(pixels["mean"]), list(pixels["std"])) if pixels.get("mean") and pixels.get("std") else None
    state = _renamed(read_weights(weights, model_is_known=True), sizes)
    return TowerCLIP.of(state, sizes, _tokenizer(config["text_cfg"], os.path.dirname(weights) or ".", sizes), stats)


# ----------------------------------------------------------------------------------------------------------- the sizes


def _sizes(config: dict[str, Any], origin: str) -> CLIPSizes:
    vision, text = config.get("vision_cfg"), config.get("text_cfg")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise ValueError(f'"{origin}" describes no CLIP: no vision_cfg and text_cfg under model_cfg')
    is_siglip = "timm_model_name" in vision
    _check_known(vision, text, is_siglip, origin)
    quick = config.get("quick_gelu", False)
    image_size = vision.get("image_size", 224)
    tower: BlockSizes | ResNetSizes
    if is_siglip:
        tower, patch_size = _timm_tower(vision["timm_model_name"], image_size, origin)
    elif isinstance(vision.get("layers", 12), list | tuple):
        width = vision.get("width", 64)
        tower, patch_size = ResNetSizes(tuple(vision["layers"]), width, width * 32 // vision.get("head_width", 64)), 0
    else:
        width = vision.get("width", 768)
        tower = _blocks(vision, quick, width, width // vision.get("head_width", 64))
        patch_size = vision.get("patch_size", 16)
    return CLIPSizes(
        embed_dim=config["embed_dim"],
        image_size=image_size,
        patch_size=patch_size,
        vision=tower,
        text=_blocks(text, quick, text.get("width", 512), text.get("heads", 8)),
        vocab_size=text.get("vocab_size", 49408),
        context_length=text.get("context_length", 77),
        is_siglip=is_siglip,
    )


def _check_known(vision: dict[str, Any], text: dict[str, Any], is_siglip: bool, origin: str) -> None:
    """Refuse what would change a tower beyond what these towers can be."""
    unknown = [f"vision_cfg.{key}" for key in vision.keys() - _VISION - _ONLY_IN_TRAINING if vision[key]]
    known = _TEXT | _TEXT_VALUES.keys() | _ONLY_IN_TRAINING
    unknown += [f"text_cfg.{key}" for key in text.keys() - known if text[key]]
    unknown += [
        f"text_cfg.{key} {text.get(key, values[0])}"
        for key, values in _TEXT_VALUES.items()
        if text.get(key, values[0]) != values[is_siglip]
    ]
    if is_siglip and (vision.get("timm_pool"), vision.get("timm_proj")) != ("map", "none"):
        unknown.append(f"vision_cfg.timm_model_name {vision['timm_model_name']}")
    if unknown:
        raise ValueError(
            f'"{origin}" describes a model that is neither a CLIP nor a SigLIP: {", ".join(sorted(unknown))}; '
            "docs/BACKBONES.md says which can be read"
        )


def _blocks(config: dict[str, Any], quick_gelu: bool, width: int, heads: int) -> BlockSizes:
    is_tanh = (config.get("act_kwargs") or {}).get("approximate") == "tanh"
    return BlockSizes(
        width=width,
        layers=config.get("layers", 12),
        heads=heads,
        mlp_width=int(width * config.get("mlp_ratio", 4.0)),
        activation="quick_gelu" if quick_gelu else "gelu_pytorch_tanh" if is_tanh else "gelu",
        eps=(config.get("norm_kwargs") or {}).get("eps", 1e-5),
    )


def _timm_tower(name: str, image_size: int, origin: str) -> tuple[BlockSizes, int]:
    """Sizes and patch size of one of timm's towers, of which open_clip knows no more than the name."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f'"{origin}" has the image tower {name} of timm, which is not installed ({error}); '
            "pip install open_clip_torch"
        ) from error
    with torch.device("meta"):  # sizes alone, no weights
        tower = timm.create_model(name, num_classes=0, img_size=image_size)
    block, pool = tower.blocks[0], tower.attn_pool
    act = block.mlp.act
    is_tanh = getattr(act, "approximate", "none") == "tanh" or type(act).__name__ == "GELUTanh"
    sizes = BlockSizes(
        width=tower.embed_dim,
        layers=len(tower.blocks),
        heads=block.attn.num_heads,
        mlp_width=block.mlp.fc1.out_features,
        activation="gelu_pytorch_tanh" if is_tanh else "gelu",
        eps=tower.norm.eps,
    )
    if pool.num_heads != sizes.heads or pool.mlp.fc1.out_features != sizes.mlp_width:
        raise ValueError(f'"{origin}": the pooling head of {name} differs from its blocks, as that of no SigLIP does')
    return sizes, tower.patch_embed.patch_size[0]


# ----------------------------------------------------------------------------------------------------------- the names


_TIMM = {  # in the order in which they are replaced
    "visual.trunk.attn_pool.latent": "visual.attn_pool.query",
    "visual.trunk.attn_pool.proj.": "visual.attn_pool.attn.out_proj.",
    "visual.trunk.attn_pool.norm.": "visual.ln_post.ln.",
    "visual.trunk.attn_pool.mlp.": "visual.ln_post.mlp.",
    "visual.trunk.patch_embed.proj.": "visual.conv1.",
    "visual.trunk.pos_embed": "visual.positional_embedding",
    "visual.trunk.norm.": "visual.attn_pool.ln.",
    "visual.trunk.blocks.": "visual.transformer.resblocks.",
    ".attn.qkv.": ".attn.in_proj_",
    ".attn.proj.": ".attn.out_proj.",
    ".norm1.": ".ln_1.",
    ".norm2.": ".ln_2.",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
}


def _renamed(state: dict[str, Tensor], sizes: CLIPSizes) -> dict[str, Tensor]:
    """The same weights under OpenAI's names; what stands under ``text.`` stands there without it."""
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("text.")
        if sizes.is_siglip:
            for theirs, ours in _TIMM.items():
                key = key.replace(theirs, ours)
            for theirs, ours in (("text_projection.", "ln_final.projection."), ("ln_final.", "ln_final.norm.")):
                if key.startswith(theirs):
                    key = ours + key.removeprefix(theirs)
                    break
        if key in ("input_resolution", "context_length", "vocab_size", "attn_mask"):  # counts of OpenAI's archives
            continue
        renamed[key] = value.reshape(()) if key.startswith("logit_") else value
    if sizes.is_siglip:
        _join_pool(renamed)
        renamed["visual.proj"] = renamed["text_projection"] = torch.eye(sizes.embed_dim)
        renamed["visual.positional_embedding"] = renamed["visual.positional_embedding"].squeeze(0)
    return renamed


def _join_pool(state: dict[str, Tensor]) -> None:
    """timm keeps the pool's query projection and those of keys and values apart."""
    for kind in ("weight", "bias"):
        query, others = (state.pop(f"visual.trunk.attn_pool.{name}.{kind}") for name in ("q", "kv"))
        state[f"visual.attn_pool.attn.in_proj_{kind}"] = torch.cat([query, others])


# ------------------------------------------------------------------------------------------------------- the tokenizer


def _tokenizer(text: dict[str, Any], folder: str, sizes: CLIPSizes) -> Tokenizer:
    name, options = text.get("hf_tokenizer_name"), dict(text.get("tokenizer_kwargs") or {})
    clean = _cleaning(options.pop("clean", "whitespace" if name else "lower"))
    if options:
        raise ValueError(f"text_cfg.tokenizer_kwargs {sorted(options)} are options that CAPT does not know")
    if not name and sizes.vocab_size == len(stock_clip.tokenizer.encoder):
        return OpenAITokenizer()
    own = tokenizer_in(folder, sizes.is_siglip, clean)
    if own is not None:
        return own
    try:
        from transformers import AutoTokenizer

        return TransformersTokenizer(AutoTokenizer.from_pretrained(name), sizes.is_siglip, clean)
    except Exception as error:  # not installed, not reachable, not readable: the way out is the same
        raise ValueError(
            f"the tokenizer {name} cannot be had ({str(error).strip().splitlines()[0]}); "
            "put its files beside the weights, and pip install transformers sentencepiece protobuf"
        ) from error


def _cleaning(name: str) -> Callable[[str], str] | None:
    """What open_clip does to a text first; CLIP's own tokenizer does its cleaning itself."""
    if name == "lower":
        return None
    try:
        from open_clip.tokenizer import get_clean_fn
    except ImportError as error:
        raise ValueError(
            f'the tokenizer cleans texts in open_clip\'s way "{name}" ({error}); pip install open_clip_torch'
        ) from error
    clean: Callable[[str], str] = get_clean_fn(name)
    return clean
