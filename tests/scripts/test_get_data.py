"""capt get-data: archives in the real layouts from a local server, by torchvision's downloaders into CoOp's folders."""

import hashlib
import json
import shutil
from pathlib import Path

import archives
import pytest
import torchvision
import trees
from torchvision.datasets import utils

from capt_tools import check_data, get_data
from capt_tools.fetching import sources, staging

FETCHED = [name for name in sources.SOURCES if name != "StanfordCars"]
SPLIT = {"Caltech101", "DescribableTextures", "EuroSAT", "Food101", "OxfordFlowers", "OxfordPets", "SUN397"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The archives, and the tree that they were made of."""
    folder = tmp_path_factory.mktemp("made")
    return archives.make(folder), folder


@pytest.fixture
def server(made, monkeypatch):
    """The local server; checksums and counts are those of the small archives. Its archives can be replaced."""
    offered = dict(made[0])
    sums = {name: hashlib.md5(content).hexdigest() for name, content in offered.items()}
    monkeypatch.setattr(utils, "check_md5", lambda path, md5: utils.calculate_md5(path) == sums[Path(path).name])
    monkeypatch.setattr(check_data, "PUBLISHED", archives.COUNTS)
    for name, num_images in (("OxfordFlowers", 30), ("SUN397", 24)):
        source = get_data.SOURCES[name]
        monkeypatch.setitem(get_data.SOURCES, name, sources.Source(**{**vars(source), "num_images": num_images}))
    with archives.served(offered) as (address, fetched):
        archives.redirect(monkeypatch, address)
        yield offered, fetched


def run(root, *names):
    return get_data.main([*names, "--root", str(root)])


def images_of(root, name):
    """Path below the data set's folder -> bytes of every image."""
    folder = root / get_data.SOURCES[name].folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


@pytest.mark.parametrize("name", FETCHED)
def test_every_set_comes_into_coops_folders(name, server, made, tmp_path, capsys):
    assert run(tmp_path, name) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{name}: fetching into {tmp_path / get_data.SOURCES[name].folder}"
    assert lines[1].startswith(f"{name}: complete")
    assert images_of(tmp_path, name) == images_of(made[1], name) != {}
    folder = tmp_path / get_data.SOURCES[name].folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(get_data.SOURCES[name].places.values())
    needed = [line for line in lines if "still needed is" in line]
    assert bool(needed) == (name in SPLIT)
    if needed:
        assert f"{folder}/split_zhou_{name}.json; docs/DATASETS.md, Split files" in needed[0]


def test_the_loaders_read_what_came(server, tmp_path, capsys):
    names = ["Caltech101", "OxfordPets", "FGVCAircraft", "EuroSAT", "Food101", "DescribableTextures"]
    assert run(tmp_path, *names) == 0
    for name in names:
        report = check_data.check(name, str(tmp_path), verify=True)
        assert [note for note in report.notes if note != report.split_note] == []
        assert (report.num_classes, *report.counts.values()) == archives.COUNTS[name]
        assert report.found == report.listed == sum(archives.COUNTS[name][1:])


def test_flowers_names_both_files_that_come_by_hand(server, made, tmp_path, capsys):
    assert run(tmp_path, "OxfordFlowers") == 0
    out = capsys.readouterr().out
    assert "complete" in out
    assert f"still needed is {tmp_path}/oxford_flowers/cat_to_name.json" in out
    shutil.copy(made[1] / "oxford_flowers/cat_to_name.json", tmp_path / "oxford_flowers")
    assert run(tmp_path, "OxfordFlowers") == 0
    out = capsys.readouterr().out
    assert "OxfordFlowers: complete, nothing to fetch, 30 images of 3 classes" in out
    assert "cat_to_name" not in out


def test_what_is_complete_is_not_fetched_again(server, tmp_path, capsys):
    _, fetched = server
    assert run(tmp_path, "EuroSAT", "EuroSAT") == 0
    once = fetched.count("EuroSAT.zip")  # torchvision asks first where an address leads to
    capsys.readouterr()
    assert run(tmp_path, "EuroSAT") == 0
    assert fetched.count("EuroSAT.zip") == once == 3
    assert capsys.readouterr().out.startswith("EuroSAT: complete, nothing to fetch, 30 images of 3 classes\n")


def test_a_split_file_that_is_there_already_stays(server, tmp_path, capsys):
    split = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
    items = [[f"Forest/image_{i:04d}.jpg", 0, "Forest"] for i in range(1, 11)]
    items += [[f"SeaLake/image_{i:04d}.jpg", 1, "Lake"] for i in range(1, 11)]
    items += [[f"AnnualCrop/image_{i:04d}.jpg", 2, "Crop"] for i in range(1, 11)]
    parts = items[::2], [item for item in items[1::2] if item[0][-8:-4] in ("0002", "0004")]
    rest = [item for item in items if item not in parts[0] and item not in parts[1]]
    split.parent.mkdir()
    split.write_text(json.dumps({"train": parts[0], "val": parts[1], "test": rest}))
    before = split.read_bytes()
    assert run(tmp_path, "EuroSAT") == 0
    assert "still needed" not in capsys.readouterr().out
    assert split.read_bytes() == before


# Broken off, and gone on


@pytest.mark.parametrize("name", FETCHED)
def test_a_run_that_is_killed_while_unpacking_goes_on(name, server, made, tmp_path, monkeypatch):
    """Some images are unpacked and the archive is whole: nothing half stays, and nothing verified is fetched twice."""
    _, fetched = server
    real = utils._extract_tar if name not in ("Caltech101", "EuroSAT") else utils._extract_zip
    kind = ".tar" if real is utils._extract_tar else ".zip"

    def killed(archive, target, compression):
        real(archive, target, compression)
        for path in list(Path(target).rglob("*.jpg"))[1:]:
            path.unlink()
        raise KeyboardInterrupt

    monkeypatch.setitem(utils._ARCHIVE_EXTRACTORS, kind, killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, name)
    source = get_data.SOURCES[name]
    assert not any((tmp_path / source.folder / place).exists() for place in source.places.values())
    first = list(fetched)
    monkeypatch.setitem(utils._ARCHIVE_EXTRACTORS, kind, real)
    assert run(tmp_path, name) == 0
    assert images_of(tmp_path, name) == images_of(made[1], name)
    again = set(fetched[len(first) :]) & set(first)
    assert again == (set() if source.is_verified else {"fgvc-aircraft-2013b.tar.gz"})


@pytest.mark.parametrize("name", ["FGVCAircraft", "EuroSAT", "OxfordPets"])
def test_half_an_archive_is_fetched_again(name, server, made, tmp_path, monkeypatch):
    real = utils._urlretrieve

    def killed(url, path, *args):
        real(url, path, *args)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(utils, "_urlretrieve", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, name)
    monkeypatch.setattr(utils, "_urlretrieve", real)
    assert run(tmp_path, name) == 0
    assert images_of(tmp_path, name) == images_of(made[1], name)


def test_a_run_that_is_killed_between_two_moves_goes_on_without_a_network(server, made, tmp_path, monkeypatch):
    offered, fetched = server
    real, moved = staging.os.replace, []

    def killed(origin, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        real(origin, target)

    monkeypatch.setattr(staging.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "OxfordPets")
    monkeypatch.setattr(staging.os, "replace", real)
    offered.clear()
    num = len(fetched)
    assert run(tmp_path, "OxfordPets") == 0
    assert len(fetched) == num
    assert images_of(tmp_path, "OxfordPets") == images_of(made[1], "OxfordPets")


# What cannot be fetched


def test_a_set_without_a_source_says_so_and_the_others_come(server, tmp_path, capsys):
    assert run(tmp_path, "StanfordCars", "EuroSAT") == 1
    out = capsys.readouterr().out
    assert "StanfordCars: not fetched, The original URL is broken" in out
    assert "docs/DATASETS.md, section StanfordCars, names its sources" in out
    assert "EuroSAT: complete, 30 images of 3 classes" in out


def test_cars_come_where_a_torchvision_can_fetch_them(server, made, tmp_path, monkeypatch):
    def older(root, download):
        shutil.copytree(made[1] / "stanford_cars", Path(root) / "stanford_cars")

    monkeypatch.setattr(torchvision.datasets, "StanfordCars", older)
    assert run(tmp_path, "StanfordCars") == 0
    assert images_of(tmp_path, "StanfordCars") == images_of(made[1], "StanfordCars")


def test_a_dead_source_is_named(server, tmp_path, capsys):
    server[0]["dtd-r1.0.1.tar.gz"] = None
    assert run(tmp_path, "DescribableTextures") == 1
    assert "DescribableTextures: not fetched, its source does not answer (HTTP Error 404" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["cut", "other"])
def test_an_archive_of_another_checksum_is_refused(server, tmp_path, capsys, change):
    content = server[0]["dtd-r1.0.1.tar.gz"]
    server[0]["dtd-r1.0.1.tar.gz"] = content[:-40] if change == "cut" else content + b"more"
    assert run(tmp_path, "DescribableTextures") == 1
    assert "DescribableTextures: not fetched, File not found or corrupted." in capsys.readouterr().out
    server[0]["dtd-r1.0.1.tar.gz"] = content
    assert run(tmp_path, "DescribableTextures") == 0


def test_an_archive_that_nobody_verifies_is_refused_where_it_is_cut(server, tmp_path, capsys):
    name = "fgvc-aircraft-2013b.tar.gz"
    content = server[0][name]
    server[0][name] = content[: len(content) // 2]
    assert run(tmp_path, "FGVCAircraft") == 1
    assert "FGVCAircraft: not fetched, " in (out := capsys.readouterr().out)
    assert "Traceback" not in out
    server[0][name] = content
    assert run(tmp_path, "FGVCAircraft") == 0


def test_counts_that_are_not_the_published_ones_are_told(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check_data, "PUBLISHED", {**archives.COUNTS, "EuroSAT": (10, 13_500, 5_400, 8_100)})
    assert run(tmp_path, "EuroSAT") == 1
    assert (
        "EuroSAT: incomplete, 3 classes, published: 10; 15 train images, published: 13,500" in capsys.readouterr().out
    )
    source = get_data.SOURCES["SUN397"]
    monkeypatch.setitem(get_data.SOURCES, "SUN397", sources.Source(**{**vars(source), "num_images": 108_754}))
    assert run(tmp_path, "SUN397") == 1
    assert "SUN397: incomplete, 24 images, published: 108,754" in capsys.readouterr().out


def test_nothing_of_the_users_is_overwritten(server, tmp_path, capsys):
    trees.BUILDERS["EuroSAT"](tmp_path)
    gone = tmp_path / "eurosat/2750/Forest/image_0001.jpg"
    gone.unlink()
    assert run(tmp_path, "EuroSAT") == 1
    out = capsys.readouterr().out
    assert (
        f"EuroSAT: not fetched, {tmp_path}/eurosat/2750 is there, but incomplete; move it away, then ask again" in out
    )
    assert not gone.exists()
    assert server[1] == []


def test_an_archive_of_another_layout_is_named(server, made, tmp_path, capsys, monkeypatch):
    source = get_data.SOURCES["EuroSAT"]
    monkeypatch.setitem(
        get_data.SOURCES, "EuroSAT", sources.Source(**{**vars(source), "places": {"eurosat/x": "2750"}})
    )
    assert run(tmp_path, "EuroSAT") == 1
    assert "eurosat/x was not in what EuroSAT downloaded; remove" in capsys.readouterr().out


def test_the_real_numbers_and_names(tmp_path, capsys):
    assert set(sources.SOURCES) < set(check_data.PUBLISHED)
    assert sources.SOURCES["OxfordFlowers"].num_images == sum(check_data.PUBLISHED["OxfordFlowers"][1:])
    for source in sources.SOURCES.values():
        assert hasattr(torchvision.datasets, source.downloader)
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "Nothing")
    assert "invalid choice: 'Nothing'" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.slow  # 9,144 photographs packed, served, unpacked and counted
def test_real_caltech101_is_complete(shared_data, tmp_path, monkeypatch, capsys):
    real = shared_data / "caltech-101"
    if not real.is_dir():
        pytest.skip("../shared/data/caltech-101 is not here")
    inner = archives.tar(**{"101_ObjectCategories": real / "101_ObjectCategories"})
    content = archives.zipped({"caltech-101/101_ObjectCategories.tar.gz": inner})
    monkeypatch.setattr(utils, "check_md5", lambda path, md5: Path(path).read_bytes() == content)
    (tmp_path / "caltech-101").mkdir()
    shutil.copy(real / "split_zhou_Caltech101.json", tmp_path / "caltech-101")
    with archives.served({"caltech-101.zip": content}) as (address, _):
        archives.redirect(monkeypatch, address)
        assert run(tmp_path, "Caltech101") == 0
    assert "Caltech101: complete, 8,242 images of 100 classes" in capsys.readouterr().out
