"""Another method's checkpoint is never taken for a base that is known: what would be left aside is named."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))

import tiny  # noqa: E402

from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip  # noqa: E402
from trainers.capt.bases.keys import CLIP, check_keys  # noqa: E402
from trainers.capt.bases.learners import BaseSpec, build_base  # noqa: E402

W, V, D, C = tiny.TEXT_WIDTH, tiny.VISUAL_WIDTH, tiny.EMBED_DIM, 5
CTX = {"ctx": (4, W)}
WORDS = {"token_prefix": (C, 1, W), "token_suffix": (C, 72, W)}
META = {f"meta_net.linear{i}.bias": (n,) for i, n in ((1, D // 16), (2, W))}
META |= {"meta_net.linear1.weight": (D // 16, D), "meta_net.linear2.weight": (W, D // 16)}
TCP = {"meta_net.linear1.weight": (D // 4, D), "meta_net.linear1.bias": (D // 4,)}
TCP |= {"meta_net.linear2.weight": (4 * W, D // 4), "meta_net.linear2.bias": (4 * W,)}
MAPLE = {"ctx": (2, W), "proj.weight": (V, W), "proj.bias": (V,), "compound_prompts_text.0": (2, W)}
MAPLE |= {"compound_prompt_projections.0.weight": (V, W), "compound_prompt_projections.0.bias": (V,)}
MAPLE = {f"prompt_learner.{key}": shape for key, shape in (MAPLE | {"token_suffix": (C, 74, W)}).items()}
IVLP = {"prompt_learner.ctx": (4, W), "image_encoder.VPT": (4, V)}
IVLP |= {
    f"{tower}.transformer.resblocks.1.VPT_shallow": (4, w) for tower, w in (("image_encoder", V), ("text_encoder", W))
}
KD = {"image_encoder.VPT": (4, V), "VPT_image_trans.conv1.0.weight": (96, D, 1, 1)}

COOP, COCOOP, MULTI = ("CoOp", "prompt_learner"), ("CoCoOp", "prompt_learner"), ("MaPLe", "MultiModalPromptLearner")
ATP = {"ctx_att1": (2, W), "token_middle1": (C, 1, W)}
KGCOOP = {"bias_vectors": (1, W), "meta_net.linear1.bias": (3,)}
PLOT = {"ctx": (3, 4, W), "token_prefix": (3 * C, 1, W)}
CSC = {"ctx": (C, 4, W), "token_prefix": (C, 1, W)}
MANY = {"image_encoder.VPT": (2, V)} | {f"gate{i}": (1,) for i in range(7)}
REFUSED = {  # base and folder, what is in the file, what is named and which method
    "TCP as CoOp": (COOP, CTX | WORDS | TCP, r"'meta_net.linear1.bias'.*of TCP"),
    "CoCoOp as CoOp": (COOP, CTX | META, r"'meta_net.linear1.bias'.*of CoCoOp"),
    "ATPrompt as CoOp": (COOP, CTX | WORDS | ATP, r"\['ctx_att1'\].*of ATPrompt"),
    "KgCoOp as CoOp": (COOP, CTX | KGCOOP, r"'bias_vectors'.*of KgCoOp"),
    "MaPLe's file as CoOp": (COOP, MAPLE, r"prompt_learner.compound_prompts_text.*of MaPLe"),
    "a stranger's as CoOp": (COOP, {"gate": (3,)}, r"\['gate'\].*no method that is known here"),
    "ATPrompt as CoCoOp": (COCOOP, CTX | META | ATP, r"\['ctx_att1'\].*of ATPrompt"),
    "TCP as CoCoOp": (COCOOP, CTX | TCP, r"linear1.weight.*shape \(16, 64\).*has \(4, 64\).*of TCP"),
    "CoPrompt as MaPLe": (MULTI, MAPLE | {"adapter_image.fc.0.weight": (4, D)}, r"adapter_image.fc.0.*of CoPrompt"),
    "ATPrompt as MaPLe": (MULTI, MAPLE | {"prompt_learner.ctx_att2": (2, W)}, r"ctx_att2'\].*of ATPrompt"),
    "MMRL as IVLP": (("IVLP", "VLPromptLearner"), IVLP | {"image_encoder.proj_rep": (V, D)}, r"proj_rep'\].*of MMRL"),
    "PromptKD as PromptSRC": (("PromptSRC", "VLPromptLearner"), KD | IVLP, r"VPT_image_trans.*of PromptKD"),
    "MaPLe's file as VPT": (("VPT", "prompt_learner"), MAPLE, r"prompt_learner.*of MaPLe"),
    "many strange names": (("VPT", "prompt_learner"), MANY, r"'gate3'\] and 3 more"),
    "PLOT as CoOp": (COOP, PLOT, r"3 contexts for every class, as PLOT"),
    "CSC as CoOp": (COOP, CSC, r"each of 5 classes \(CSC True\), which no new class has; train .*CSC False$"),
    "either of them": (COOP, {"ctx": (C, 4, W)}, r"CSC False. Or 5 contexts for every class, as PLOT"),
}
TAKEN = {  # what the originals save beside what is read
    "CoOp": ("prompt_learner", CTX | WORDS),
    "CoCoOp": ("prompt_learner", CTX | WORDS | META),
    "MaPLe": ("MultiModalPromptLearner", MAPLE | {"image_encoder.ln_post.weight": (V,), "logit_scale": ()}),
    "PromptSRC": ("VLPromptLearner", IVLP | {"prompt_learner.ZS_image_encoder.proj": (V, D), "logit_scale": ()}),
    "IVLP": ("VLPromptLearner", IVLP | {"text_encoder.ln_final.bias": (W,), "prompt_learner.token_prefix": (C, 1, W)}),
}


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(tiny.clip_state(), path)
    return PromptedCLIP(load_clip(str(path)))


def build(prompted, name, folder, shapes, tmp_path):
    own = saved(prompted)  # CLIP itself is as it was
    state = {key: own[key] if key in own else torch.zeros(shape) for key, shape in shapes.items()}
    (tmp_path / folder).mkdir()
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / folder / "model-best.pth.tar")
    return build_base(prompted, BaseSpec(name, str(tmp_path), context_words=""))


def saved(prompted):
    """CLIP's weights under the names that the family saves."""
    state = {}
    for key, value in prompted.clip.state_dict().items():
        key = f"image_encoder.{key.removeprefix('visual.')}" if key.startswith("visual.") else f"text_encoder.{key}"
        state[key.replace("text_encoder.logit_scale", "logit_scale")] = value
    return state


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_left_aside_is_refused(case, prompted, tmp_path):
    (name, folder), shapes, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        build(prompted, name, folder, shapes, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TAKEN)
def test_what_the_method_itself_saves_is_taken(name, prompted, tmp_path):
    base = build(prompted, name, *TAKEN[name], tmp_path)
    base.set_classes(["cup", "otter"])
    assert base.text_features.shape == (2, D)


def test_every_weight_of_clip_may_be_in_the_file(prompted):
    """The family saves CLIP's towers as image_encoder and text_encoder."""
    state = saved(prompted)
    check_keys(state, "a file", BaseSpec("MaPLe"), CLIP)
    with pytest.raises(ValueError, match=r"\['image_encoder.transformer.resblocks.0.adapter.weight'\]"):
        check_keys(
            {**state, "image_encoder.transformer.resblocks.0.adapter.weight": W}, "a file", BaseSpec("MaPLe"), CLIP
        )
