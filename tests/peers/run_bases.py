"""Methods that CAPT stands on, run by their own code on a small deep CLIP: a checkpoint each, and the logits it gives.

    python tests/peers/run_bases.py <folder of the copies> <method> <output folder>

As in ``run_original.py``, CUDA, half precision and hard-coded widths are patched in memory, and nothing of the copies
is imported by anything else. The weights are random; every trained one gets numbers that depend on its name alone.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import run_original  # noqa: E402

NUM_BLOCKS = 10  # TCP works at block 8
NEW_CLASSES = ["red_fox", "otter", "accordion"]
# Method: repository, trainer module, trainer, what is replaced in its source.
METHODS = {
    "KgCoOp": ("htyao89+KgCoOp/KgCoOp", "kgcoop", "KgCoOp", {}),
    "ProGrad": ("BeierZhu+Prompt-align/ProGrad.public", "prograd", "ProGrad", {}),
    "TCP": ("htyao89+Textual-based_Class-aware_prompt_tuning", "tcp", "TCP", {"-1,512)": "-1,{text})"}),
    "MMA": ("ZjjConan+Multi-Modal-Adapter", "mmadapter", "MultiModalAdapter", {}),
    "MMRL": ("yunncheng+MMRL", "mmrl", "MMRL", {}),
    "CoPrompt": (
        "ShuvenduRoy+CoPrompt",
        "coprompt",
        "CoPrompt",
        {"ctx_dim, 768": "ctx_dim, {visual}", "n_ctx, 512": "n_ctx, {text}", "Adapter(512": "Adapter({joint}"},
    ),
    "CoOp_ATP": ("zhengli97+ATPrompt", "coop_atp", "CoOp_ATP", {}),
    "MaPLe_ATP": (
        "zhengli97+ATPrompt",
        "maple_atp",
        "MaPLe_ATP",
        {"ctx_dim, 768": "ctx_dim, {visual}", "n_ctx, 512": "n_ctx, {text}"},
    ),
}
_COOP = ["TRAINER.COOP.PREC", "fp32", "TRAINER.COCOOP.PREC", "fp32", "TRAINER.COOP.N_CTX", 4]


def attributes(first, second, lengths=(2, 3, 2)):
    """ATPrompt with two attributes."""
    options = ["TRAINER.ATPROMPT.USE_ATPROMPT", True, "TRAINER.ATPROMPT.ATT_NUM", 2]
    options += ["TRAINER.ATPROMPT.ATT1_TEXT", first, "TRAINER.ATPROMPT.ATT2_TEXT", second]
    for number, length in enumerate(lengths, start=1):
        options += [f"TRAINER.ATPROMPT.N_ATT{number}", length]
    return options


# Case: method, keys of its configuration, options of the base that reads it.
CASES = {
    "KgCoOp": ("KgCoOp", _COOP, {}),
    "KgCoOp_words": ("KgCoOp", [*_COOP, "TRAINER.COOP.CTX_INIT", True], {}),
    "ProGrad": ("ProGrad", [*_COOP, "LOSS.NAME", "prograd"], {}),
    "ProGrad_words": (
        "ProGrad",
        [*_COOP, "LOSS.NAME", "prograd", "TRAINER.COOP.CTX_INIT", True, "TRAINER.COOP.N_CTX", 12],
        {},
    ),
    "ProGrad_pets": (
        "ProGrad",
        [
            *_COOP,
            "LOSS.NAME",
            "prograd",
            "TRAINER.COOP.CTX_INIT",
            True,
            "TRAINER.COOP.N_CTX",
            8,
            "DATASET.NAME",
            "OxfordPets",
        ],
        {},
    ),
    "ProGrad_food": (
        "ProGrad",
        [
            *_COOP,
            "LOSS.NAME",
            "prograd",
            "TRAINER.COOP.CTX_INIT",
            True,
            "TRAINER.COOP.N_CTX",
            9,
            "DATASET.NAME",
            "Food101",
        ],
        {},
    ),
    **{
        f"TCP_{name}": ("TCP", [*_COOP, "DATASET.NAME", name], {})
        for name in (
            "Caltech101",
            "OxfordPets",
            "FGVCAircraft",
            "DescribableTextures",
            "StanfordCars",
            "Food101",
            "UCF101",
        )
    },
    "MMA": (
        "MMA",
        [
            "TRAINER.MMADAPTER.PREC",
            "fp32",
            "TRAINER.MMADAPTER.TEXT_CTX_INIT",
            "a photo of a",
            "TRAINER.MMADAPTER.ADAPTER_START",
            5,
        ]
        + [
            "TRAINER.MMADAPTER.ADAPTER_END",
            10,
            "TRAINER.MMADAPTER.ADAPTER_SCALE",
            0.5,
            "TRAINER.MMADAPTER.ADAPTER_DIM",
            16,
        ],
        {"ADAPTER_SCALE": 0.5},
    ),
    "MMA_words": (
        "MMA",
        ["TRAINER.MMADAPTER.PREC", "fp32", "TRAINER.MMADAPTER.TEXT_CTX_INIT", "a picture of one"]
        + [
            "TRAINER.MMADAPTER.ADAPTER_START",
            1,
            "TRAINER.MMADAPTER.ADAPTER_END",
            3,
            "TRAINER.MMADAPTER.ADAPTER_SCALE",
            0.1,
        ],
        {"ADAPTER_SCALE": 0.1, "TEXT_CTX_INIT": "a picture of one"},
    ),
    "MMRL": (
        "MMRL",
        ["TRAINER.MMRL.PREC", "fp32", "TRAINER.MMRL.REP_LAYERS", [6, 7, 8, 9, 10], "TRAINER.MMRL.ALPHA", 0.6]
        + ["TRAINER.MMRL.REP_DIM", 32],
        {"REP_LAYERS": [6, 7, 8, 9, 10], "ALPHA": 0.6},
    ),
    "MMRL_pets": (
        "MMRL",
        ["TRAINER.MMRL.PREC", "fp32", "TRAINER.MMRL.REP_LAYERS", [1, 2], "TRAINER.MMRL.N_REP_TOKENS", 3]
        + ["TRAINER.MMRL.REP_DIM", 32, "DATASET.NAME", "OxfordPets"],
        {"REP_LAYERS": [1, 2]},
    ),
    "CoPrompt": ("CoPrompt", ["TRAINER.CoPrompt.PREC", "fp32"], {}),
    "CoPrompt_4": ("CoPrompt", ["TRAINER.CoPrompt.PREC", "fp32", "TRAINER.CoPrompt.N_CTX", 4], {}),
    "CoOp_ATP": ("CoOp_ATP", [*_COOP, *attributes("shape", "size")], {}),
    "CoOp_ATP_long": ("CoOp_ATP", [*_COOP, *attributes("playfulness", "energy")], {}),
    "MaPLe_ATP": (
        "MaPLe_ATP",
        ["TRAINER.MAPLE.PREC", "fp32", "TRAINER.MAPLE.PROMPT_DEPTH", 4, *attributes("pattern", "color", (2, 2, 2))],
        {},
    ),
}


def _module(folder, name, replaced):
    from tiny import EMBED_DIM, TEXT_WIDTH, VISUAL_WIDTH

    widths = {"text": TEXT_WIDTH, "visual": VISUAL_WIDTH, "joint": EMBED_DIM}
    return run_original._import_trainer(folder, name, {old: new.format(**widths) for old, new in replaced.items()})


def _sentences():
    """CoPrompt reads sentences about every class from a fixed place below the working folder."""
    from tiny import CLASS_NAMES

    folder = Path(tempfile.mkdtemp())
    (folder / "gpt_file").mkdir()
    names = [name.replace("_", " ") for name in [*CLASS_NAMES, *NEW_CLASSES]]
    content = {name: [f"a photo of a {name}.", f"one {name}."] for name in names}
    (folder / "gpt_file" / "caltech_prompt.json").write_text(json.dumps(content))
    os.chdir(folder)


def _logits(trainer, is_new):
    """What the method's own test ranks."""
    import torch
    from tiny import batch

    trainer.set_model_mode("eval")
    with torch.no_grad():
        output = trainer.model_inference(batch()["img"])
    if isinstance(output, tuple):  # MMRL: class token, inserted tokens, both; its test takes both on base classes alone
        output = output[0] if is_new else output[2]
    return output.float().numpy()


