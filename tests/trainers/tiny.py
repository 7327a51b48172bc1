"""A small CLIP, prompts, images and trainers, the same on every machine: numbers come from numpy's frozen RandomState.

Nothing of this repository is imported before :func:`make_trainer`, so that the original repositories can be run on the
same numbers (``tests/peers``).
"""

import hashlib
import types
import zlib
from pathlib import Path

import numpy as np
import torch

CLASS_NAMES = ["face", "motor_bike", "sea lake view", "wrench"]
TEXT_WIDTH, VISUAL_WIDTH, EMBED_DIM, NUM_BLOCKS, SIDE, PATCH = 64, 128, 64, 3, 32, 16


def _normal(source, *shape, std=0.02):
    """Rounded to half precision, in which the stock CLIP keeps its matrices."""
    return torch.from_numpy((source.standard_normal(shape) * std).astype(np.float16).astype(np.float32))


def clip_state(seed=0, num_blocks=NUM_BLOCKS):
    """State dict of a CLIP with three blocks a tower, or ``num_blocks``, in OpenAI's layout."""
    source = np.random.RandomState(seed)
    tw, vw, d = TEXT_WIDTH, VISUAL_WIDTH, EMBED_DIM
    state = {
        "visual.class_embedding": _normal(source, vw, std=vw**-0.5),
        "visual.positional_embedding": _normal(source, (SIDE // PATCH) ** 2 + 1, vw, std=vw**-0.5),
        "visual.proj": _normal(source, vw, d, std=vw**-0.5),
        "visual.conv1.weight": _normal(source, vw, 3, PATCH, PATCH, std=0.05),
        "text_projection": _normal(source, tw, d, std=tw**-0.5),
        "positional_embedding": _normal(source, 77, tw, std=0.1),
        "logit_scale": torch.tensor(2.5),
        "token_embedding.weight": _normal(source, 49408, tw, std=0.2),
    }
    for name, width in (("visual.ln_pre", vw), ("visual.ln_post", vw), ("ln_final", tw)):
        _norm(state, source, name, width)
    for tower, width in (("visual.transformer", vw), ("transformer", tw)):
        for i in range(num_blocks):
            _block(state, source, f"{tower}.resblocks.{i}", width)
    return state


def _norm(state, source, name, width):
    state[f"{name}.weight"] = 1 + _normal(source, width, std=0.1)
    state[f"{name}.bias"] = _normal(source, width, std=0.1)


def _block(state, source, name, width):
    _norm(state, source, f"{name}.ln_1", width)
    _norm(state, source, f"{name}.ln_2", width)
    shapes = {"attn.in_proj": (3 * width, width), "attn.out_proj": (width, width)}
    shapes |= {"mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
    for layer, (rows, columns) in shapes.items():
        weight, bias = ("_weight", "_bias") if layer == "attn.in_proj" else (".weight", ".bias")
        state[f"{name}.{layer}{weight}"] = _normal(source, rows, columns, std=columns**-0.5)
        state[f"{name}.{layer}{bias}"] = _normal(source, rows)


TEACHER_DIM = 96  # joint width of PromptKD's teacher


def teacher_clip_state():
    """PromptKD's teacher: another CLIP with a wider joint space."""
    source, state = np.random.RandomState(17), clip_state(seed=3)
    state["visual.proj"] = _normal(source, VISUAL_WIDTH, TEACHER_DIM, std=VISUAL_WIDTH**-0.5)
    state["text_projection"] = _normal(source, TEXT_WIDTH, TEACHER_DIM, std=TEXT_WIDTH**-0.5)
    return state


def teacher_prompts():
    """What a PromptSRC run on that CLIP leaves: the prompts of both towers, depth 9 cut to the number of blocks."""
    source = np.random.RandomState(18)
    state = {"prompt_learner.ctx": _normal(source, 4, TEXT_WIDTH, std=0.1)}
    state["image_encoder.VPT"] = _normal(source, 4, VISUAL_WIDTH, std=0.1)
    for i in range(1, NUM_BLOCKS):
        state[f"image_encoder.transformer.resblocks.{i}.VPT_shallow"] = _normal(source, 4, VISUAL_WIDTH, std=0.1)
        state[f"text_encoder.transformer.resblocks.{i}.VPT_shallow"] = _normal(source, 4, TEXT_WIDTH, std=0.1)
    return state


def save_teacher(folder):
    """Write the teacher's CLIP and run into ``folder`` and return the keys of PROMPTKD that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    clip, run = folder / "teacher_clip.pt", folder / "teacher"
    torch.save(teacher_clip_state(), clip)
    (run / "VLPromptLearner").mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": teacher_prompts(), "epoch": 20}, run / "VLPromptLearner" / "model-best.pth.tar")
    return {"TEACHER_NAME": str(clip), "TEACHER_DIR": str(run)}


def resnet_state(seed=0):
    """State dict of a CLIP with a ResNet of one bottleneck a stage."""
    source = np.random.RandomState(seed)
    state = {k: v for k, v in clip_state(seed).items() if not k.startswith("visual.")}
    width, spatial = 8, 1
    convs = [("conv1", width // 2, 3, 3), ("conv2", width // 2, width // 2, 3), ("conv3", width, width // 2, 3)]
    inside = width
    for stage in range(4):
        planes = width * 2**stage
        name = f"layer{stage + 1}.0"
        convs += [(f"{name}.conv1", planes, inside, 1), (f"{name}.conv2", planes, planes, 3)]
        convs += [(f"{name}.conv3", 4 * planes, planes, 1), (f"{name}.downsample.0", 4 * planes, inside, 1)]
        inside = 4 * planes
    for name, rows, columns, side in convs:
        norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
        state[f"visual.{name}.weight"] = _normal(source, rows, columns, side, side, std=(columns * side * side) ** -0.5)
        _norm(state, source, f"visual.{norm}", rows)
        state[f"visual.{norm}.running_mean"] = _normal(source, rows)
        state[f"visual.{norm}.running_var"] = 1 + _normal(source, rows, std=0.1).abs()
        state[f"visual.{norm}.num_batches_tracked"] = torch.tensor(0)
    state["visual.attnpool.positional_embedding"] = _normal(source, spatial**2 + 1, inside, std=inside**-0.5)
    for name, rows in (("q", inside), ("k", inside), ("v", inside), ("c", EMBED_DIM)):
        state[f"visual.attnpool.{name}_proj.weight"] = _normal(source, rows, inside, std=inside**-0.5)
        state[f"visual.attnpool.{name}_proj.bias"] = _normal(source, rows)
    return state


def checksum(tensors):
    """First 16 digits of the SHA-256 of all tensors, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def batch(seed=1):
    """Five images and their labels."""
    images = _normal(np.random.RandomState(seed), 5, 3, SIDE, SIDE, std=1.0)
    return {"img": images, "label": torch.tensor([0, 1, 2, 3, 1])}


def trained(model):
    """Parameters that get gradients, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def set_prompts(model):
    """Give every trained parameter numbers that depend on its name and shape only."""
    for name, parameter in trained(model).items():
        source = np.random.RandomState(zlib.crc32(name.encode()))
        std = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 and name.endswith("weight") else 0.1
        parameter.copy_(_normal(source, *parameter.shape, std=std))


def sample(tensor, most=32):
    """Up to ``most`` entries, evenly spaced, and the norm in front."""
    flat = tensor.detach().float().flatten()
    places = torch.linspace(0, len(flat) - 1, min(most, len(flat))).round().long()
    return torch.cat([flat.norm().reshape(1), flat[places]]).numpy()


def record_steps(trainer, model, steps=3):
    """Logits before training, gradients of the first step, losses of all steps, logits after them.

    Dassl's hooks are not run: the rate stays what it is, and no epoch ends.
    """
    data = batch()
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 10**6, 0
    set_prompts(model)
    names = trainer.get_model_names()
    trainer.set_model_mode("eval")
    out = {"prompts": np.array(checksum(trained(model))), "images": np.array(checksum(data | {"label": data["label"]}))}
    with torch.no_grad():
        out["logits"] = trainer.model_inference(data["img"]).float().numpy()
    trainer.set_model_mode("train")
    losses = []
    for step in range(steps):
        losses.append(float(trainer.forward_backward(data)["loss"]))
        if step == 0:
            out |= {f"grad/{name}": sample(p.grad) for name, p in trained(model).items()}
    out["losses"] = np.array(losses, dtype=np.float64)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        out["logits_after"] = trainer.model_inference(data["img"]).float().numpy()
    assert names == trainer.get_model_names()
    return out


# What is compared with the original repositories: trainer, and keys of its node. Some depths differ from the towers'.
CASES = {
    "CoOp_end": ("CoOp", {"N_CTX": 4}),
    "CoOp_middle_csc": ("CoOp", {"N_CTX": 5, "CSC": True, "CLASS_TOKEN_POSITION": "middle"}),
    "CoOp_front": ("CoOp", {"CTX_INIT": "a_photo_of a", "CLASS_TOKEN_POSITION": "front"}),
    "CoCoOp": ("CoCoOp", {"CTX_INIT": "a photo of a"}),
    "MaPLe_deep": ("MaPLe", {"PROMPT_DEPTH": 3}),
    "MaPLe_depth2": ("MaPLe", {"PROMPT_DEPTH": 2, "N_CTX": 5}),
    "MaPLe_shallow": ("MaPLe", {"PROMPT_DEPTH": 1}),
    "IVLP": ("IVLP", {"PROMPT_DEPTH_VISION": 3, "PROMPT_DEPTH_TEXT": 2}),
    "IVLP_language_only": ("IVLP", {"N_CTX_TEXT": 4, "PROMPT_DEPTH_VISION": 0, "PROMPT_DEPTH_TEXT": 3}),
    "VPT": ("VPT", {"N_CTX_VISION": 4, "PROMPT_DEPTH_VISION": 2}),
    "PromptSRC": ("PromptSRC", {"PROMPT_DEPTH_VISION": 3, "PROMPT_DEPTH_TEXT": 3}),
    "PromptKD": ("PromptKD", {"PROMPT_DEPTH_VISION": 3, "KD_WEIGHT": 10.0, "TEMPERATURE": 2.0}),
}


def configure(cfg, name, clip_path, keys=None, precision="fp32", options=()):
    """Merge what all cases share, then the keys of the trainer's node and further options."""
    common = ["TRAINER.NAME", name, "MODEL.BACKBONE.NAME", str(clip_path), "INPUT.SIZE", (SIDE, SIDE)]
    common += ["OPTIM.NAME", "sgd", "OPTIM.LR", 0.02, "OPTIM.LR_SCHEDULER", "cosine", "OPTIM.MAX_EPOCH", 3]
    common += ["DATASET.NAME", "Caltech101", "OUTPUT_DIR", "", "VERBOSE", False, "USE_CUDA", False]
    if not name.startswith("Zeroshot"):
        keys = {"PREC": precision, **(keys or {})}
    for key, value in (keys or {}).items():
        common += [f"TRAINER.{name.upper()}.{key}", value]
    cfg.merge_from_list([*common, *options])
    return cfg


def without_data(trainer_class, class_names=CLASS_NAMES):
    """The trainer, told its classes instead of loading a data set."""

    def build_data_loader(self):
        data = types.SimpleNamespace(classnames=list(class_names), train_x=[])
        self.dm, self.num_classes = types.SimpleNamespace(dataset=data), len(class_names)
        self.lab2cname = dict(enumerate(class_names))
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None

    return type(trainer_class.__name__, (trainer_class,), {"build_data_loader": build_data_loader})


def make_trainer(name, clip_path, keys=None, precision="fp32", class_names=CLASS_NAMES, options=()):
    """One of this repository's trainers on the CLIP in ``clip_path``."""
    from dassl.config import get_cfg_default
    from dassl.engine import TRAINER_REGISTRY

    import trainers

    if name == "PromptKD":
        keys = save_teacher(Path(clip_path).parent) | (keys or {})
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    configure(cfg, name, clip_path, keys, precision, options)
    cfg.freeze()
    return without_data(TRAINER_REGISTRY.get(name), class_names)(cfg)
