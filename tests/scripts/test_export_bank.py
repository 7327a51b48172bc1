"""capt export-bank: CSV, parquet and FiftyOne's form of a bank, of a run's and of anybody's predictions."""

import csv
import json
import sys

import pytest

from capt.bank.confusion_bank import ConfusionBank
from capt.bank.exchange import COLUMNS
from capt_tools import export_bank

NAMES = ["cup", "jug", "ein Krüglein, groß"]
PROBS = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.1, 0.5, 0.4]]
PATHS = ["cup/a.jpg", "cup/b.jpg", "jug/c, d.jpg", "/elsewhere/d.jpg"]


@pytest.fixture
def bank(tmp_path):
    made = ConfusionBank.from_predictions([0, 0, 1, 2], PROBS, NAMES, PATHS, near_misses=0.0)
    made.save(tmp_path / "mine")
    return made


def test_csv_holds_the_entries(bank, tmp_path, capsys):
    assert export_bank.main([str(tmp_path / "mine"), "--format", "csv"]) == 0
    path = tmp_path / "mine" / "bank_export" / "confusion_bank.csv"
    assert capsys.readouterr().out == f"{path}\n4 entries, 3 of them errors, of 3 classes\n"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    for row, expected in zip(rows, bank.rows(), strict=True):
        assert {key: type(expected[key])(row[key]) for key in COLUMNS if key != "is_error"} == {
            key: value for key, value in expected.items() if key != "is_error"
        }
        assert row["is_error"] == str(expected["is_error"])


def test_parquet_holds_the_entries_with_their_types(bank, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert export_bank.main([str(tmp_path / "mine"), "--output", str(tmp_path / "out"), "--format", "parquet"]) == 0
    table = parquet.read_table(tmp_path / "out" / "confusion_bank.parquet")
    assert table.to_pylist() == bank.rows()
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["image"], types["view"], types["is_error"], types["p_label"]) == ("string", "int64", "bool", "float")


def test_parquet_without_pyarrow_says_what_to_install(bank, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(sys, "path", [])
    assert export_bank.main([str(tmp_path / "mine"), "--format", "parquet"]) == 2
    assert capsys.readouterr().err.startswith("error: pyarrow is missing; pip install '.[parquet]'")


def as_fiftyone_documents_it(path):
    """Image -> (label, confidence, attributes) of a labels file, by the words of FiftyOne's documentation.

    "If the `classes` field is provided, the `target` values are class IDs"; a UUID may be an absolute path; a target
    may be a dict with `label`, `confidence` and `attributes`.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content) == {"classes", "labels"}
    found = {}
    for uuid, target in content["labels"].items():
        assert uuid.startswith("/")
        if isinstance(target, dict):
            assert set(target) == {"label", "confidence", "attributes"}
            found[uuid] = (content["classes"][target["label"]], target["confidence"], target["attributes"])
        else:
            found[uuid] = (content["classes"][target], None, {})
    return found


def test_fiftyone(bank, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    places = ["--images", str(photos), "--output", str(out)]
    assert export_bank.main([str(tmp_path / "mine"), "--format", "fiftyone", *places]) == 0
    labels = as_fiftyone_documents_it(tmp_path / "out" / "fiftyone" / "labels.json")
    predictions = as_fiftyone_documents_it(tmp_path / "out" / "fiftyone" / "predictions.json")
    images = [str(photos / path) for path in PATHS]
    assert {image: labels[image][0] for image in images} == dict(zip(images, [*NAMES[:1] * 2, *NAMES[1:]], strict=True))
    assert labels.keys() == predictions.keys()
    rows = {row["image"]: row for row in bank.rows()}
    for path, image in zip(PATHS, images, strict=True):
        label, confidence, attributes = predictions[image]
        assert (label, confidence) == (rows[path]["pseudo_label"], rows[path]["p_pseudo_label"])
        assert attributes["true_label"] == labels[image][0]
        keys = ("rival", "is_error", "p_label", "intensity", "view")
        assert {key: attributes[key] for key in keys} == {key: rows[path][key] for key in keys}


def test_an_image_with_two_entries_is_there_once_as_its_most_torn(tmp_path):
    probs = [[0.2, 0.8], [0.45, 0.55]]
    ConfusionBank.from_predictions([0, 0], probs, ["cup", "jug"], ["a.jpg", "a.jpg"]).save(tmp_path)
    assert export_bank.main([str(tmp_path)]) == 0
    predictions = as_fiftyone_documents_it(tmp_path / "bank_export" / "fiftyone" / "predictions.json")
    assert [confidence for _, confidence, _ in predictions.values()] == [pytest.approx(0.55)]
    assert len((tmp_path / "bank_export" / "confusion_bank.csv").read_text().splitlines()) == 3


def test_a_runs_images_are_found_by_its_record(bank, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    record = {"config": {"DATASET": {"ROOT": "photos"}}}
    (tmp_path / "mine" / "results.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path / "mine")  # not where the run was started
    assert export_bank.main([".", "--format", "fiftyone"]) == 0
    labels = as_fiftyone_documents_it(tmp_path / "mine" / "bank_export" / "fiftyone" / "labels.json")
    assert str(tmp_path / "photos" / PATHS[0]) in labels


@pytest.mark.parametrize("damage", ["none", "cut"])
def test_no_bank_is_one_line(bank, tmp_path, capsys, damage):
    place = tmp_path / "nowhere"
    if damage == "cut":
        place = tmp_path / "mine" / "confusion_bank.safetensors"
        place.write_bytes(place.read_bytes()[:100])
    assert export_bank.main([str(place)]) == 2
    assert str(place) in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
