"""Reads pictures: for loaders, feature cache, prediction, reports and pre-training alike.

Two ways, which differ in two things only:

- as *stored*, how CoOp and Dassl read, so that published numbers stay: pixels as they lie in the file, and what is
  transparent in its own colour;
- as *shown*, how a viewer shows them: turned as EXIF says, and what is transparent on white.

Either way the first frame of an animation is taken, and grey of more than 8 bits is scaled by its bit depth, never by
the picture's own maximum: 0 is black, and white is 65535 of 16 bits (4095 of a 12-bit TIFF, 2^32 - 1 of 32 bits), the
largest value of signed integers, whose negative values are black, and 1.0 of floats. ``Image.convert("RGB")`` would cut
all of them off at 255.
"""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

__all__ = ["ImageError", "as_rgb", "read_image", "read_shown", "read_stored"]

Source = str | os.PathLike[str] | BinaryIO

ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa")
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT, ORIENTATION = 258, 262, 339, 274  # tags of TIFF and EXIF
SIGNED, WHITE_IS_ZERO = 2, 0  # values of SAMPLE_FORMAT and PHOTOMETRIC
FORMATS_OF_16_BITS = ("PNG", "PPM")  # of which Pillow may give integers of 32


class ImageError(OSError, ValueError):
    """A file is no image, a damaged one, or one that nobody can read right; ``reason`` says why without its name."""

    reason = ""


def read_image(source: Source, shown: bool = False, side: int | None = None) -> Image.Image:
    """The RGB image in a file, which is closed again.

    Args:
        source: path, or file object of bytes.
        shown: turned as EXIF says and on white; else as stored.
        side: if a small image will do: decode a JPEG no larger than it takes for sides of so many pixels.

    Raises:
        ImageError: names the file: there is none, it is empty, no image, damaged, without pixels, of more pixels than
            Pillow takes (a decompression bomb), or of a range that nobody knows.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "this file"
    try:
        with Image.open(source) as image:
            if side is not None:
                image.draft("RGB", (side, side))
            return as_rgb(image, shown)
    except FileNotFoundError as error:
        raise _error(
            f'no image "{name}"; check the path, and the folder that it starts from', "no such file"
        ) from error
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... on damaged files
        reason = _reason(error, source)
        message = f'"{name}" cannot be read as an image ({reason}); restore the file, or leave it out'
        raise _error(message, reason) from error


def read_stored(path: str) -> Image.Image:
    """:func:`read_image` as stored; its own name says how features were read that are kept under it."""
    return read_image(path)


def read_shown(path: str) -> Image.Image:
    """:func:`read_image` as shown, likewise."""
    return read_image(path, shown=True)


def as_rgb(image: Image.Image, shown: bool = False) -> Image.Image:
    """The RGB image of an opened one, see :func:`read_image`.

    Raises:
        ValueError: it has no pixels, or is grey of a range that nobody knows.
    """
    if 0 in image.size:
        raise ValueError(f"it has no pixels, {image.width} x {image.height}")
    image.load()
    turned = image
    if shown and image.getexif().get(ORIENTATION, 1) != 1:
        turned = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey(image, turned, shown).convert("RGB")
    return _on_white(turned) if shown and _is_transparent(image) else turned.convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        return True
    return image.mode in ALPHA_MODES or "transparency" in image.info


def _on_white(image: Image.Image) -> Image.Image:
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, (255, 255, 255, 255)), colours).convert("RGB")


def _grey(image: Image.Image, turned: Image.Image, shown: bool) -> Image.Image:
    """8 bits of the grey ``turned``; ``image`` is the same as it came from its file, which alone knows its range."""
    values, white = np.asarray(turned), _white_of(image)
    if white == 2**32 - 1:
        values = values.view(np.uint32)  # Pillow holds them in signed integers
    if image.mode == "F" and not (values.min() >= 0 and values.max() <= 1):  # not so where there is a NaN, either
        raise ValueError(f"floats must be 0 for black to 1 for white, got {values.min():g} to {values.max():g}")
    shades: NDArray[np.float64] = np.rint(values.clip(0, None).astype(np.float64) * (255 / white))
    if _tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO:  # which Pillow heeds up to 8 bits
        shades = 255 - shades
    if shown and isinstance(image.info.get("transparency"), int):
        shades[values == image.info["transparency"]] = 255
    return Image.fromarray(shades.astype(np.uint8))


def _white_of(image: Image.Image) -> float:
    """The value of white by the bit depth of a grey image of more than 8 bits."""
    if image.mode == "F":
        return 1.0
    tags = _tags(image)
    if BITS_PER_SAMPLE in tags:
        is_signed = tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED
        return 2.0 ** (tags[BITS_PER_SAMPLE][0] - is_signed) - 1
    if image.mode.startswith("I;16") or image.format in FORMATS_OF_16_BITS:
        return 2.0**16 - 1
    raise ValueError("32-bit integers do not say which value is white; store 8 or 16 bits, or give the image's file")


def _tags(image: Image.Image) -> dict[int, Any]:
    """Of a TIFF by number; none of other formats."""
    return getattr(image, "tag_v2", None) or {}


def _reason(error: Exception, source: Source) -> str:
    if isinstance(source, str | os.PathLike) and os.path.isfile(source) and not os.path.getsize(source):
        return "the file is empty"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.partition(" image file ")[0] + " image file" if text.startswith("cannot identify") else text


def _error(message: str, reason: str) -> ImageError:
    error = ImageError(message)
    error.reason = reason
    return error
