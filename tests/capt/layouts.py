"""One small model of each layout, saved by the library that owns it, with that library's own answers."""

import foreign_clips as foreign
import open_clip
import torch


def features_of(output):
    """The features, of either library's answer."""
    return getattr(output, "pooler_output", output)


class Theirs:
    """A model of the owning library, and the file that it is saved in."""

    def __init__(self, path, model, tokenize):
        self.path, self.model, self.tokenize = path, model, tokenize

    @torch.no_grad()
    def images(self, pixels):
        encode = getattr(self.model, "get_image_features", None) or self.model.encode_image
        return features_of(encode(pixels))

    @torch.no_grad()
    def texts(self, texts):
        encode = getattr(self.model, "get_text_features", None) or self.model.encode_text
        return features_of(encode(self.tokenize(texts)))


def by_transformers(folder, tokenizer, **options):
    model = foreign.transformers_clip(**options)
    foreign.save_transformers(model, folder, tokenizer)
    length = model.config.text_config.max_position_embeddings
    tokenizer = tokenizer or foreign.clip_tokenizer()

    def tokenize(texts):
        return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids

    return Theirs(folder, model, tokenize)


def by_siglip(folder, make_tokenizer):
    tokenizer = make_tokenizer(folder)
    model = foreign.siglip(len(tokenizer), foreign.SIDE + 3)  # the last pixels fill no patch
    foreign.save_transformers(model, folder, tokenizer)
    options = {"padding": "max_length", "truncation": True, "max_length": foreign.SIGLIP_CONTEXT}
    return Theirs(folder, model, lambda texts: tokenizer(texts, **options, return_tensors="pt").input_ids)


def by_open_clip_siglip(folder):
    tokenizer = foreign.siglip_tokenizer(folder)
    config = foreign.open_clip_siglip_config(len(tokenizer))
    model = foreign.open_clip_model(config)
    foreign.save_open_clip(model, config, folder, tokenizer=tokenizer)
    theirs = open_clip.tokenizer.HFTokenizer(str(folder), foreign.SIGLIP_CONTEXT, clean="canonicalize")
    return Theirs(folder, model, theirs)


def by_open_clip(folder, config, safe=True):
    model = foreign.open_clip_model(config)
    foreign.save_open_clip(model, config, folder, safe)
    length = config["text_cfg"]["context_length"]
    return Theirs(folder, model, open_clip.SimpleTokenizer(context_length=length))


WIDE = {"vision": {"width": 160, "head_width": 80, "patch_size": 16}, "text": {"width": 96, "heads": 2}}
RESNET = {"vision": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "mlp_ratio": None, "patch_size": None}}
MAKERS = {
    "transformers": lambda folder: by_transformers(folder, foreign.clip_tokenizer()),
    "transformers, QuickGELU": lambda folder: by_transformers(folder, None, activation="quick_gelu"),
    "transformers, tanh, context of 20": lambda folder: by_transformers(
        folder, foreign.clip_tokenizer(), activation="gelu_pytorch_tanh", context_length=20
    ),
    "open_clip": lambda folder: by_open_clip(folder, foreign.open_clip_config()),
    "open_clip, QuickGELU, pickled": lambda folder: by_open_clip(folder, foreign.open_clip_config(True), safe=False),
    "open_clip, as ViT-H": lambda folder: by_open_clip(folder, foreign.open_clip_config(**WIDE)),
    "open_clip, text apart": lambda folder: by_open_clip(folder, {**foreign.open_clip_config(), "custom_text": True}),
    "open_clip, ResNet": lambda folder: by_open_clip(folder, foreign.open_clip_config(**RESNET)),
    "SigLIP": lambda folder: by_siglip(folder, foreign.siglip_tokenizer),
    "SigLIP 2": lambda folder: by_siglip(folder, lambda _: foreign.siglip2_tokenizer()),
    "open_clip, SigLIP": by_open_clip_siglip,
}
SIGLIPS = [layout for layout in MAKERS if "SigLIP" in layout]
