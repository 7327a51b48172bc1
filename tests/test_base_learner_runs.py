"""Whole runs on base learners of one's own: a module names them, the record keeps options, prediction asks first."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "capt"))

import other_methods  # noqa: E402
import tiny_capt  # noqa: E402, F401
from test_capt_end_to_end import CLASSES, _registered, build, files, main, one_line, read  # noqa: E402, F401

import trainers.capt as capt  # noqa: E402
from capt_tools import predict  # noqa: E402
from trainers.capt.bases import registry  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "own_base_learner.py"
OWN = ("TRAINER.CAPT.BASE.NAME", "PromptEnsemble", "TRAINER.CAPT.BASE.MODULE", str(EXAMPLE))
PROMPTS = ("TRAINER.CAPT.BASE.OPTIONS.PROMPTS", "['a drawing of a {}.', '{}.']")
MMRL = ("TRAINER.CAPT.BASE.NAME", "MMRL", "TRAINER.CAPT.BASE.OPTIONS.REP_LAYERS", "[1, 2]")


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """Whoever loads a run in a new process has not imported what the run's own process did."""
    monkeypatch.setattr(registry, "BASE_LEARNERS", dict(registry.BASE_LEARNERS))
    monkeypatch.delitem(sys.modules, "capt", raising=False)  # other tests import a second copy by that name
    before = sys.modules.keys() | set()
    yield
    forget(before)


def forget(before=()):
    for name in [n for n in sys.modules if n.startswith("capt_learners_") and n not in before]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def own_run(files):  # noqa: F811
    out = files / "own"
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "capt", raising=False)  # as above
        build(files, out, *OWN, *PROMPTS).train()
    registry.BASE_LEARNERS.pop("PromptEnsemble")
    forget()
    return out


def test_the_record_keeps_module_and_options(own_run):
    record = read(own_run)[0]
    assert record["base"] == "PromptEnsemble"
    node = record["config"]["TRAINER"]["CAPT"]["BASE"]
    assert node["OPTIONS"] == {"PROMPTS": ["a drawing of a {}.", "{}."]}
    assert node["MODULE"] == str(EXAMPLE)


def test_a_run_folder_does_not_choose_what_code_runs(own_run, monkeypatch):
    imported = []
    monkeypatch.setattr(registry.importlib.util, "spec_from_file_location", lambda *a: imported.append(a))
    with pytest.raises(ValueError, match=r'base learner "PromptEnsemble" of ".*own_base_learner.py"') as caught:
        capt.load(own_run)
    assert 'give base_module="' in str(caught.value)
    assert "--base-module on the command line" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert imported == []


def test_capt_load_and_predict_serve_it_where_the_user_names_the_module(own_run, files, capsys):  # noqa: F811
    picture = str(files / "data" / "cup" / "7.png")
    served = capt.load(own_run, base_module=EXAMPLE)
    probs = served.logits([picture]).softmax(dim=-1)[0]
    record, arrays = read(own_run)
    row = [Path(path).name for path in arrays["impaths"]].index("7.png")
    torch.testing.assert_close(probs, torch.from_numpy(arrays["probs"][row]), rtol=1e-4, atol=1e-5)

    registry.BASE_LEARNERS.pop("PromptEnsemble")
    forget()
    command = ["--run", str(own_run), "--format", "jsonl", "--device", "cpu"]
    assert predict.main([*command, picture]) != 0
    assert "--base-module" in capsys.readouterr().err
    assert predict.main([*command, "--base-module", str(EXAMPLE), picture]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[0])
    assert answer["top"][0]["class"] == record["classnames"][int(probs.argmax())]


def test_options_make_another_base_model(own_run, files, tmp_path):  # noqa: F811
    same = build(files, tmp_path / "same", *OWN, *PROMPTS)
    same.load_model(str(own_run), epoch=2)
    other = build(files, tmp_path / "other", *OWN)
    with pytest.raises(ValueError, match=r"another base model .* DIR, EPOCH and OPTIONS"):
        other.load_model(str(own_run), epoch=2)


