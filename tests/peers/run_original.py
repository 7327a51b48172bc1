"""Run trainers of the original repositories on the small CLIP of ``tests/trainers/tiny.py``; store what they compute.

    python tests/peers/run_original.py <folder of the copies> <repository> <output folder> [case ...]

The copies are named as in ``REPOSITORIES``. They need CUDA, half precision and widths 512 and 768; all of that is
patched in memory here: ``.cuda()`` and ``.half()`` do nothing, widths follow the small CLIP, weights come from a file.
Nothing of the copies is imported by anything else.
"""

import importlib.util
import os
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "trainers"))
REPOSITORIES = {
    "KaiyangZhou+CoOp": {"CoOp": "coop", "CoCoOp": "cocoop"},
    "muzairkhattak+multimodal-prompt-learning": {"MaPLe": "maple", "IVLP": "independentVL", "VPT": "vpt"},
    "muzairkhattak+PromptSRC": {"PromptSRC": "promptsrc"},
    "zhengli97+PromptKD": {"PromptKD": "promptkd"},
}


def _patch_torch(device):
    import torch

    for owner in (torch.Tensor, torch.nn.Module):
        owner.half = lambda self: self
        if device == "cpu":
            owner.cuda = lambda self, *args, **kwargs: self
    load = torch.load
    torch.load = lambda *args, **kwargs: load(*args, **{**kwargs, "weights_only": False})

    def no_archive(*args, **kwargs):
        raise RuntimeError("not a TorchScript archive")

    torch.jit.load = no_archive


def _prepare(copies, repository, clip_path, device="cpu"):
    """Make ``dassl`` and the repository's own ``clip`` importable, with the weights of ``clip_path``."""
    folder = Path(copies) / repository
    sys.path[:0] = [str(folder), str(ROOT)]
    import compat  # noqa: F401

    sys.path.remove(str(ROOT))
    _patch_torch(device)
    if importlib.util.find_spec("pkg_resources") is None:
        import packaging
        import packaging.version

        stand_in = types.ModuleType("pkg_resources")
        stand_in.packaging = packaging
        sys.modules["pkg_resources"] = stand_in
    from clip import clip

    assert Path(clip.__file__).parent.parent == folder, clip.__file__
    clip._MODELS[str(clip_path)] = str(clip_path)
    clip._download = lambda url, *args: url
    return folder


def _import_trainer(folder, module, replaced=None):
    """The repository's trainer module, with hard-coded widths replaced, and further text that ``replaced`` names."""
    from tiny import TEXT_WIDTH, VISUAL_WIDTH

    package = types.ModuleType("original")
    package.__path__ = [str(folder / "trainers")]
    sys.modules["original"] = package
    path = folder / "trainers" / f"{module}.py"
    source = path.read_text()
    if module == "maple":
        source = source.replace("ctx_dim, 768", f"ctx_dim, {VISUAL_WIDTH}")
        source = source.replace("n_ctx, 512", f"n_ctx, {TEXT_WIDTH}")
    if module == "promptkd":
        from tiny import EMBED_DIM, TEACHER_DIM

        source = source.replace("two_layer(512, 768)", f"two_layer({EMBED_DIM}, {TEACHER_DIM})")
    for old, new in (replaced or {}).items():
        assert old in source, old
        source = source.replace(old, new)
    loaded = types.ModuleType(f"original.{module}")
    loaded.__package__, loaded.__file__ = "original", str(path)
    sys.modules[loaded.__name__] = loaded
    exec(compile(source, str(path), "exec"), loaded.__dict__)
    return loaded


def _extend_cfg(cfg, folder):
    """The repository's own nodes, from its train.py."""
    from yacs.config import CfgNode

    source = (folder / "train.py").read_text()
    start = source.index("def extend_cfg")
    namespace = {"CN": CfgNode}
    exec(source[start : source.index("\ndef ", start + 1)], namespace)
    namespace["extend_cfg"](cfg)


def _lay_out_promptkd():
    """The files that PromptKD looks for in fixed places below the working folder; returns the keys for it."""
    import torch
    from tiny import clip_state, save_teacher

    folder = Path(tempfile.mkdtemp())
    keys = save_teacher(folder)
    (folder / "clip").mkdir()
    torch.save(clip_state(), folder / "clip" / "ViT-B-16.pt")
    Path(keys["TEACHER_NAME"]).rename(folder / "clip" / "ViT-L-14.pt")
    (folder / "teacher_model").mkdir()
    Path(keys["TEACHER_DIR"]).rename(folder / "teacher_model" / "Caltech101")
    os.chdir(folder)
    return {"TEACHER_NAME": "ViT-L/14"}


def _promptkd_logits(self, images):
    features, scale = self.model(images)
    return scale * features @ self.model_teacher(images)[1].t()


def _whole_run(trainer, model, data):
    """Three epochs of one step each, as Dassl runs them: rates change, and PromptSRC averages its prompts."""
    import torch
    from tiny import set_prompts

    set_prompts(model)
    trainer.num_batches, trainer.batch_idx = 1, 0
    for trainer.epoch in range(3):
        trainer.set_model_mode("train")
        trainer.forward_backward(data)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return trainer.model_inference(data["img"]).float().numpy()


def main(copies, repository, output, *wanted):
    """Write ``<case>.npz`` and ``<case>/`` (a checkpoint) for every case of one repository; read ``ours/<case>/``."""
    import torch
    from tiny import CASES, batch, clip_state, configure, record_steps, without_data

    output = Path(output).resolve()
    clip_path = Path(tempfile.mkdtemp()) / "clip.pt"
    torch.save(clip_state(), clip_path)
    folder = _prepare(copies, repository, clip_path)
    from dassl.config import get_cfg_default

    for case, (name, keys) in CASES.items():
        if name not in REPOSITORIES[repository] or (wanted and case not in wanted):
            continue
        module = _import_trainer(folder, REPOSITORIES[repository][name])
        from dassl.engine import TRAINER_REGISTRY

        TRAINER_REGISTRY._obj_map.pop(name, None)  # the next case registers the name again
        cfg = get_cfg_default()
        _extend_cfg(cfg, folder)
        if name == "PromptKD":
            keys = {**keys, **_lay_out_promptkd()}
            module.PromptKD.model_inference = _promptkd_logits
        configure(cfg, name, clip_path, keys)
        trainer_class = without_data(getattr(module, name))
        trainer = trainer_class(cfg)
        result = record_steps(trainer, trainer.model)
        trainer = trainer_class(cfg)
        result["logits_run"] = _whole_run(trainer, trainer.model, batch())
        result["keys"] = np.array(sorted(trainer._models[trainer.get_model_names()[0]].state_dict()))
        trainer.save_model(2, str(output / case))
        ours = output / "ours" / case
        if ours.is_dir():  # a checkpoint that this repository wrote
            trainer = trainer_class(cfg)
            trainer.load_model(str(ours), epoch=1)
            trainer.set_model_mode("eval")
            with torch.no_grad():
                result["logits_of_ours"] = trainer.model_inference(batch()["img"]).float().numpy()
        np.savez_compressed(output / f"{case}.npz", **result)


if __name__ == "__main__":
    main(*sys.argv[1:])
