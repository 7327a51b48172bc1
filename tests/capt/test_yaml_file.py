"""Configuration files are read, never run: every other ending, empty files and other contents are refused."""

import re
import sys
import types
import warnings

import pytest
import torch
import yaml
from yacs.config import CfgNode

import train
from trainers.capt.backbone.prompted_clip import load_clip
from trainers.capt.bank.builder import fit_fold
from trainers.capt.run.yaml_file import merge_yaml


@pytest.fixture
def cfg():
    return CfgNode({"LR": 0.1, "OPTIM": CfgNode({"EPOCHS": 1})})


def program(tmp_path, name="method.py"):
    """A file that leaves a mark where it is run; yacs would take its ``cfg``."""
    path, mark = tmp_path / name, tmp_path / "was_run"
    path.write_text(f"open({str(mark)!r}, 'w').close()\ncfg = {{}}\n")
    return path, mark


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_a_file_of_keys_is_merged(cfg, tmp_path, suffix):
    (tmp_path / f"method.{suffix}").write_text("LR: 0.5\nOPTIM:\n  EPOCHS: 7\n")
    merge_yaml(cfg, tmp_path / f"method.{suffix}")
    assert (cfg.LR, cfg.OPTIM.EPOCHS) == (0.5, 7)


@pytest.mark.parametrize("name", ["method.py", "method", "method.yaml.py", "method.YAML", "method.json", "method.pyc"])
def test_other_endings_are_refused_unread(cfg, tmp_path, name):
    path, mark = program(tmp_path, name)
    with pytest.raises(ValueError, match=r"its name must end in .yaml or .yml"):
        merge_yaml(cfg, path)
    assert not mark.exists()


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "null\n", "~"])
def test_an_empty_file_is_refused(cfg, tmp_path, text):
    (tmp_path / "method.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"method.yaml is empty"):
        merge_yaml(cfg, tmp_path / "method.yaml")


@pytest.mark.parametrize("text", ["- LR\n", "LR", "3", "[{LR: 1}]", "1: 2\n", "OPTIM:\n  1: 2\n", "? [a, b]\n: 3\n"])
def test_what_is_no_mapping_of_names_is_refused(cfg, tmp_path, text):
    (tmp_path / "method.yaml").write_text(text)
    with pytest.raises((ValueError, yaml.YAMLError), match=r"no mapping from names to values|unhashable"):
        merge_yaml(cfg, tmp_path / "method.yaml")
    assert cfg.LR == 0.1


def test_tags_that_make_objects_are_refused(cfg, tmp_path):
    mark = tmp_path / "was_run"
    (tmp_path / "method.yaml").write_text(f'LR: !!python/object/apply:os.mkdir ["{mark}"]\n')
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        merge_yaml(cfg, tmp_path / "method.yaml")
    assert not mark.exists()


@pytest.mark.parametrize("flag", ["--config-file", "--dataset-config-file"])
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("method.py", None, "must end in .yaml or .yml"),
        ("method.yaml", "", "is empty"),
        ("method.yaml", "[1, 2]", "no mapping from names to values"),
        ("method.yaml", b"\xff\xfe\x00", "can't decode"),
    ],
)
def test_both_flags_end_in_one_line(capsys, tmp_path, flag, name, text, words):
    path, mark = program(tmp_path, name)
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert train.main([flag, str(path), "--output-dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: {re.escape(str(path))}.*{words}", line)
    assert line.count(str(path)) == 1
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_the_configuration_of_folds_is_not_run_either(tmp_path):
    path, mark = program(tmp_path)
    bank = CfgNode({"FOLD_CONFIG": str(path), "FOLDS": 2})
    cfg = CfgNode({"SEED": 1, "TRAINER": CfgNode({"CAPT": CfgNode({"BANK": bank})})})
    with pytest.raises(ValueError, match="must end in .yaml or .yml"):
        fit_fold(cfg, [types.SimpleNamespace(impath="a.png")], tmp_path / "fold0", None, None)
    assert not mark.exists()


def test_an_archive_of_clip_that_runs_code_is_refused(tmp_path):
    """TorchScript calls ``__setstate__`` of a stored module while it reads the file."""
    mark = tmp_path / "was_run"
    source = f'''
class Weights(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.training, self.w = True, torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x * self.w

    @torch.jit.export
    def __getstate__(self):
        return self.w, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.w, self.training = state[0], state[1]
        torch.save(self.w, "{mark}")
'''
    (tmp_path / "stored_weights.py").write_text(f"import torch\n{source}")
    sys.path.insert(0, str(tmp_path))
    try:
        from stored_weights import Weights
    finally:
        sys.path.remove(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; archives made with it are not rare
        torch.jit.script(Weights()).save(str(tmp_path / "clip.pt"))
        torch.jit.load(str(tmp_path / "clip.pt"))
    assert mark.exists()  # what torch itself does
    mark.unlink()
    with pytest.raises(ValueError, match="it runs code of its own when it is read"):
        load_clip(str(tmp_path / "clip.pt"))
    assert not mark.exists()
