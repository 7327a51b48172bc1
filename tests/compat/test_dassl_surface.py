"""Names, registries, configuration and small helpers of the bundled Dassl."""

import importlib
import json
import random
import warnings

import compat

import numpy as np
import pytest
import torch
from dassl.config import clean_cfg, get_cfg_default
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    Registry,
    check_availability,
    check_isfile,
    count_num_param,
    listdir_nohidden,
    mkdir_if_missing,
    open_specified_layers,
    read_image,
    read_json,
    set_random_seed,
    write_json,
)
from PIL import Image
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from yacs.config import CfgNode as CN

pytestmark = pytest.mark.skipif(compat.DASSL != "bundled", reason="an installed Dassl is in use")

IMPORTED = {
    "dassl.config": "get_cfg_default clean_cfg cfg_default",
    "dassl.data": "DatasetWrapper DataManager",
    "dassl.data.data_manager": "build_data_loader DataManager DatasetWrapper",
    "dassl.data.datasets": "DATASET_REGISTRY Datum DatasetBase build_dataset",
    "dassl.data.datasets.base_dataset": "Datum DatasetBase",
    "dassl.data.datasets.build": "DATASET_REGISTRY build_dataset",
    "dassl.data.samplers": "build_sampler",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.data.transforms.transforms": "build_transform",
    "dassl.engine": "TRAINER_REGISTRY build_trainer TrainerX TrainerXU TrainerBase SimpleTrainer SimpleNet",
    "dassl.engine.build": "TRAINER_REGISTRY build_trainer",
    "dassl.engine.trainer": "TrainerX TrainerXU TrainerBase SimpleTrainer",
    "dassl.evaluation": "EVALUATOR_REGISTRY build_evaluator EvaluatorBase Classification",
    "dassl.metrics": "compute_accuracy compute_distance_matrix cosine_distance euclidean_squared_distance",
    "dassl.modeling": (
        "BACKBONE_REGISTRY HEAD_REGISTRY NETWORK_REGISTRY build_backbone build_head build_network Backbone"
    ),
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.lr_scheduler": "ConstantWarmupScheduler LinearWarmupScheduler",
    "dassl.utils": (
        "mkdir_if_missing check_isfile read_json write_json set_random_seed download_url read_image collect_env_info "
        "listdir_nohidden get_most_similar_str_to_a_from_b check_availability tolist_if_not Logger setup_logger "
        "AverageMeter MetricMeter Registry save_checkpoint load_checkpoint resume_from_checkpoint open_all_layers "
        "open_specified_layers count_num_param load_pretrained_weights init_network_weights"
    ),
}


@pytest.mark.parametrize("module", IMPORTED)
def test_every_imported_name_exists(module):
    loaded = importlib.import_module(module)
    assert [name for name in IMPORTED[module].split() if not hasattr(loaded, name)] == []


def test_registry():
    registry = Registry("FOO")

    @registry.register()
    class A: ...

    class B: ...

    assert registry.register(B) is None
    assert registry.registered_names() == ["A", "B"]
    assert registry.get("A") is A
    with pytest.raises(KeyError, match='An object named "A" was already registered in "FOO" registry'):
        registry.register(A)
    registry.register(A, force=True)
    with pytest.raises(KeyError, match='Object name "C" does not exist in "FOO" registry'):
        registry.get("C")


def test_check_availability_suggests_the_nearest_name():
    with pytest.raises(
        ValueError, match=r"belong to \['CoCoOp', 'CoOp'\], but got \[CoOpp\] \(do you mean \[CoOp\]\?\)"
    ):
        check_availability("CoOpp", ["CoCoOp", "CoOp"])
    with pytest.raises(ValueError, match=r"do you mean \[None\]"):
        check_availability("x", [])
    with pytest.raises(ValueError, match=r"do you mean \[ba\]"):  # ratios tie: the later one
        check_availability("x", ["ab", "ba"])


@pytest.mark.parametrize(
    ("module", "builder", "line"),
    [("modeling", "build_backbone", "Backbone: Part"), ("modeling", "build_head", "Head: Part"),
     ("modeling", "build_network", "Network: Part")],
)  # fmt: skip
def test_builders_announce_and_construct(module, builder, line, capsys):
    loaded = importlib.import_module(f"dassl.{module}")
    registry = getattr(loaded, builder.removeprefix("build_").upper() + "_REGISTRY")

    def Part(width=1):
        return width

    registry.register(Part, force=True)
    assert getattr(loaded, builder)("Part", width=3) == 3
    assert capsys.readouterr().out == line + "\n"
    assert getattr(loaded, builder)("Part", verbose=False) == 1
    assert capsys.readouterr().out == ""


def test_defaults_of_the_keys_that_the_family_relies_on():
    cfg = get_cfg_default()
    assert cfg.OPTIM.WEIGHT_DECAY == 5e-4
    assert cfg.OPTIM.MOMENTUM == 0.9
    assert cfg.INPUT.SIZE == (224, 224)
    assert cfg.INPUT.RRCROP_SCALE == (0.08, 1.0)
    assert cfg.DATASET.NUM_SHOTS == -1
    assert cfg.SEED == -1
    assert cfg.TEST.FINAL_MODEL == "last_step"
    assert cfg.OPTIM.SGD_DAMPNING == 0
    assert set(cfg.TRAINER) == {
        "NAME", "MCD", "MME", "CDAC", "SE", "M3SDA", "DAEL", "CROSSGRAD", "DDAIG", "DAELDG", "DOMAINMIX", "ENTMIN",
        "MEANTEACHER", "MIXMATCH", "FIXMATCH",
    }  # fmt: skip
    assert str(cfg).startswith("DATALOADER:\n  K_TRANSFORMS: 1\n  NUM_WORKERS: 4\n")


