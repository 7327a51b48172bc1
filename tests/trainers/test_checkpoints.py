"""Loading what was saved, and one clear line where that cannot be done."""

import re

import pytest
import tiny
import torch

LEARNERS = ["CoOp", "CoCoOp", "MaPLe", "IVLP", "VPT", "PromptSRC"]


def _logits(trainer):
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return trainer.model_inference(tiny.batch()["img"])


def _saved(make_trainer, folder, name="CoOp", keys=None):
    trainer = make_trainer(name, keys)
    tiny.set_prompts(trainer.model)
    trainer.save_model(4, str(folder))
    return trainer, folder / trainer.checkpoint_name / "model.pth.tar-5"


def _edit(path, change):
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint["state_dict"])
    torch.save(checkpoint, path)


@pytest.mark.parametrize("name", LEARNERS)
def test_weights_survive_saving(name, make_trainer, tmp_path, capsys):
    saved, path = _saved(make_trainer, tmp_path, name)
    fresh = make_trainer(name)
    assert not torch.allclose(_logits(fresh), _logits(saved))
    capsys.readouterr()
    fresh.load_model(str(tmp_path), epoch=5)
    assert f'Loading weights to {saved.checkpoint_name} from "{path}" (epoch = 5)' in capsys.readouterr().out
    assert torch.equal(_logits(fresh), _logits(saved))
    assert fresh.loaded_epoch == 5


@pytest.mark.parametrize("name", LEARNERS)
def test_other_classes_get_their_own_tokens(name, make_trainer, tmp_path):
    _saved(make_trainer, tmp_path, name)
    names = ["otter", "red_fox"]
    loaded, direct = make_trainer(name, class_names=names), make_trainer(name, class_names=names)
    loaded.load_model(str(tmp_path), epoch=5)
    tiny.set_prompts(direct.model)
    assert torch.equal(_logits(loaded), _logits(direct))


@pytest.mark.parametrize("name", LEARNERS)
def test_half_precision_files_load(name, make_trainer, tmp_path):
    saved, path = _saved(make_trainer, tmp_path, name)
    _edit(path, lambda state: state.update({key: value.half() for key, value in state.items()}))
    fresh = make_trainer(name)
    fresh.load_model(str(tmp_path), epoch=5)
    assert {p.dtype for p in fresh.model.parameters()} == {torch.float32}
    torch.testing.assert_close(_logits(fresh), _logits(saved), rtol=0, atol=0.05)


def test_the_best_model_is_the_default(make_trainer, tmp_path):
    saved, path = _saved(make_trainer, tmp_path)
    path.rename(path.with_name("model-best.pth.tar"))
    fresh = make_trainer("CoOp")
    fresh.load_model(str(tmp_path))
    assert torch.equal(_logits(fresh), _logits(saved))


def test_no_folder_is_refused(make_trainer):
    with pytest.raises(FileNotFoundError, match="no folder is given; name the output folder of a CoOp run"):
        make_trainer("CoOp").load_model("")


def test_a_folder_of_another_method_is_refused(make_trainer, tmp_path):
    _saved(make_trainer, tmp_path)
    path = tmp_path / "MultiModalPromptLearner" / "model.pth.tar-5"
    with pytest.raises(FileNotFoundError, match=f'"{re.escape(str(path))}"; give the output folder of a run'):
        make_trainer("MaPLe").load_model(str(tmp_path), epoch=5)


def test_a_missing_epoch_names_those_that_exist(make_trainer, tmp_path):
    _saved(make_trainer, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model-best.pth.tar\"; epochs there: \[5\]; give --load-epoch 5"):
        make_trainer("CoOp").load_model(str(tmp_path))
    (tmp_path / "prompt_learner" / "model.pth.tar-5").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.pth.tar-7\"; epochs there: none; train first"):
        make_trainer("CoOp").load_model(str(tmp_path), epoch=7)


def test_other_shapes_are_refused(make_trainer, tmp_path):
    _saved(make_trainer, tmp_path)
    with pytest.raises(ValueError, match=r"ctx has shape \(16, 64\), this run needs \(4, 64\); was it trained"):
        make_trainer("CoOp", {"N_CTX": 4}).load_model(str(tmp_path), epoch=5)


def test_unknown_keys_are_refused(make_trainer, tmp_path):
    _saved(make_trainer, tmp_path, "MaPLe", {"PROMPT_DEPTH": 3})
    with pytest.raises(ValueError, match="holds prompt_learner.compound_prompt.* more keys, unknown to this run"):
        make_trainer("MaPLe", {"PROMPT_DEPTH": 2}).load_model(str(tmp_path), epoch=5)


def test_missing_prompts_are_refused(make_trainer, tmp_path):
    _saved(make_trainer, tmp_path, "MaPLe", {"PROMPT_DEPTH": 2})
    with pytest.raises(ValueError, match="lacks prompt_learner.compound_prompt"):
        make_trainer("MaPLe", {"PROMPT_DEPTH": 3}).load_model(str(tmp_path), epoch=5)


def test_frozen_weights_may_be_missing(make_trainer, tmp_path):
    saved, path = _saved(make_trainer, tmp_path, "IVLP")
    trained = tiny.trained(saved.model)
    _edit(path, lambda state: [state.pop(key) for key in list(state) if key not in trained])
    assert path.stat().st_size < 60_000  # the whole model takes 3.5 MB
    fresh = make_trainer("IVLP")
    fresh.load_model(str(tmp_path), epoch=5)
    assert torch.equal(_logits(fresh), _logits(saved))


def test_a_damaged_file_is_refused(make_trainer, tmp_path):
    _, path = _saved(make_trainer, tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        make_trainer("CoOp").load_model(str(tmp_path), epoch=5)
