"""Every kind of picture is read right: known pixels, published sets to the byte, refusals by name."""

import gc
import io
import warnings

import known_pictures
import numpy as np
import pytest
from PIL import Image

from trainers.capt.run.pictures import ImageError, as_rgb, read_image


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return folder, known_pictures.write_all(folder)


def test_known_pixels(pictures):
    folder, known = pictures
    assert len(known) > 20
    for name, expected in known.items():
        for shown in (False, True):
            image = read_image(folder / name, shown)
            assert image.mode == "RGB", name
            np.testing.assert_array_equal(np.asarray(image), expected[shown], f"{name}, shown={shown}")


def test_an_opened_image_is_read_like_its_file(pictures):
    folder, known = pictures
    for name, expected in known.items():
        with Image.open(folder / name) as image:
            np.testing.assert_array_equal(np.asarray(as_rgb(image, shown=True)), expected.shown, name)


def test_a_ramp_of_16_bits_keeps_its_mean(tmp_path):
    ramp = np.linspace(0, 65535, 2**16).reshape(256, 256).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    with Image.open(tmp_path / "ramp.png") as image, warnings.catch_warnings():
        assert np.asarray(image.convert("L")).mean() != pytest.approx(127.5, abs=1)  # what there was before
    assert np.asarray(read_image(tmp_path / "ramp.png")).mean() == pytest.approx(127.5, abs=0.01)


def test_a_dark_picture_stays_dark(tmp_path):
    """By its bit depth, not by its own maximum: 2570 of 65535 is 10 of 255."""
    Image.fromarray(np.full((8, 8), 2570, np.uint16)).save(tmp_path / "dark.png")
    assert np.unique(np.asarray(read_image(tmp_path / "dark.png"))).tolist() == [10]


# Where the pixel in the top left corner of the stored picture is shown, of 2 rows and 3 columns, for each orientation.
CORNERS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", CORNERS)
def test_every_orientation(tmp_path, orientation, suffix):
    pixels, exif, path = np.zeros((16, 24, 3), np.uint8), Image.Exif(), tmp_path / f"a.{suffix}"
    pixels[:8, :8] = 255
    exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    shown = np.asarray(read_image(path, shown=True))
    assert shown.shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
    row, column = CORNERS[orientation]
    corners = {(r, c): int(shown[r, c, 0]) for r in (0, -1) for c in (0, -1)}
    assert {place for place, value in corners.items() if value > 200} == {(row, column)}


def test_stored_is_what_convert_gives(tmp_path):
    """JPEGs of all kinds, as the published sets hold them, also with EXIF: to the byte."""
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 60, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = 3
    for mode in ("RGB", "L", "CMYK"):
        noise.convert(mode).save(tmp_path / f"{mode}.jpg", exif=exif)
        with Image.open(tmp_path / f"{mode}.jpg") as image:
            assert image.mode == mode
            plain = image.convert("RGB").tobytes()
        assert read_image(tmp_path / f"{mode}.jpg").tobytes() == plain
        assert read_image(tmp_path / f"{mode}.jpg", shown=True).tobytes() != plain


def test_caltech101_is_unchanged_to_the_byte(shared_data, tmp_path):
    root = shared_data / "caltech-101" / "101_ObjectCategories"
    if not root.is_dir():
        pytest.skip("../shared/data/caltech-101 is not here")
    paths = sorted(root.rglob("*.jpg"))
    modes = {}
    for path in paths:
        with Image.open(path) as image:
            modes.setdefault(image.mode, []).append(path)
    assert len(modes["L"]) >= 10
    chosen = modes["L"] + modes["RGB"][::90]
    with Image.open(chosen[-1]) as image:  # there is none of CMYK in it, as there are in ImageNet
        image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    for path in [*chosen, tmp_path / "cmyk.jpg"]:
        with Image.open(path) as image:
            plain = image.convert("RGB")
        for shown in (False, True):
            assert read_image(path, shown).tobytes() == plain.tobytes(), path


def test_a_jpeg_is_decoded_small_where_that_will_do(tmp_path):
    Image.new("RGB", (640, 480), "red").save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", side=100).size == (160, 120)
    assert read_image(tmp_path / "a.jpg").size == (640, 480)


def test_files_are_closed_and_file_objects_read(pictures):
    folder, known = pictures
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for name in known:
            read_image(folder / name, shown=True)
        gc.collect()
    content = io.BytesIO((folder / "rgba.png").read_bytes())
    np.testing.assert_array_equal(np.asarray(read_image(content, shown=True)), known["rgba.png"].shown)


# Refusals, in one line that names the file


def bomb(path):
    Image.new("1", (20_000, 20_000)).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def empty(path):
    path.write_bytes(b"")
    return path


def text(path):
    path.write_text("no picture")
    return path


def cut(path):
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def floats_of_255(path):
    Image.fromarray(np.float32([[0, 255]])).save(path.with_suffix(".tif"))
    return path.with_suffix(".tif")


def not_a_number(path):
    Image.fromarray(np.float32([[0, np.nan]])).save(path.with_suffix(".tif"))
    return path.with_suffix(".tif")


def no_pixels(path):
    path.with_suffix(".pgm").write_bytes(b"P5 0 5 255\n")
    return path.with_suffix(".pgm")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (bomb, "400000000 pixels.*decompression bomb"),
        (empty, "the file is empty"),
        (text, r"cannot identify image file\)"),
        (cut, "truncated|broken data stream|Truncated"),
        (floats_of_255, "floats must be 0 for black to 1 for white, got 0 to 255"),
        (not_a_number, "floats must be 0 for black to 1 for white, got nan to nan"),
        (no_pixels, "."),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, make, words):
    path = make(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=words) as found:
        read_image(path)
    message = str(found.value)
    assert message.startswith(f'"{path}" cannot be read as an image ({found.value.reason})')
    assert message.endswith("restore the file, or leave it out")
    assert "\n" not in message
    assert str(path) not in found.value.reason
    assert isinstance(found.value, ValueError)
    assert isinstance(found.value, OSError)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r'no image ".*none\.jpg"; check the path'):
        read_image(tmp_path / "none.jpg")


def test_images_without_pixels_or_of_unknown_range():
    with pytest.raises(ValueError, match="it has no pixels, 0 x 3"):
        as_rgb(Image.new("RGB", (0, 3)))
    with pytest.raises(ValueError, match="do not say which value is white"):
        as_rgb(Image.fromarray(np.int32([[0, 70000]])))
    shades = np.asarray(as_rgb(Image.fromarray(np.uint16([[0, 65535]]))))
    assert shades[0, :, 0].tolist() == [0, 255]