def test_defaults_are_a_fresh_mutable_copy():
    first = get_cfg_default()
    first.OPTIM.LR = 9.0
    first.DATASET.SUBSAMPLE_CLASSES = "all"
    second = get_cfg_default()
    assert second.OPTIM.LR == 0.0003
    assert "SUBSAMPLE_CLASSES" not in second.DATASET


def test_clean_cfg_keeps_one_trainer():
    cfg = get_cfg_default()
    clean_cfg(cfg, "FixMatch")
    assert set(cfg.TRAINER) == {"NAME", "FIXMATCH"}


def test_yacs_reads_the_familys_yaml(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        'INPUT:\n  SIZE: (48, 48)\n  TRANSFORMS: ["normalize"]\n  PIXEL_MEAN: (0.1, 0.2, 0.3)\n'
        "OPTIM:\n  WARMUP_CONS_LR: 1e-5\n"
    )
    cfg = get_cfg_default()
    cfg.merge_from_file(str(file))
    assert cfg.INPUT.SIZE == (48, 48)
    assert cfg.INPUT.TRANSFORMS == ("normalize",)
    assert cfg.INPUT.PIXEL_MEAN == [0.1, 0.2, 0.3]
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5


def test_yacs_refuses_what_the_scripts_must_avoid():
    cfg = get_cfg_default()
    with pytest.raises(ValueError, match="Type mismatch"):
        cfg.merge_from_list(["OPTIM.LR", "1"])
    with pytest.raises(AssertionError, match="Non-existent key: TRAINER.FOO.X"):
        cfg.merge_from_list(["TRAINER.FOO.X", "1"])
    with pytest.raises(AssertionError, match="Override list has odd length"):
        cfg.merge_from_list(["OPTIM.LR"])
    cfg.TRAINER.COOP = CN({"N_CTX": 16})
    cfg.freeze()
    with pytest.raises(AttributeError, match="immutable"):
        cfg.SEED = 3


def test_set_random_seed_golden():
    set_random_seed(1)
    assert random.random() == pytest.approx(0.13436, abs=1e-5)
    assert np.random.rand() == pytest.approx(0.41702, abs=1e-5)  # noqa: NPY002
    assert torch.rand(1).item() == pytest.approx(0.7576, abs=1e-4)


def test_files(tmp_path):
    path = tmp_path / "sub" / "a.json"
    write_json({"a": [1]}, str(path))
    assert path.read_text() == '{\n    "a": [\n        1\n    ]\n}'
    assert read_json(str(path)) == {"a": [1]}
    (path.parent / ".hidden").touch()
    (path.parent / "B").touch()
    assert listdir_nohidden(str(path.parent), sort=True) == ["B", "a.json"]
    assert check_isfile(str(path))
    with pytest.warns(UserWarning, match='No file found at "nowhere"'):
        assert not check_isfile("nowhere")
    mkdir_if_missing(str(path.parent))
    with pytest.raises(FileNotFoundError):
        mkdir_if_missing("")


def test_a_failed_json_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json([1], str(path))
    with pytest.raises(TypeError):
        write_json([1, object()], str(path))
    assert json.loads(path.read_text()) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_read_image_names_a_damaged_file(tmp_path):
    good = tmp_path / "a.jpg"
    Image.new("L", (40, 40), 7).save(good)
    assert read_image(str(good)).mode == "RGB"
    bad = tmp_path / "b.jpg"
    bad.write_bytes(good.read_bytes()[:200])
    with pytest.raises(OSError, match=r'Cannot read the image ".*b\.jpg" .*restore the file'):
        read_image(str(bad))
    with pytest.raises(OSError, match="There is no file"):
        read_image(str(tmp_path / "c.jpg"))


def test_meters():
    meter = AverageMeter()
    meter.update(torch.tensor(2.0))
    meter.update(4.0, n=3)
    assert (meter.val, meter.sum, meter.count, meter.avg) == (4.0, 14.0, 4, 3.5)
    ema = AverageMeter(ema=True)
    ema.update(1.0)
    ema.update(2.0)
    assert ema.avg == pytest.approx(0.1 * 0.9 + 0.2)
    metrics = MetricMeter()
    metrics.update({"loss": 2.02, "acc": 25.0})
    metrics.update({"loss": 1.0, "acc": 0.0})
    metrics.update(None)
    assert str(metrics) == "loss 1.0000 (1.5100) acc 0.0000 (12.5000)"
    with pytest.raises(TypeError, match="takes a dict"):
        metrics.update([1])


def test_count_num_param_and_open_layers():
    model = torch.nn.Sequential()
    model.a, model.b = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
    assert count_num_param(model) == 13
    assert count_num_param(params=model.a.parameters()) == 9
    with pytest.raises(ValueError, match="model and params must provide at least one."):
        count_num_param()
    open_specified_layers(model, "b")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert not model.a.training
    with pytest.raises(AssertionError, match="c is not an attribute"):
        open_specified_layers(model, ["c"])


def test_importing_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(importlib.import_module("dassl"))


def test_meters_make_no_sync_on_a_gpu():
    # A fake CUDA tensor raises DataDependentOutputException where its value would be needed on the host.
    with FakeTensorMode():
        loss = torch.empty((), device="cuda")
        meter = AverageMeter()
        meter.update(loss)
        meter.update(loss, n=2)
        assert meter.pending_avg.device.type == "cuda"
        assert meter.pending_avg.dtype == torch.float64
        with pytest.raises(DataDependentOutputException):
            assert meter.avg
