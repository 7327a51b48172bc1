"""README's picture, of a run worked by hand: three classes, one error between two of them before and none after."""

import json

import numpy as np
import picture_of_confusions as picture
import pytest
from matplotlib import pyplot as plt
from matplotlib.offsetbox import AnnotationBbox
from PIL import Image

from capt_tools.report.runs import read_run

COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


@pytest.fixture
def run(tmp_path):
    """The folder of a run on four pictures."""
    labels, before, after = (np.eye(3)[places] for places in ([0, 1, 2, 0], [0, 1, 2, 1], [0, 1, 2, 0]))
    paths = [f"{i}.png" for i in range(4)]
    for path, label in zip(paths, (0, 1, 2, 0), strict=True):
        Image.new("RGB", (40, 40), COLOURS[label]).save(tmp_path / path)
    names = ["plain cup", "striped cup", "bell"]
    record = {"classnames": names, "num_test": 4, "accuracy": 100.0, "shots": 16, "subsample": "new"}
    record |= {"base": "ZeroshotCLIP", "config": {"DATASET": {"ROOT": str(tmp_path)}}, "pictures": "stored"}
    (tmp_path / "results.json").write_text(json.dumps(record))
    arrays = {"labels": labels.argmax(axis=1), "base_probs": before, "probs": after, "impaths": np.array(paths)}
    np.savez(tmp_path / "predictions.npz", **arrays)
    return tmp_path


def test_a_panel_says_what_became_of_the_pair(run):
    figure, axes = plt.subplots()
    try:
        picture.draw_panel(axes, read_run(run), num_pairs=2)
        assert [label.get_text() for label in axes.get_yticklabels()] == ["plain cup\nstriped cup"]
        assert [bars.datavalues.tolist() for bars in axes.containers] == [[1], [0]]  # before, after
        assert axes.get_title().splitlines()[1] == "accuracy 75.00 → 100.00 %"
        boxes = [artist for artist in axes.get_children() if isinstance(artist, AnnotationBbox)]
        assert [box.xy for box in boxes] == [(0, 0), (0, 0)]
        assert boxes[0].xybox[0] < boxes[1].xybox[0] < 0  # side by side, left of the axis
        colours = [tuple(box.offsetbox.get_data()[0, 0]) for box in boxes]
        assert colours == [COLOURS[0], COLOURS[1]]
    finally:
        plt.close(figure)


def test_the_picture_is_written(run, tmp_path, capsys):
    output = tmp_path / "confusions.png"
    assert picture.main([str(run), str(run), "--pairs", "1", "--output", str(output)]) == 0
    with Image.open(output) as image:
        assert image.width > image.height > 100
    assert capsys.readouterr().out.strip() == str(output)


def test_a_run_without_a_base_model_is_refused(run, capsys):
    with np.load(run / "predictions.npz") as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "base_probs"}
    np.savez(run / "predictions.npz", **kept)
    assert picture.main([str(run), "--output", str(run / "out.png")]) == 2
    assert "holds no predictions of a base model; give run folders of CAPT" in capsys.readouterr().err
    assert not (run / "out.png").exists()


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert picture.main([str(tmp_path / "nowhere")]) == 2
    assert "error: " in capsys.readouterr().err
