"""PromptKD as a whole: a teacher by PromptSRC, a student from unlabelled images of all classes, CAPT on the student."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

import train  # noqa: E402

ROOT = Path(train.__file__).parent
FOLDERS = ["accordion", "airplanes", "anchor", "ant", "barrel"]  # Caltech101's layout; three base and two new classes


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("promptkd"), np.random.RandomState(0)
    for label, name in enumerate(FOLDERS):
        images = folder / "data" / "caltech-101" / "101_ObjectCategories" / name
        images.mkdir(parents=True)
        for number in range(12):
            pixels = source.randint(0, 60, (tiny.SIDE, tiny.SIDE, 3))
            pixels[..., label % 3] += 150 - 40 * (label // 3)
            Image.fromarray(pixels.astype(np.uint8)).save(images / f"image_{number:04d}.jpg", quality=95)
    torch.save(tiny.clip_state(), folder / "student.pt")
    torch.save(tiny.teacher_clip_state(), folder / "teacher.pt")
    return folder


def run(files, trainer, out, *more, backbone="student.pt", flags=()):
    argv = ["--root", str(files / "data"), "--trainer", trainer, "--seed", "1", "--output-dir", str(files / out)]
    argv += ["--dataset-config-file", str(ROOT / "configs/datasets/caltech101.yaml"), *flags]
    argv += ["--backbone", str(files / backbone), "INPUT.SIZE", f"({tiny.SIDE}, {tiny.SIDE})", "USE_CUDA", "False"]
    argv += ["INPUT.TRANSFORMS", "('normalize',)", "DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "8"]
    argv += ["OPTIM.NAME", "sgd", "OPTIM.LR", "0.01", "OPTIM.MAX_EPOCH", "2", f"TRAINER.{trainer.upper()}.PREC", "fp32"]
    assert train.main([*argv, *map(str, more)]) == 0
    path = files / out / "results.json"
    return json.loads(path.read_text())


def teacher_keys(files, node):
    return [f"TRAINER.{node}.TEACHER_DIR", files / "teacher", f"TRAINER.{node}.TEACHER_NAME", files / "teacher.pt"]


@pytest.fixture(scope="module")
def student(files):
    """Records of the teacher's run and the student's."""
    few = ["DATASET.NUM_SHOTS", 4, "DATASET.SUBSAMPLE_CLASSES", "base"]
    teacher = run(files, "PromptSRC", "teacher", *few, backbone="teacher.pt")
    student = run(files, "PromptKD", "student", *teacher_keys(files, "PROMPTKD"), "DATASET.NUM_SHOTS", 0)
    return teacher, student


def test_trains_on_all_classes_and_tests_the_new_ones(student):
    teacher, record = student
    assert teacher["num_classes"] == 3
    assert record["num_train"] == 5 * 6  # half of each class's twelve images
    assert record["classnames"] == ["ant", "barrel"]
    assert record["num_classes"] == 2
    assert record["transductive"] is True


def test_val_asks_for_the_base_classes(files, student):
    flags = ["--eval-only", "--model-dir", str(files / "student"), "--load-epoch", "2"]
    more = [*teacher_keys(files, "PROMPTKD"), "DATASET.NUM_SHOTS", 0, "TEST.SPLIT", "val"]
    record = run(files, "PromptKD", "student_base", *more, flags=flags)
    assert record["classnames"] == ["accordion", "airplane", "anchor"]
    assert record["split"] == "test"  # val is only the loader's name for these test images
    with np.load(files / "student_base" / "predictions.npz") as stored:
        assert stored["probs"].shape[1] == 3
        assert set(stored["labels"]) == {0, 1, 2}


@pytest.fixture(scope="module")
def on_student(files, student):
    """Keys of a CAPT run on the student."""
    base = ["TRAINER.CAPT.BASE.NAME", "PromptKD", "TRAINER.CAPT.BASE.DIR", files / "student"]
    return [*base, *teacher_keys(files, "CAPT.BASE"), "DATASET.NUM_SHOTS", 4, "DATASET.SUBSAMPLE_CLASSES"]


def test_capt_stands_on_the_student(files, student, on_student):
    record = run(files, "CAPT", "capt", *on_student, "base")
    assert record["transductive"] is True
    flags = ["--eval-only", "--model-dir", str(files / "capt"), "--load-epoch", "2"]
    record = run(files, "CAPT", "capt_new", *on_student, "new", flags=flags)
    # What CAPT calls its base model on the new classes is what PromptKD itself answered there.
    with np.load(files / "capt_new" / "predictions.npz") as ours, np.load(files / "student" / "predictions.npz") as kd:
        assert list(ours["impaths"]) == list(kd["impaths"])
        np.testing.assert_allclose(ours["base_probs"], kd["probs"], rtol=1e-4, atol=1e-6)

    from trainers import capt

    loaded = capt.load(files / "capt", device="cpu")
    assert loaded.model.base.digest() == capt.load(files / "capt", device="cpu").model.base.digest()
    images = sorted((files / "data/caltech-101/101_ObjectCategories/ant").glob("*.jpg"))[:2]
    assert len(loaded.predict(images)) == 2


def test_published_selection_reads_the_test_images_and_says_so(files, student, on_student, capsys):
    published = ["TRAINER.CAPT.SELECTION", "test", "TEST.FINAL_MODEL", "best_val", "TRAINER.CAPT.BANK.SHOTS", -1]
    record = run(files, "CAPT", "published", *on_student, "base", *published)
    out = capsys.readouterr().out
    assert "Selection protocol: published, the test images choose the epoch" in out
    assert "Bank protocol: published, from the full training set" in out
    assert record["protocol"].endswith("epoch chosen on test images")
    assert (files / "published/capt/model-best.pth.tar").is_file()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["TRAINER.PROMPTKD.CE_WEIGHT", "0.5"], "CE_WEIGHT must be 0.0, got 0.5"),
        (["TRAINER.MODAL", "few_shot"], "MODAL must be base2novel or cross"),
        (["TRAINER.PROMPTKD.TEACHER_DIR", "nowhere"], "must name the run of a PromptSRC teacher"),
    ],
)
def test_refuses_what_it_would_ignore(files, keys, message, capsys):
    out = str(files / "refused")
    with pytest.raises(AssertionError):
        run(files, "PromptKD", out, "TRAINER.PROMPTKD.TEACHER_NAME", files / "teacher.pt", *keys)
    assert message in capsys.readouterr().err
