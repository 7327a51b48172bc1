"""Small CLIPs with random weights, made and saved by the libraries that own their layouts: transformers and open_clip.

Their heads are not 64 channels wide, their widths differ from tower to tower, and every weight is away from its start,
so that nothing can be right by accident.
"""

import json
from pathlib import Path

import torch

from trainers.capt.backbone import stock_clip

SIDE, PATCH = 32, 8
CLIP_VISION = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
CLIP_TEXT = {"hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 2, "num_attention_heads": 8}
SENTENCES = [
    "a photo of a cup.",
    "An OTTER,  swimming & diving; it's 3 o'clock",
    "sea view " * 60,
    "naïve café — été",
    "x",
]


def stir(model, seed=0):
    """Give every parameter random numbers, of the sizes that trained ones have."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=source)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif "logit_scale" in name:
                parameter.fill_(2.5)
            elif "logit_bias" in name:
                parameter.fill_(-3.0)
            else:
                is_gain = name.endswith("weight")
                parameter.copy_(is_gain + 0.2 * noise)
    return model.eval()


def clip_tokenizer():
    """OpenAI's byte pairs as transformers' own tokenizer."""
    from transformers import CLIPTokenizer

    openai = stock_clip.tokenizer
    return CLIPTokenizer(vocab=dict(openai.encoder), merges=list(openai.bpe_ranks))


def transformers_clip(activation="gelu", context_length=77, **changes):
    """A CLIPModel."""
    from transformers import CLIPConfig, CLIPModel

    vision = {**CLIP_VISION, "image_size": SIDE, "patch_size": PATCH, "hidden_act": activation}
    text = {**CLIP_TEXT, "hidden_act": activation, "max_position_embeddings": context_length, "vocab_size": 49408}
    text |= {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    return stir(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48, **changes)))


def save_transformers(model, folder, tokenizer=None):
    """What ``save_pretrained`` writes of a model and its tokenizer."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return Path(folder)


def open_clip_config(quick_gelu=False, **towers):
    """The configuration of a small CLIP, as open_clip has it."""
    vision = {"image_size": SIDE, "layers": 3, "width": 96, "head_width": 24, "mlp_ratio": 1.7, "patch_size": PATCH}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 8, "layers": 2, "mlp_ratio": 2.25}
    config = {"embed_dim": 48, "vision_cfg": vision | towers.get("vision", {})}
    config["text_cfg"] = text | towers.get("text", {})
    return config | ({"quick_gelu": True} if quick_gelu else {})


def open_clip_model(config):
    """The CLIP of a configuration."""
    import open_clip

    config = json.loads(json.dumps(config))
    custom = config.pop("custom_text", False)
    return stir((open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config))


def save_open_clip(model, config, folder, safe=True, tokenizer=None):
    """A folder as open_clip's own export to the hub lays it out."""
    from open_clip.push_to_hf_hub import save_for_hf

    class Nothing:
        def save_pretrained(self, folder):
            pass

    for name, value in (("image_mean", (0.48, 0.46, 0.41)), ("image_std", (0.27, 0.26, 0.28))):
        setattr(model.visual, name, getattr(model.visual, name, None) or value)
    save_for_hf(model, tokenizer or Nothing(), config, folder, safe_serialization=safe)
    return Path(folder)
