"""What other methods compute with what their checkpoints hold, written down plainly: one text after the other.

Each function takes a checkpoint's weights and gives the logits of the method; the peers' own code, where it is there,
is compared in ``tests/peers/test_bases.py``.
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))

import tiny  # noqa: E402

TW, VW, D = tiny.TEXT_WIDTH, tiny.VISUAL_WIDTH, tiny.EMBED_DIM
BLOCKS = 10


class Source:
    """Random weights, in the order in which they are asked for."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape, std=0.1):
        return torch.randn(*shape, generator=self.generator) * std


def linear(state, name, x):
    y = x @ state[f"{name}.weight"].t()
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def block_of(block, x, causal):
    """A residual block on ``(length, width)``."""
    mask = torch.full((len(x), len(x)), float("-inf")).triu(1) if causal else None
    y = block.ln_1(x).unsqueeze(1)
    x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0].squeeze(1)
    return x + block.mlp(block.ln_2(x))


def text_feature(clip, text, context=None, enter=None, beside=None, shift=0):
    """``(D,)`` of one text: ``context`` replaces its first tokens, ``enter`` and ``beside`` act at blocks."""
    ids = clip.tokenize([text])
    x = clip.embed(ids)[0].clone()
    if context is not None:
        x[1 : 1 + len(context)] = context
    x = x + clip.clip.positional_embedding
    for number, block in enumerate(clip.clip.transformer.resblocks):
        x = enter(number, x) if enter else x
        added = beside(number, block, x) if beside else 0
        x = block_of(block, x, causal=True) + added
    return clip.clip.ln_final(x)[int(ids.argmax()) + shift] @ clip.clip.text_projection


def image_tokens(clip, image, prompts=None, enter=None, beside=None):
    """``(length, Dv)`` behind the last block of one image."""
    v = clip.vit
    x = v.conv1(image.unsqueeze(0)).flatten(2)[0].t()
    x = torch.cat([v.class_embedding.unsqueeze(0), x]) + v.positional_embedding
    x = v.ln_pre(x if prompts is None else torch.cat([x, prompts]))
    for number, block in enumerate(v.transformer.resblocks):
        x = enter(number, x) if enter else x
        added = beside(number, block, x) if beside else 0
        x = block_of(block, x, causal=False) + added
    return x


def joint(clip, token):
    return clip.vit.ln_post(token) @ clip.vit.proj


def cosines(images, texts):
    return normalize(torch.stack(images), dim=-1) @ normalize(torch.stack(texts), dim=-1).t()


def plain_images(clip, images):
    return [joint(clip, image_tokens(clip, image)[0]) for image in images]


def prompted_texts(clip, names, context, behind="{}.", **more):
    words = " ".join(["X"] * len(context))
    return [text_feature(clip, f"{words} {behind.format(name)}", context, **more) for name in names]


# Each method: the folder of its checkpoints, its weights, and its logits.


def coop_state():
    draw = Source(1)
    return {"ctx": draw(4, TW)}


def coop_logits(clip, state, names, images, **_):
    return clip.logit_scale * cosines(plain_images(clip, images), prompted_texts(clip, names, state["ctx"]))


def kgcoop_state():
    draw = Source(2)
    unused = {"bias_vectors": draw(1, D), "meta_net.linear1.weight": draw(D, D), "meta_net.linear1.bias": draw(D)}
    return {"ctx": draw(4, TW), **unused}


def atprompt_state(clip):
    draw = Source(3)
    words = clip.embed(clip.tokenize(["shape", "size"]))[:, 1]
    state = {"ctx": draw(2, TW), "ctx_att1": draw(2, TW), "ctx_att2": draw(3, TW), "ctx_att3": draw(2, TW)}
    state |= {f"token_middle{i + 1}": words[i].expand(5, 1, -1) for i in range(2)}
    return state | {"token_suffix": clip.embed(clip.tokenize(["otter.", "mug."]))[:, 1:]}