def test_a_module_that_is_not_there_is_one_line(files, tmp_path, capsys):  # noqa: F811
    keys = ("TRAINER.CAPT.BASE.NAME", "Own", "TRAINER.CAPT.BASE.MODULE", "no_such_module")
    assert 'names "no_such_module", which is no module' in one_line(main(capsys, files, tmp_path, *keys))
    keys = ("TRAINER.CAPT.BASE.NAME", "Own")
    assert "TRAINER.CAPT.BASE.NAME must be one of ZeroshotCLIP" in one_line(main(capsys, files, tmp_path, *keys))


@pytest.fixture(scope="module")
def mmrl(tmp_path_factory):
    """Keys of a run on MMRL."""
    folder, state = tmp_path_factory.mktemp("mmrl"), other_methods.mmrl_state(num_layers=2)
    other_methods.save(folder, "MultiModalRepresentationLearner", state)
    return (*MMRL, "TRAINER.CAPT.BASE.DIR", str(folder))


def test_a_base_of_two_features_trains_and_serves_both_halves(files, mmrl, tmp_path):  # noqa: F811
    """MMRL mixes its features on the classes of the training only, in the trainer's test and in capt.load alike."""
    keys = mmrl
    trainer = build(files, tmp_path / "run", *keys, "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    assert trainer.model.base.mixes
    assert trainer.model.bank.entries.cls.shape[1] == 2 * other_methods.VW

    new = build(files, tmp_path / "new", *keys, "DATASET.SUBSAMPLE_CLASSES", "new")
    assert new.model.base.mixes  # nobody has said yet what it was trained on
    new.load_model(str(tmp_path / "run"), epoch=1)
    assert not new.model.base.mixes
    new.test()
    served = capt.load(tmp_path / "run")
    assert served.model.base.mixes
    record, arrays = read(tmp_path / "new")
    pictures = [str(files / "data" / path) for path in arrays["impaths"]]
    probs = served.logits(pictures, CLASSES[4:]).softmax(dim=-1)
    assert not served.model.base.mixes
    torch.testing.assert_close(probs, torch.from_numpy(arrays["probs"]), rtol=1e-4, atol=1e-5)
    assert record["config"]["TRAINER"]["CAPT"]["BASE"]["OPTIONS"] == {"REP_LAYERS": [1, 2]}


@pytest.mark.slow  # two trainings
def test_a_base_of_two_features_resumes(files, mmrl, tmp_path):  # noqa: F811
    build(files, tmp_path / "whole", *mmrl).train()
    stopped = build(files, tmp_path / "parts", *mmrl, "TEST.NO_TEST", True)
    stopped.max_epoch = 1
    stopped.train()
    build(files, tmp_path / "parts", *mmrl, "RESUME", str(tmp_path / "parts")).train()
    whole, parts = (read(tmp_path / name)[1]["probs"] for name in ("whole", "parts"))
    np.testing.assert_array_equal(whole, parts)


def test_a_folds_configuration_may_name_another_trainer(files, tmp_path, monkeypatch):  # noqa: F811
    """MMA's trainer is called MultiModalAdapter; the fold's yaml says so."""
    from trainers.capt.bank import builder

    asked = []

    class Trainer(Exception):
        pass

    def get(name):
        asked.append(name)
        raise Trainer

    monkeypatch.setattr(builder.TRAINER_REGISTRY, "get", get)
    for text in ("OPTIM:\n  MAX_EPOCH: 1\n", "TRAINER:\n  NAME: MultiModalAdapter\n"):
        (tmp_path / "fold.yaml").write_text(text)
        cfg = build_cfg(files, tmp_path, "TRAINER.CAPT.BANK.FOLD_CONFIG", str(tmp_path / "fold.yaml"))
        with pytest.raises(Trainer):
            builder.fit_fold(cfg, [], tmp_path / "fold", None, capt.BaseSpec("MMA"))
    assert asked == ["MMA", "MultiModalAdapter"]


def build_cfg(files, out, *more):  # noqa: F811
    from dassl.config import get_cfg_default
    from test_capt_end_to_end import options

    import trainers

    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    cfg.merge_from_list(options(files, out, *more))
    return cfg
