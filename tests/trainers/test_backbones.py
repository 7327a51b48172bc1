"""Every cell of the table in docs/BACKBONES.md: a trainer trains and answers on a backbone, or says why not."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from dassl.engine import TRAINER_REGISTRY
from test_cuda_placement import _on_fake_gpu
from test_whole_runs import build  # noqa: F401 - a fixture
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).parents[1] / "capt"))

import foreign_clips as foreign  # noqa: E402

from trainers.capt.backbone.prompted_clip import load_prompted_clip  # noqa: E402

DOC = Path(__file__).parents[2] / "docs" / "BACKBONES.md"
FAMILIES = ("OpenAI's ViT", "ResNet", "another CLIP", "SigLIP")
WITH_DATA = ("LinearProbe", "CLIPAdapter", "TipAdapter", "TipAdapterF", "CAPT")  # they encode the shots first
KEYS = {"CoOp": {"N_CTX": 4}, "CoCoOp": {"CTX_INIT": "a photo of a"}, "CAPT": {"CACHE.VIEWS": 2}}


def table():
    """Trainer -> (answers by family, what it serves)."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOC.read_text().splitlines()]
    start = rows.index(["trainer", *FAMILIES, "serves"])
    rows = rows[start + 2 :][: next(i for i, row in enumerate(rows[start + 2 :]) if len(row) == 1)]
    return {name: (dict(zip(FAMILIES, answers, strict=True)), serves) for name, *answers, serves in rows}


TABLE = table()


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """``path(family)``: a small model of it."""
    pytest.importorskip("transformers", reason="the extra `test` brings transformers")
    made = {}

    def path(family):
        if family in made:
            return made[family]
        folder = tmp_path_factory.mktemp("backbone")
        if family == "another CLIP":
            made[family] = foreign.save_transformers(foreign.transformers_clip(), folder)
        elif family == "SigLIP":
            tokenizer = foreign.siglip_tokenizer(folder)
            made[family] = foreign.save_transformers(foreign.siglip(len(tokenizer)), folder, tokenizer)
        else:
            made[family] = folder / "clip.pt"
            torch.save(tiny.resnet_state() if family == "ResNet" else tiny.clip_state(), made[family])
        return made[family]

    return path


def test_every_trainer_stands_in_the_table():
    ours = {name for name in TRAINER_REGISTRY.registered_names() if _class(name).__module__.startswith("trainers.")}
    assert set(TABLE) == ours
    for name, (_, serves) in TABLE.items():
        assert serves == _class(name).backbones, name
        assert "\n" not in serves


def _class(name):
    return TRAINER_REGISTRY.get(name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TABLE)
def test_a_cell_of_the_table(name, family, families, build, tmp_path, make_trainer):  # noqa: F811
    answers, serves = TABLE[name]
    path = families(family)
    if answers[family] == "no":
        with pytest.raises(ValueError, match=f"{name.upper() if name == 'IVLP' else name} needs a ViT .*") as caught:
            make_trainer(name, KEYS.get(name), clip_path=_beside(path, tmp_path))
        assert serves in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    assert answers[family] == "yes"
    if name in WITH_DATA:
        trainer = build(name, KEYS.get(name), ["MODEL.BACKBONE.NAME", str(path), "OPTIM.MAX_EPOCH", 1])
        trainer.train()
        with np.load(tmp_path / "out" / "predictions.npz") as stored:
            probs = stored["probs"]
        assert probs.shape == (12, 3)
        assert np.isfinite(probs).all()
        return
    trainer = make_trainer(name, KEYS.get(name), clip_path=_beside(path, tmp_path))
    images = tiny.batch()["img"]
    if not name.startswith("Zeroshot"):
        before = {key: value.detach().clone() for key, value in tiny.trained(trainer.model).items()}
        trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 10**6, 0
        trainer.set_model_mode("train")
        assert trainer.forward_backward(tiny.batch())["loss"].isfinite()
        moved = [key for key, value in tiny.trained(trainer.model).items() if not torch.equal(value, before[key])]
        assert moved
        trainer.set_model_mode("eval")
    logits = trainer.model_inference(images)
    assert logits.isfinite().all()
    assert logits.std() > 1e-3


def _beside(path, folder):
    """PromptKD's teacher is written beside the student's CLIP, which others share."""
    link = folder / path.name
    link.symlink_to(path)
    return link


@pytest.mark.parametrize("family", ["another CLIP", "SigLIP"])
@pytest.mark.parametrize("name", ["CoOp", "CoCoOp", "MaPLe", "PromptSRC"])
def test_the_towers_stay_on_the_gpu(name, family, families, tmp_path, make_trainer):
    model = make_trainer(name, KEYS.get(name), clip_path=_beside(families(family), tmp_path)).model
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_fake_gpu(model)
        logits = model(torch.empty(5, 3, tiny.SIDE, tiny.SIDE, device="cuda:0"))
        assert (logits.device.type, tuple(logits.shape)) == ("cuda", (5, 4))


@pytest.mark.parametrize("family", ["ResNet", "another CLIP", "SigLIP"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(precision, family, families):
    """Matrices are in half precision, layer norms and embeddings in fp32, as in OpenAI's CLIP."""
    path = str(families(family))
    exact, rough = (load_prompted_clip(path, (tiny.SIDE, tiny.SIDE), kind) for kind in ("fp32", precision))
    assert rough.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert rough.clip.token_embedding.weight.dtype == torch.float32
    with torch.no_grad():
        images = [clip.encode_image(tiny.batch()["img"]) for clip in (exact, rough)]
    assert images[1].feature.dtype == rough.dtype
    texts = [clip.text_features(["a photo of a cup.", "otter"]) for clip in (exact, rough)]
    assert torch.cosine_similarity(images[0].feature, images[1].feature.float()).min() > 0.99
    assert torch.cosine_similarity(*texts).min() > 0.99
    assert torch.cosine_similarity(images[0].cls, images[1].cls.float()).min() > 0.99
