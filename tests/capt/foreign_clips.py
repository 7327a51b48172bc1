"""Small CLIPs with random weights, made and saved by the libraries that own their layouts: transformers and open_clip.

Their heads are not 64 channels wide, their widths differ from tower to tower, and every weight is away from its start,
so that nothing can be right by accident.
"""

import io
import json
from pathlib import Path

import torch

from trainers.capt.backbone import stock_clip
from trainers.imagenet_templates import IMAGENET_TEMPLATES

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


SIGLIP_CONTEXT = 16
TEXTS = [
    template.format(word).lower() for template in IMAGENET_TEMPLATES for word in ("cup", "otter", "sea view", "wrench")
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


# SigLIP


def siglip_tokenizer(folder):
    """SigLIP's kind: sentencepiece without a start token, padded by the end token, punctuation left out."""
    import sentencepiece
    from transformers import SiglipTokenizer

    model = io.BytesIO()
    options = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=300, hard_vocab_limit=False, **options
    )
    path = Path(folder) / "spiece.model"
    path.write_bytes(model.getvalue())
    return SiglipTokenizer(str(path))


def siglip2_tokenizer(keep_words=True):
    """SigLIP 2's kind: Gemma's byte pairs, an end token behind and another one for padding."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    small = Tokenizer(models.BPE(unk_token="<unk>"))
    small.normalizer = normalizers.Replace(" ", "\u2581")
    if keep_words:  # as Gemma's pieces do
        small.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    small.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    pairs = json.loads(small.to_str())["model"]
    merges = [tuple(pair) for pair in pairs["merges"]]
    tokenizer = Siglip2Tokenizer(vocab=pairs["vocab"], merges=merges, padding_side="right")
    end = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = end
    return tokenizer


def siglip(vocab_size, side=SIDE):
    """A SiglipModel, as those of SigLIP and of SigLIP 2 with a fixed resolution are."""
    from transformers import SiglipConfig, SiglipModel

    vision = {**CLIP_VISION, "image_size": side, "patch_size": PATCH}
    text = {**CLIP_TEXT, "max_position_embeddings": SIGLIP_CONTEXT, "vocab_size": vocab_size, "projection_size": 96}
    special = {"bos_token_id": None, "eos_token_id": 1}
    return stir(SiglipModel(SiglipConfig(text_config=text | special, vision_config=vision)))


def timm_siglip():
    """Name of a small tower of SigLIP's kind, which timm then knows."""
    from timm.models import is_model, register_model
    from timm.models.vision_transformer import VisionTransformer

    def vit_tiny_siglip_test(pretrained=False, img_size=SIDE, num_classes=0, **_):
        sizes = {
            "embed_dim": 96,
            "depth": 2,
            "num_heads": 4,
            "mlp_ratio": 1.5,
            "patch_size": PATCH,
            "img_size": img_size,
        }
        return VisionTransformer(class_token=False, global_pool="map", num_classes=num_classes, **sizes)

    if not is_model("vit_tiny_siglip_test"):
        vit_tiny_siglip_test.__module__ = VisionTransformer.__module__  # register_model looks up the module
        register_model(vit_tiny_siglip_test)
    return "vit_tiny_siglip_test"


def open_clip_siglip_config(vocab_size):
    """The configuration of a small SigLIP, as open_clip has it."""
    vision = {"image_size": SIDE, "timm_model_name": timm_siglip(), "timm_pool": "map", "timm_proj": "none"}
    text = {"context_length": SIGLIP_CONTEXT, "vocab_size": vocab_size, "width": 64, "heads": 8, "layers": 2}
    text |= {"hf_tokenizer_name": "nobody/has-it", "tokenizer_kwargs": {"clean": "canonicalize"}, "mlp_ratio": 2.25}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    text |= {"act_kwargs": {"approximate": "tanh"}}
    return {"embed_dim": 96, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
