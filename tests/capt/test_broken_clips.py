"""Files that hold no CLIP, half of one, or one for other images: one line each that names the file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.capt.backbone.prompted_clip import load_clip, load_prompted_clip


def test_input_as_the_file_says(made, capsys):
    path = str(made("open_clip").path)
    needed = made("open_clip").model.visual.image_mean, made("open_clip").model.visual.image_std
    assert load_prompted_clip(path, (32, 32), "fp32", needed).input_size == 32
    assert load_prompted_clip(path, (32, 32), "fp32").input_size == 32
    with pytest.raises(ValueError, match=r"PIXEL_MEAN and PIXEL_STD must be \[0.48.*add INPUT.PIXEL_MEAN \"\[0.48"):
        load_prompted_clip(path, (32, 32), "fp32", ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]))


def broken(made, folder, layout, change):
    shutil.copytree(made(layout).path, folder, dirs_exist_ok=True)
    change(folder)
    return folder


def without(key):
    def change(folder):
        path = next(Path(folder).glob("*.safetensors"))
        state = load_file(path)
        save_file({name: value for name, value in state.items() if key not in name}, path)

    return change


def configured(file_name, tower, **values):
    def change(folder):
        path = Path(folder) / file_name
        config = json.loads(path.read_text())
        model = config.get("model_cfg", config)
        (model[tower] if tower else model).update(values)
        path.write_text(json.dumps(config))

    return change


def cut(name):
    def change(folder):
        path = Path(folder) / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def removed(name):
    return lambda folder: (Path(folder) / name).unlink()


BROKEN = [
    ("transformers", cut("model.safetensors"), "cannot be read as CLIP weights .*is the file complete"),
    ("transformers", cut("config.json"), 'config.json" cannot be read as JSON'),
    ("transformers", removed("model.safetensors"), "holds no CLIP: config.json with model.safetensors or"),
    ("transformers", removed("config.json"), "holds no CLIP: config.json with model.safetensors or"),
    ("transformers", without("layers.1.mlp.fc2.weight"), "is not a complete CLIP: Missing key.*resblocks.1.mlp.c_proj"),
    ("transformers", without("self_attn.k_proj"), "is not a complete CLIP: Missing key.*in_proj_weight"),
    ("transformers", without("model."), "holds no text_model"),
    ("transformers", configured("config.json", "", model_type="blip"), "describes a model of type 'blip'"),
    ("transformers", configured("config.json", "vision_config", hidden_act="silu"), 'activation "silu" is none of'),
    ("transformers", configured("config.json", "text_config", num_hidden_layers=1), "Unexpected key"),
    ("transformers", configured("config.json", "vision_config", num_attention_heads=5), "96 channels .* 5 heads"),
    (
        "transformers",
        configured("config.json", "vision_config", patch_size=16),
        "is not a complete CLIP: size mismatch",
    ),
    ("SigLIP", cut("model.safetensors"), "cannot be read as CLIP weights"),
    ("SigLIP", without("head.probe"), "is not a complete CLIP: Missing key.*attn_pool.query"),
    ("SigLIP", without("text_model.head.bias"), "is not a complete CLIP: Missing key.*ln_final.projection.bias"),
    ("SigLIP", configured("config.json", "vision_config", vision_use_head=False), "without the pooling head"),
    ("SigLIP", configured("config.json", "", model_type="siglip2"), "describes a model of type 'siglip2'"),
    ("open_clip, SigLIP", without("attn_pool.kv"), "is not a complete CLIP"),
    ("open_clip, SigLIP", configured("open_clip_config.json", "vision_cfg", timm_pool="avg"), "neither a CLIP nor"),
    (
        "open_clip, SigLIP",
        configured("open_clip_config.json", "text_cfg", pool_type="argmax"),
        "text_cfg.pool_type arg",
    ),
    ("open_clip", cut("open_clip_model.safetensors"), "cannot be read as CLIP weights"),
    ("open_clip, QuickGELU, pickled", cut("open_clip_pytorch_model.bin"), "cannot be read as CLIP weights"),
    ("open_clip", cut("open_clip_config.json"), "cannot be read as JSON"),
    ("open_clip", without("ln_post"), "is not a complete CLIP: Missing key.*visual.ln_post"),
    ("open_clip", configured("open_clip_config.json", "text_cfg", layers=3), "Missing key.*resblocks.2"),
    ("open_clip", configured("open_clip_config.json", "text_cfg", pool_type="eos"), "text_cfg.pool_type eos"),
    ("open_clip", configured("open_clip_config.json", "vision_cfg", ls_init_value=1), "vision_cfg.ls_init_value"),
    ("open_clip", configured("open_clip_config.json", "", embed_dim=None), "embed_dim must be a whole number"),
    ("open_clip", configured("open_clip_config.json", "", vision_cfg=None), "describes no CLIP"),
]


@pytest.mark.parametrize(("layout", "change", "words"), BROKEN, ids=[f"{i}-{b[2][:30]}" for i, b in enumerate(BROKEN)])
def test_a_broken_file_gives_one_line(made, tmp_path, layout, change, words):
    folder = broken(made, tmp_path / "clip", layout, change)
    with pytest.raises(ValueError, match=words) as caught:
        load_clip(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_files_that_need_their_configuration(made, tmp_path):
    """Heads and activation stand in no state dict: without the configuration they would be guessed."""
    shutil.copy(made("transformers").path / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="layout of transformers, whose heads and activation stand in config.json"):
        load_clip(str(tmp_path / "model.safetensors"))
    shutil.copy(made("open_clip").path / "open_clip_model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="is open_clip's, whose heads and activation stand in open_clip_config.json"):
        load_clip(str(tmp_path / "open_clip_model.safetensors"))


def test_a_part_that_is_missing(made, tmp_path):
    made("transformers").model.save_pretrained(tmp_path, max_shard_size="300KB")
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(ValueError, match="which is not beside it; copy all parts"):
        load_clip(str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"logit_scale": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="lists no files beside it"):
        load_clip(str(tmp_path))


def test_nothing_in_pytorch_model_bin_is_run(made, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    shutil.copy(made("transformers").path / "config.json", tmp_path)
    torch.save({"text_model.x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read as CLIP weights"):
        load_clip(str(tmp_path))
    assert not (tmp_path / "ran").exists()