def main(copies, method, output):
    """Write ``<case>/`` (a checkpoint) and ``<case>.npz`` (logits on both halves) for every case of ``method``."""
    import torch
    from tiny import CLASS_NAMES, clip_state, configure, set_prompts, without_data

    output = Path(output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    clip_path = Path(tempfile.mkdtemp()) / "clip.pt"
    torch.save(clip_state(num_blocks=NUM_BLOCKS), clip_path)
    repository, name, trainer_name, replaced = METHODS[method]
    folder = run_original._prepare(copies, repository, clip_path)
    _sentences()
    from dassl.config import get_cfg_default

    module = _module(folder, name, replaced)
    for clip in [m for key, m in sys.modules.items() if key.endswith("clip_text.clip")]:  # TCP's second copy
        clip._MODELS[str(clip_path)], clip._download = str(clip_path), lambda url, *args: url
    for case, (of, keys, _) in CASES.items():
        if of != method:
            continue
        cfg = get_cfg_default()
        run_original._extend_cfg(cfg, folder)
        configure(cfg, "ZeroshotCLIP", clip_path, options=["TRAINER.NAME", trainer_name, *keys])
        trainer = without_data(getattr(module, trainer_name))(cfg)
        set_prompts(trainer.model)
        trainer.save_model(4, str(output / case))
        new = without_data(getattr(module, trainer_name), NEW_CLASSES)(cfg)
        new.load_model(str(output / case), epoch=5)
        np.savez(output / f"{case}.npz", base=_logits(trainer, False), new=_logits(new, True), names=CLASS_NAMES)


if __name__ == "__main__":
    main(*sys.argv[1:])
