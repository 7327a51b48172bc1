"""The report's figures against results.json and a count of their own, and runs that are out of the ordinary."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from report_runs import page_data, write_run

from capt_tools.confusion_report import main

pytest.importorskip("jinja2", reason="jinja2 is missing; pip install '.[report,test]'")

CLASSES = ["crab", "lobster", "crayfish", "red_fox", "otter"]


def make_report(*runs, output):
    assert main([*map(str, runs), "--output", str(output)]) == 0
    page = (output / "report.html").read_text(encoding="utf-8")
    return page, page_data(page)["runs"]


@pytest.fixture
def run(tmp_path):
    """200 images of five classes; the method is wrong in a third, its base model in half of them."""
    source = np.random.RandomState(3)
    labels = np.sort(source.randint(0, 5, 200))
    wrong = (labels + source.randint(1, 5, 200)) % 5
    predictions = np.where(source.rand(200) < 0.34, wrong, labels)
    base = np.where(source.rand(200) < 0.5, (labels + source.randint(1, 5, 200)) % 5, labels)
    return write_run(tmp_path / "run", labels, predictions, base, CLASSES, root=tmp_path / "images")


def count_pairs(labels, predictions):
    return Counter(frozenset((int(y), int(p))) for y, p in zip(labels, predictions, strict=True) if y != p)


def test_figures_are_those_of_the_record_and_of_a_recount(run, tmp_path):
    page, (shown,) = make_report(run, output=tmp_path / "report")
    record = json.loads((run / "results.json").read_text())
    labels = np.load(tmp_path / "report/labels.npy")
    probs = np.load(tmp_path / "report/pred_probs.npy")
    found = np.load(run / "predictions.npz")
    predictions, base = probs.argmax(1), found["base_probs"].argmax(1)

    assert {key: shown["record"][key] for key in shown["record"]} == {key: record.get(key) for key in shown["record"]}
    for key in ("accuracy", "confusion", "commit", "seed", "shots", "protocol", "num_test", "num_train", "epoch"):
        assert shown["record"][key] is not None
    assert 100 * np.mean(predictions == labels) == pytest.approx(record["accuracy"], abs=1e-9)
    assert sum(n for y, p, n in shown["after"] if y == p) == (predictions == labels).sum()
    for key, counted in (("after", predictions), ("before", base)):
        cells = Counter(zip(labels.tolist(), counted.tolist(), strict=True))
        assert {(y, p): n for y, p, n in shown[key]} == cells
    before, after = count_pairs(labels, base), count_pairs(labels, predictions)
    assert {frozenset(row[:2]) for row in shown["pairs"]} == before.keys() | after.keys()
    for a, b, errors_before, errors_after, resolved, introduced in shown["pairs"]:
        inside = [(y, was, now) for y, was, now in zip(labels, base, predictions, strict=True) if y in (a, b)]
        assert errors_before == before[frozenset((a, b))]
        assert errors_after == after[frozenset((a, b))]
        assert resolved == sum(was != y and was in (a, b) and now == y for y, was, now in inside)
        assert introduced == sum(was == y and now != y and now in (a, b) for y, was, now in inside)
    for label, num_images, right_before, right_after, mistaken in shown["per_class"]:
        mine = labels == label
        assert num_images == mine.sum()
        assert right_before == (base[mine] == label).sum()
        assert right_after == (predictions[mine] == label).sum()
        assert mistaken == (predictions[~mine] == label).sum()
    assert sorted(shown["order"]) == list(range(5))


def test_confusion_of_the_record_follows_from_the_pairs(run, tmp_path):
    _, (shown,) = make_report(run, output=tmp_path / "report")
    confusion = shown["record"]["confusion"]
    inside = [row for row in shown["pairs"] if row[2] >= confusion["min_errors"]]
    errors = sum(row[2] for row in inside)
    assert confusion["num_pairs"] == len(inside) > 0
    assert confusion["base_errors"] == errors
    assert confusion["resolved"] == round(100 * sum(row[4] for row in inside) / errors, 2)
    assert confusion["introduced"] == round(100 * sum(row[5] for row in inside) / errors, 2)


def test_files_beside_the_page(run, tmp_path):
    _, (shown,) = make_report(run, output=tmp_path / "report")
    out, found = tmp_path / "report", np.load(run / "predictions.npz")
    probs = np.load(out / "pred_probs.npy")
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(probs, found["probs"], atol=1e-6)
    assert (np.load(out / "labels.npy") == found["labels"]).all()
    assert (out / "paths.txt").read_text().splitlines() == found["impaths"].tolist()
    assert (out / "classes.txt").read_text().splitlines() == CLASSES
    lines = (out / "pairs.csv").read_text().splitlines()
    assert lines[0] == "a,b,errors_before,errors_after,resolved,introduced,net"
    assert len(lines) == 1 + len(shown["pairs"])
    a, b, *numbers = lines[1].split(",")
    assert [a, b] == [CLASSES[c] for c in shown["pairs"][0][:2]]
    assert [int(n) for n in numbers[:4]] == shown["pairs"][0][2:]


def test_every_error_is_listed_with_a_picture(run, tmp_path):
    page, (shown,) = make_report(run, output=tmp_path / "report")
    found = np.load(run / "predictions.npz")
    wrong = (found["probs"].argmax(1) != found["labels"]) | (found["base_probs"].argmax(1) != found["labels"])
    listed = {row[0]: row for row in shown["images"]}
    assert set(found["impaths"][wrong].tolist()) <= listed.keys()
    assert all(row[-1] >= 0 for row in shown["images"])
    assert len(page_data(page)["thumbnails"]) == len(listed)


def test_a_method_without_base_model_has_no_before(tmp_path):
    folder = write_run(tmp_path / "run", [0, 0, 1, 1, 2], [0, 1, 1, 0, 2])
    _, (shown,) = make_report(folder, output=tmp_path / "report")
    assert shown["before"] is None
    assert shown["pairs"] == [[0, 1, None, 2, None, None]]
    assert shown["note"] == "MaPLe mines no pairs and keeps no bank."


def test_equal_class_names_stay_apart(tmp_path):
    names = ["crane", "otter", "crane"]
    folder = write_run(tmp_path / "run", [0, 0, 1, 2, 2], [0, 2, 1, 0, 2], [0, 0, 1, 2, 1], names)
    _, (shown,) = make_report(folder, output=tmp_path / "report")
    assert shown["classes"] == ["crane #0", "otter", "crane #2"]
    assert [0, 2, 0, 2, 0, 2] in shown["pairs"]
    assert "crane #0,crane #2,0,2,0,2,-2" in (tmp_path / "report/pairs.csv").read_text()


def test_no_errors_at_all(tmp_path):
    labels = np.arange(12) % 4
    folder = write_run(tmp_path / "run", labels, labels, labels, root=tmp_path / "images")
    page, (shown,) = make_report(folder, output=tmp_path / "report")
    assert shown["pairs"] == []
    assert all(y == p for y, p, _ in shown["after"])
    assert shown["record"]["confusion"]["resolved"] is None
    assert len(shown["images"]) == 12
    assert "NaN" not in page.split('id="data">')[1].split("</script>")[0]


def test_one_class(tmp_path):
    folder = write_run(tmp_path / "run", [0, 0, 0], [0, 0, 0], [0, 0, 0], ["crab"])
    _, (shown,) = make_report(folder, output=tmp_path / "report")
    assert shown["order"] == [0]
    assert shown["after"] == [[0, 0, 3]]
    assert shown["per_class"] == [[0, 3, 3, 3, 0]]


def test_a_thousand_classes_stand_in_blocks(tmp_path):
    """Twins (2k, 2k + 1) are confused with each other alone: they must stand together, and the page stay small."""
    source = np.random.RandomState(0)
    labels = np.arange(5000) % 1000
    predictions = np.where(source.rand(5000) < 0.4, labels ^ 1, labels)
    base = np.where(source.rand(5000) < 0.5, labels ^ 1, labels)
    names = [f"a class with the rather long name {c}" for c in range(1000)]
    folder = write_run(tmp_path / "run", labels, predictions, base, names)
    page, (shown,) = make_report(folder, output=tmp_path / "report")
    assert 450 < len(shown["pairs"]) <= 500  # twins and nobody else
    assert [len(block) for block in shown["blocks"]] == [32] * 31 + [8]
    assert [c for block in shown["blocks"] for c in block] == shown["order"]
    assert sorted(shown["order"]) == list(range(1000))
    place = {c: i for i, c in enumerate(shown["order"])}
    assert np.mean([abs(place[c] - place[c ^ 1]) == 1 for c in range(1000)]) > 0.9
    assert len(page) < 3e6
    most = [row[2] for row in shown["pairs"]]
    assert most == sorted(most, reverse=True)


def test_several_runs_stand_beside_each_other(run, tmp_path):
    other = write_run(tmp_path / "other", [0, 1, 1], [0, 0, 1], None, CLASSES, root=tmp_path / "more", dataset="Else")
    page, shown = make_report(run, other, run, output=tmp_path / "report")
    assert len(shown) == 3
    assert [part["record"]["dataset"] for part in shown] == ["Made", "Else", "Made"]
    assert shown[0]["pairs"] == shown[2]["pairs"] != shown[1]["pairs"]
    assert "<title>Confusions: Made, Else</title>" in page
    assert all(row[-1] >= 0 for part in shown for row in part["images"])  # each from its own data root


def test_runs_of_one_method_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / f"seed{s}", [0, 1, 1], [0, 0, 1], seed=s) for s in (1, 2)]
    _, shown = make_report(*folders, output=tmp_path / "report")
    assert [part["name"] for part in shown] == [f"MaPLe, Made, 4 shots, seed {s}" for s in (1, 2)]
    written = sorted(path.name for path in (tmp_path / "report").iterdir() if path.is_dir())
    assert written == ["MaPLe_Made_4_shots_seed_1", "MaPLe_Made_4_shots_seed_2"]
    assert (tmp_path / "report" / written[0] / "pairs.csv").is_file()


def test_a_budget_of_bytes_is_kept(run, tmp_path, capsys):
    assert main([str(run), "--output", str(tmp_path / "report"), "--max-mb", "0.1"]) == 0
    assert (tmp_path / "report/report.html").stat().st_size < 1.2e5
    assert "are listed without a picture, to stay below 0.1 MB" in capsys.readouterr().out


def test_class_names_cannot_break_the_page(tmp_path):
    names = ["</script><script>alert(1)</script>", 'a "quoted" & odd\u2028name']
    folder = write_run(tmp_path / "run", [0, 1], [1, 1], None, names)
    page, (shown,) = make_report(folder, output=tmp_path / "report")
    assert shown["classes"] == names
    assert "alert(1)</script>" not in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda run: (run / "predictions.npz").unlink(),
            "has no predictions.npz; give the output folder of a",
        ),
        (
            lambda run: edit(run, num_test=9),
            "speaks of 9 images of 5 classes, predictions.npz of 200 of 5",
        ),
        (lambda run: edit(run, accuracy=12.0), "results.json says 12.0000 % right, predictions.npz"),
        (lambda run: (run / "results.json").write_text("{"), "its record cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(run, tmp_path, capsys, change, message):
    change(run)
    assert main([str(run), "--output", str(tmp_path / "report")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report").exists()


def edit(run: Path, **entries):
    path = run / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
