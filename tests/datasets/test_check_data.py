"""scripts/check_data.py finds what is missing or damaged, and writes nothing."""

import pytest
import trees

from capt_tools import check_data


@pytest.fixture
def small_counts(monkeypatch):
    """Pretend that the small trees are the published sets."""
    monkeypatch.setattr(
        check_data,
        "PUBLISHED",
        {"FGVCAircraft": (3, 12, 12, 12), "Caltech101": (5, 25, 10, 15), "ImageNetA": (2, None, None, 4)},
    )


def files_under(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_complete(tmp_path, small_counts, capsys):
    trees.BUILDERS["FGVCAircraft"](tmp_path)
    trees.BUILDERS["ImageNetA"](tmp_path)
    before = files_under(tmp_path)
    assert check_data.main(["--root", str(tmp_path), "--verify"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["FGVCAircraft", "complete", "3", "12", "12", "12", "36", "36"] in rows
    assert ["ImageNetA", "complete", "2", "-", "-", "4", "4", "4"] in rows
    assert ["Caltech101", "absent", "-", "-", "-", "-", "-", "-"] in rows
    assert files_under(tmp_path) == before


def test_absent_counts_where_it_is_named(tmp_path, small_counts, capsys):
    trees.BUILDERS["ImageNetA"](tmp_path)
    assert check_data.main(["--root", str(tmp_path)]) == 0
    assert check_data.main(["--root", str(tmp_path), "--dataset", "Caltech101"]) == 1
    assert f"Caltech101: no folder {tmp_path}/caltech-101; docs/DATASETS.md, section" in capsys.readouterr().out


def test_nothing_there(tmp_path, small_counts, capsys):
    assert check_data.main(["--root", str(tmp_path)]) == 1
    assert f"no data set under {tmp_path}" in capsys.readouterr().out


def test_missing_images(tmp_path, small_counts, capsys):
    trees.BUILDERS["FGVCAircraft"](tmp_path)
    for number in range(5):
        (tmp_path / f"fgvc_aircraft/images/{number:07d}.jpg").unlink()
    assert check_data.main(["--root", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert ["FGVCAircraft", "incomplete", "3", "12", "12", "12", "36", "31"] in [
        line.split() for line in output.splitlines()
    ]
    examples = ", ".join(f"images/{number:07d}.jpg" for number in range(3))
    assert f"5 listed images are missing, e.g. {examples}; docs/DATASETS.md, section FGVCAircraft" in output


def test_counts_differ_from_the_published(tmp_path, capsys):
    trees.BUILDERS["FGVCAircraft"](tmp_path)
    assert check_data.main(["--root", str(tmp_path), "--dataset", "FGVCAircraft"]) == 1
    output = capsys.readouterr().out
    assert "FGVCAircraft: 3 classes, published: 100" in output
    assert "FGVCAircraft: 12 train images, published: 3,334" in output


def test_split_file_missing(tmp_path, small_counts, capsys):
    trees.BUILDERS["Caltech101"](tmp_path)
    assert check_data.main(["--root", str(tmp_path)]) == 1
    path = tmp_path / "caltech-101/split_zhou_Caltech101.json"
    assert f"Caltech101: no {path}: train and val are not the published ones" in capsys.readouterr().out
    assert not path.exists()


def test_flat_imagenet_val(tmp_path, capsys):
    trees.BUILDERS["ImageNet"](tmp_path)
    for folder in list((tmp_path / "imagenet/images/val").iterdir()):
        for image in folder.iterdir():
            image.unlink()
        folder.rmdir()
    assert check_data.main(["--root", str(tmp_path), "--dataset", "ImageNet"]) == 1
    assert "has no class folders, so the test set is empty" in capsys.readouterr().out


def test_damaged_images_are_named(tmp_path, small_counts, capsys):
    trees.BUILDERS["FGVCAircraft"](tmp_path)
    cut = tmp_path / "fgvc_aircraft/images/0000007.jpg"
    cut.write_bytes(trees.JPEG[: len(trees.JPEG) // 2])
    empty = tmp_path / "fgvc_aircraft/images/0000009.jpg"
    empty.write_bytes(b"")
    assert check_data.main(["--root", str(tmp_path)]) == 0
    capsys.readouterr()
    assert check_data.main(["--root", str(tmp_path), "--verify"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert [line.split(" (")[0] for line in lines] == [
        f"FGVCAircraft: damaged: {cut}",
        f"FGVCAircraft: damaged: {empty}",
    ]


def test_unknown_data_set(tmp_path, capsys):
    with pytest.raises(SystemExit):
        check_data.main(["--root", str(tmp_path), "--dataset", "Caltech"])
    assert "invalid choice: 'Caltech'" in capsys.readouterr().err