def atprompt_logits(clip, state, names, images, **_):
    middle = [state[f"token_middle{i}"][0] for i in (1, 2)]
    context = torch.cat([state["ctx_att1"], middle[0], state["ctx_att2"], middle[1], state["ctx"]])
    return clip.logit_scale * cosines(plain_images(clip, images), prompted_texts(clip, names, context))


def tcp_state():
    draw = Source(4)
    net = {"meta_net.linear1.weight": draw(D // 4, D), "meta_net.linear1.bias": draw(D // 4)}
    net |= {"meta_net.linear2.weight": draw(4 * TW, D // 4), "meta_net.linear2.bias": draw(4 * TW)}
    return {"ctx": draw(4, TW), **net}


def tcp_logits(clip, state, names, images, **_):
    texts = []
    for name in names:
        own = normalize(text_feature(clip, f"a photo of a {name}, a type of pet."), dim=-1)
        hidden = linear(state, "meta_net.linear1", own)
        tokens = linear(state, "meta_net.linear2", hidden * torch.sigmoid(1.702 * hidden)).view(4, TW)

        def enter(number, x, tokens=tokens):
            return torch.cat([x[:1], tokens, x[5:]]) if number == 8 else x

        texts += prompted_texts(clip, [name], state["ctx"], "{}, a type of pet.", enter=enter)
    return clip.logit_scale * cosines(plain_images(clip, images), texts)


def mma_state(dim=6):
    draw, state = Source(5), {}
    for number in (3, 5):  # counted from 1
        for tower, width in (("text", TW), ("visual", VW)):
            name = f"{tower}_adapter.{number}"
            state |= {f"{name}.down.0.weight": draw(dim, width), f"{name}.down.0.bias": draw(dim)}
            state |= {f"{name}.up.weight": draw(width, dim, std=0.3), f"{name}.up.bias": draw(width)}
        state |= {
            f"shared_adapter.{number}.0.weight": draw(dim, dim, std=0.5),
            f"shared_adapter.{number}.0.bias": draw(dim),
        }
    return state


def mma_logits(clip, state, names, images, options, **_):
    def beside(tower):
        def branch(number, block, x):
            name = f"{tower}_adapter.{number + 1}"
            if f"{name}.up.weight" not in state:
                return 0
            y = linear(state, f"{name}.down.0", block.ln_1(x)).relu()
            y = linear(state, f"shared_adapter.{number + 1}.0", y).relu()
            return options["ADAPTER_SCALE"] * linear(state, f"{name}.up", y)

        return branch

    texts = [text_feature(clip, f"a photo of a {name}.", beside=beside("text")) for name in names]
    found = [joint(clip, image_tokens(clip, image, beside=beside("visual"))[0]) for image in images]
    return clip.logit_scale * cosines(found, texts)


def mmrl_state(num_layers=3):
    draw, learner = Source(6), "representation_learner.compound_rep_tokens"
    state = {learner: draw(3, 5, std=1), "image_encoder.proj_rep": draw(VW, D)}
    for place in range(num_layers):
        for tower, width in (("v", VW), ("t", TW)):
            name = f"{learner}_r2{tower}proj.{place}"
            state |= {f"{name}.weight": draw(width, 5), f"{name}.bias": draw(width)}
    return state


def mmrl_logits(clip, state, names, images, options, is_new, **_):
    learner = "representation_learner.compound_rep_tokens"

    def enter(tower):
        def entered(number, x):
            if number + 1 not in options["REP_LAYERS"]:
                return x
            place = options["REP_LAYERS"].index(number + 1)
            tokens = linear(state, f"{learner}_r2{tower}proj.{place}", state[learner])
            return torch.cat([x[:1], tokens, x[1 if place == 0 else 4 :]])

        return entered

    texts = [text_feature(clip, f"a photo of a {name}.", enter=enter("t"), shift=3) for name in names]
    tokens = [image_tokens(clip, image, enter=enter("v")) for image in images]
    first = 100 * cosines([joint(clip, t[0]) for t in tokens], texts)
    second = [clip.vit.ln_post(t[1:4]).mean(0) @ state["image_encoder.proj_rep"] for t in tokens]
    second = 100 * cosines(second, texts)
    return first if is_new else options["ALPHA"] * first + (1 - options["ALPHA"]) * second


def coprompt_state():
    draw = Source(7)
    state = {"prompt_learner.ctx": draw(5, TW)}
    places = [("proj", VW), ("compound_prompt_projections.0", VW), ("compound_prompt_projections.1", VW)]
    for name, width in places:
        state |= {f"prompt_learner.{name}.weight": draw(width, TW), f"prompt_learner.{name}.bias": draw(width)}
    state |= {f"prompt_learner.compound_prompts_text.{i}": draw(5, TW) for i in range(2)}
    for tower in ("image", "text"):
        state |= {f"adapter_{tower}.fc.0.weight": draw(D // 4, D), f"adapter_{tower}.fc.2.weight": draw(D, D // 4)}
    return state


def coprompt_logits(clip, state, names, images, **_):
    text_prompts = [state[f"prompt_learner.compound_prompts_text.{i}"] for i in range(2)]
    visual = [linear(state, f"prompt_learner.compound_prompt_projections.{i}", p) for i, p in enumerate(text_prompts)]

    def enter_text(number, x):
        return torch.cat([x[:1], text_prompts[number - 1], x[6:]]) if number in (1, 2) else x

    def enter_image(number, x):
        return torch.cat([x[:-5], visual[number - 1]]) if number in (1, 2) else x

    def adapted(tower, feature, share):
        y = linear(state, f"adapter_{tower}.fc.2", linear(state, f"adapter_{tower}.fc.0", feature).relu()).relu()
        return share * y + (1 - share) * feature

    context = state["prompt_learner.ctx"]
    texts = [adapted("text", t, 0.2) for t in prompted_texts(clip, names, context, enter=enter_text)]
    shallow = linear(state, "prompt_learner.proj", context)
    tokens = [image_tokens(clip, image, prompts=shallow, enter=enter_image) for image in images]
    found = [adapted("image", joint(clip, t[0]), 0.1) for t in tokens]
    return clip.logit_scale * cosines(found, texts)


# Name: folder of the checkpoints, weights, logits, options, data set.
METHODS = {
    "KgCoOp": ("prompt_learner", lambda clip: kgcoop_state(), coop_logits, {}, "Caltech101"),
    "ProGrad": ("prompt_learner", lambda clip: coop_state(), coop_logits, {}, "Caltech101"),
    "ATPrompt": ("prompt_learner", atprompt_state, atprompt_logits, {}, "Caltech101"),
    "TCP": ("prompt_learner", lambda clip: tcp_state(), tcp_logits, {}, "OxfordPets"),
    "MMA": ("adapter_learner", lambda clip: mma_state(), mma_logits, {"ADAPTER_SCALE": 0.5}, "Caltech101"),
    "MMRL": (
        "MultiModalRepresentationLearner",
        lambda clip: mmrl_state(),
        mmrl_logits,
        {"ALPHA": 0.6, "REP_LAYERS": [4, 5, 7]},
        "Caltech101",
    ),
    "CoPrompt": ("MultiModalPromptLearner", lambda clip: coprompt_state(), coprompt_logits, {}, "Caltech101"),
}


def save(folder, model_name, state, epoch=5):
    """A run folder with one checkpoint."""
    target = Path(folder) / model_name
    target.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": epoch}, target / f"model.pth.tar-{epoch}")
    (target / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")
    return folder


def deep_clip_state():
    """The trainers' small CLIP with ten blocks a tower: TCP works at block 8."""
    return tiny.clip_state(num_blocks=BLOCKS)
