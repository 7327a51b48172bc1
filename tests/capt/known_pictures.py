"""Picture files of every kind with known pixels, 32 x 32, and what each must be read as: as stored, and as shown."""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 32
PLACES = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)  # 0 to 1023
COLOURS = np.stack([PLACES % 251, PLACES // 7 % 256, PLACES // 4], axis=-1).astype(np.uint8)
RED, WHITE = np.array([255, 0, 0], np.uint8), np.array([255, 255, 255], np.uint8)
IS_HOLE = (PLACES // SIDE < 16) & (PLACES % SIDE < 8)  # top left: where pictures with transparency show nothing
ON_WHITE = np.where(IS_HOLE[..., None], WHITE, COLOURS)


class Known(NamedTuple):
    """What is read of a file as it is stored, and as a viewer shows it, both ``(32, 32, 3)`` uint8."""

    stored: np.ndarray
    shown: np.ndarray


def write_all(folder):
    """Write the pictures into ``folder``; name of each -> :class:`Known`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return {**_wide_greys(folder), **_transparent(folder), **_turned(folder), **_others(folder)}


def grey(shades):
    """The picture of these shades ``(32, 32)``, read the same both ways."""
    pixels = np.repeat(np.asarray(shades).astype(np.uint8)[..., None], 3, axis=-1)
    return Known(pixels, pixels)


def scaled(values, white):
    """Shades of integer values by whole numbers alone: the nearest of 255 v / white."""
    return [[(2 * 255 * max(0, int(v)) + white) // (2 * white) for v in row] for row in values]


def write_tiff(path, values, bits, sample_format=1, photometric=1):
    """A little-endian, uncompressed, grey TIFF of values whose bytes lie in ``values`` as numpy has them."""
    data = values.tobytes() if isinstance(values, np.ndarray) else values
    tags = [(256, 4, SIDE), (257, 4, SIDE), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, SIDE), (279, 4, len(data)), (339, 3, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    end = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    Path(path).write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + end)


def write_png_of_16_bits(path, values):
    """An RGB PNG of 16 bits a channel, which Pillow reads but does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def _wide_greys(folder):
    unsigned = (PLACES * 64).astype(np.uint16)  # 0 to 65472
    signed = ((PLACES - 100) * 30).astype(np.int16)  # some below zero
    long = ((PLACES - 100).astype(np.int64) * 2_300_000).astype(np.int32)
    unsigned_long = (PLACES.astype(np.uint64) * 4_190_000).astype(np.uint32)  # to 4,286,370,000: beyond a signed one
    twelve = (PLACES * 4).astype(np.uint16)  # to 4092
    Image.fromarray(unsigned).save(folder / "grey16.png")
    Image.fromarray(unsigned).save(folder / "grey16.tif")
    Image.fromarray(unsigned.astype(">u2")).save(folder / "grey16_big_endian.tif")
    Image.fromarray(unsigned).save(folder / "grey16.pgm")
    write_tiff(folder / "grey16_white_is_zero.tif", unsigned, 16, photometric=0)
    write_tiff(folder / "grey16_signed.tif", signed, 16, sample_format=2)
    Image.fromarray(long).save(folder / "grey32_signed.tif")
    write_tiff(folder / "grey32_unsigned.tif", unsigned_long, 32)
    Image.fromarray((PLACES / 1023).astype(np.float32)).save(folder / "floats.tif")
    pairs = twelve.reshape(-1, 2).astype(np.uint32)  # two values in three bytes
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    write_tiff(folder / "grey12.tif", packed.astype(np.uint8).tobytes(), 12)
    of_16_bits = grey(scaled(unsigned, 65535))
    return {
        **dict.fromkeys(["grey16.png", "grey16.tif", "grey16_big_endian.tif", "grey16.pgm"], of_16_bits),
        "grey16_white_is_zero.tif": grey(255 - np.array(scaled(unsigned, 65535))),
        "grey16_signed.tif": grey(scaled(signed, 32767)),
        "grey32_signed.tif": grey(scaled(long, 2**31 - 1)),
        "grey32_unsigned.tif": grey(scaled(unsigned_long, 2**32 - 1)),
        "floats.tif": grey(scaled(PLACES, 1023)),
        "grey12.tif": grey(scaled(twelve, 4095)),
    }


def _transparent(folder):
    alpha = np.where(IS_HOLE, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([COLOURS, alpha])).save(folder / "rgba.png")
    shade = COLOURS[..., 2]
    Image.fromarray(np.dstack([shade, alpha]), "LA").save(folder / "la.png")
    palette = Image.fromarray(np.where(IS_HOLE, 1, 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 255, 0, 128, 0])  # blue, and green where there is a hole
    palette.save(folder / "palette.png", transparency=1)
    palette.save(folder / "palette.gif", transparency=1)
    keyed = np.where(IS_HOLE[..., None], np.uint8([1, 2, 3]), COLOURS)
    Image.fromarray(keyed).save(folder / "rgb_key.png", transparency=(1, 2, 3))
    wide = np.where(IS_HOLE, 77, PLACES * 64).astype(np.uint16)
    Image.fromarray(wide).save(folder / "grey16_key.png", transparency=77)
    half = np.full((SIDE, SIDE, 4), 51, np.uint8)  # a fifth of 51 and four fifths of white are 214.2
    Image.fromarray(half).save(folder / "half.png")
    blue, green = np.uint8([0, 0, 255]), np.uint8([0, 128, 0])
    hole = IS_HOLE[..., None]
    in_palette = Known(np.where(hole, green, blue), np.where(hole, WHITE, blue))
    greys = np.array(scaled(wide, 65535))
    return {
        "rgba.png": Known(COLOURS, ON_WHITE),
        "la.png": Known(grey(shade).stored, grey(np.where(IS_HOLE, 255, shade)).stored),
        "palette.png": in_palette,
        "palette.gif": in_palette,
        "rgb_key.png": Known(keyed, np.where(hole, WHITE, keyed)),
        "grey16_key.png": Known(grey(greys).stored, grey(np.where(IS_HOLE, 255, greys)).stored),
        "half.png": Known(half[..., :3], np.full((SIDE, SIDE, 3), 214, np.uint8)),
    }


def _turned(folder):
    exif = Image.Exif()
    exif[274] = 6  # the camera was held so that the picture must be turned clockwise
    Image.fromarray(COLOURS).save(folder / "turned.png", exif=exif)
    Image.fromarray(COLOURS).save(folder / "turned.jpg", exif=exif, quality=95)
    with Image.open(folder / "turned.jpg") as image:
        decoded = np.asarray(image.convert("RGB"))
    return {name: Known(p, np.rot90(p, -1)) for name, p in (("turned.png", COLOURS), ("turned.jpg", decoded))}


def _others(folder):
    Image.fromarray(COLOURS).save(folder / "plain.png")
    flat = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    flat[0].save(folder / "animated.gif", save_all=True, append_images=flat[1:])
    flat[0].save(folder / "pages.tif", save_all=True, append_images=flat[1:])
    Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)).save(folder / "cmyk.tif")
    write_png_of_16_bits(folder / "rgb16.png", COLOURS.astype(np.uint16) * 256 + 255)
    red = np.broadcast_to(RED, COLOURS.shape)
    are_red = dict.fromkeys(("animated.gif", "pages.tif", "cmyk.tif"), Known(red, red))
    return are_red | dict.fromkeys(("plain.png", "rgb16.png"), Known(COLOURS, COLOURS))
